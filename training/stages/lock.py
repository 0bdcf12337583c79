"""A lock on a folder, so that two processes do not write into it at the same time."""

import fcntl
import os
from pathlib import Path

from training.errors import TrainingError

_LOCKS: dict[tuple[int, int], int] = {}
"""Open folders that this process has locked, by device and inode. The locks end with the process (flock(2))."""


def lock(folder: Path) -> None:
    """Lock a folder until this process ends. A second call has no effect.

    Raises:
        TrainingError: another process has locked the folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    if key in _LOCKS:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise TrainingError(
            f"Another process is working in {folder}. Wait until it ends, or choose another folder with --run."
        ) from None
    except OSError:  # a file system without locks
        pass
    _LOCKS[key] = descriptor


def _close() -> None:
    """Close the folders in a child process. If it outlived this process, the folders would stay locked."""
    for descriptor in _LOCKS.values():
        os.close(descriptor)
    _LOCKS.clear()


os.register_at_fork(after_in_child=_close)
