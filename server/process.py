"""Child processes that end when this program ends, even if it is killed."""

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
    """A process did not start. The message says what was observed."""


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants (Linux, prctl(2), PR_SET_CHILD_SUBREAPER).

    Otherwise process 1 becomes their parent. In a container or a sandbox, process 1 may never wait for its children,
    and they stay as zombies.
    """
    if sys.platform == "linux":
        _C_LIBRARY.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def start(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    output: int | None = None,
    files: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process.

    Call it from the main thread only: Linux ends the process together with the thread that started it.

    Args:
        command: the program and its arguments.
        folder: the working folder of the process.
        variables: the whole environment of the process.
        output: the target of standard output and standard error, as in `subprocess.Popen`; None to inherit both.
        files: file descriptors that the process inherits, under the same numbers.
    """
    return subprocess.Popen(
        command,
        cwd=folder,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        pass_fds=files,
        # A process group of its own: Ctrl-C in the terminal reaches only this program, which drains first.
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # takes no lock
    )


def yield_to_others(started: subprocess.Popen[bytes]) -> None:
    """Schedule a process so that it does not preempt other processes when it wakes up (Linux, sched(7), SCHED_BATCH).

    Its share of the cores stays the same.
    """
    if sys.platform == "linux":
        # A sandbox may forbid this, or the process may have ended.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(started.pid, os.SCHED_BATCH, os.sched_param(0))


def _die_with_parent() -> None:
    """Have Linux end the calling process, which is the new one, when this program ends (prctl(2), PR_SET_PDEATHSIG)."""
    _C_LIBRARY.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
