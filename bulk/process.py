"""The process of the command: its exit codes, standard streams and signals. It imports nothing that takes time."""

import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import Final, NoReturn

OK, FAILED, ROW_ERRORS, INTERRUPTED, TERMINATED = 0, 1, 4, 130, 143

CONTINUE: Final = "Run the same command again to continue."


def say(line: str) -> None:
    """Print a line to standard error, unless standard error is closed."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def end(code: int, line: str) -> NoReturn:
    """Print a line to standard error, and end at once. Workers on this machine end with this process, `bulk.worker`."""
    with suppress(RuntimeError):  # a signal interrupted another line
        say(line)
    os._exit(code)


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the process at once, with a line."""

    def handle(number: int, _: object) -> NoReturn:
        code, word = (INTERRUPTED, "Interrupted") if number == signal.SIGINT else (TERMINATED, "Terminated")
        end(code, f"{word}. {CONTINUE}")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)


def prepare_streams() -> bool:
    """Prepare standard output and standard error for any text; return whether standard output is open."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open
    # Characters that the stream's encoding lacks are escaped.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return sys.stdout is not None


def finish_output() -> None:
    """Flush the output, or discard it if that fails: otherwise Python prints an error when it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
