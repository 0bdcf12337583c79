"""Processes that end when this program ends, however it ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_C_LIBRARY = ctypes.CDLL(None)


class StartError(Exception):
    """A process did not come up. The message says what was seen."""


def adopt_orphans() -> None:
    """Become the parent of what this program's processes leave behind (Linux, prctl(2)). The first process of a
    container or a sandbox, which would be it otherwise, may never wait for its children."""
    if sys.platform == "linux":
        _C_LIBRARY.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def start(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    output: int | None = None,
    files: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process. It must be called by the program's main thread, as Linux ends the process with that thread.

    Args:
        folder: the process's working folder.
        variables: all of its environment.
        output: where it writes its output and its errors, as `subprocess` has it; None for where this program does.
        files: this program's files that it gets, under the same numbers.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=files,
        # A group of its own: Ctrl-C in the terminal is for this program, which drains first.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # takes no lock
    )


def yield_to_others(started: subprocess.Popen[bytes]) -> None:
    """Let a process wait for a free core or its turn, rather than interrupt another one when it has something to do
    (Linux, sched(7), SCHED_BATCH). Its share of the cores stays the same."""
    if sys.platform == "linux":
        # A sandbox may forbid it, or the process may have ended.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(started.pid, os.SCHED_BATCH, os.sched_param(0))


def _die_with_parent() -> None:
    """In the new process: end when this program does (Linux, prctl(2))."""
    _C_LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
