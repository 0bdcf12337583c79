"""Entry point of the training command line: `python -m training`."""

import io
import os
import sys

from training.errors import exit_code


def run() -> int:
    """Run the command line; return its exit code."""
    from training.cli import main

    return main()


# A stream that is closed is None. Its output is discarded.
if sys.stdout is None:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # stays open
if sys.stderr is None:
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # the locale's encoding may lack characters of a label
sys.exit(
    exit_code(
        run,
        "`make train-setup` installs the packages of the training commands into .venv. Run the commands with "
        ".venv/bin/python.",
    )
)
