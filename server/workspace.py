"""A folder of a server's own in the temporary folder, which goes with the server, however that ends."""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "fastai-sentiment-server-"
"""No one else's: what is left of the name is removed."""
NEW_S = 60
"""A folder younger than this may be one whose server has not locked it yet."""


class Workspace:
    """Made and locked on construction. A server that is killed cannot remove its own, so the next one that starts
    does: the lock (flock(2)) ends with the process that holds it."""

    def __init__(self) -> None:
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _remove_if_left(folder)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = os.open(self.path, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_left(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < NEW_S:
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's, no folder, or gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # its server runs
        pass
    finally:
        os.close(lock)
