"""The files of this machine that a pattern matches. It does not import Beam, which takes a second."""

import glob
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class File:
    """A file that exists."""

    path: str
    size: int
    """Size in bytes."""

    modified_s: float
    """Time of the last modification, in seconds since 1970."""


def local_files(pattern: str) -> Iterator[File]:
    """Yield the regular files that a pattern matches.

    Beam's local file system would walk through all folders below the pattern's.

    Raises:
        OSError: a folder cannot be listed.
        ValueError: the pattern is invalid.
    """
    for path in glob.iglob(pattern, recursive=True):
        with suppress(OSError):  # a broken link, or a file that was renamed or deleted meanwhile
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode):
                yield File(path, status.st_size, status.st_mtime)
