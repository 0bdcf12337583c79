"""Reads and writes whole files with Beam's file systems: local paths, and `gs://`."""

import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Final

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from bulk.errors import BulkError

PARTIAL: Final = ".partial"
"""Ending of a file that is being written."""


@dataclass(frozen=True)
class File:
    """A file that exists."""

    path: str
    size: int
    """Size in bytes."""

    modified_s: float
    """Time of the last modification, in seconds since 1970."""


def is_local(path: str) -> bool:
    """Return whether a path is a path of this machine, as opposed to `gs://` and the like."""
    return FileSystems.get_scheme(path) is None


def matching(pattern: str) -> list[File]:
    """Return the files that a pattern matches, in the order of their paths.

    Raises:
        BulkError: the file system is not known, or it cannot be listed.
    """
    try:
        if is_local(pattern):
            # Beam's local file system would walk through all folders below the pattern's.
            paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
            files = [File(path, status.st_size, status.st_mtime) for path in paths for status in [os.stat(path)]]
        else:
            [result] = FileSystems.match([pattern])
            files = [File(f.path, f.size_in_bytes, f.last_updated_in_seconds) for f in result.metadata_list]
    except (BeamIOError, ValueError, OSError) as error:
        raise BulkError(f"{pattern} cannot be listed: {_reason(error)}") from error
    return sorted(files, key=lambda file: file.path)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file to read.

    Raises:
        BulkError: the file is missing, or it cannot be read.
    """
    try:
        with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            yield file
    except (BeamIOError, OSError) as error:
        raise BulkError(f"{path} cannot be read: {_reason(error)}") from error


def read_file(path: str) -> bytes:
    """Return the content of a file; raises `BulkError` like `opened`."""
    with opened(path) as file:
        return file.read()


def write_file(path: str, content: bytes) -> None:
    """Write a file whole or not at all: under another name, then under its own.

    Raises:
        BulkError: the file cannot be written.
    """
    partial = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        with FileSystems.create(partial, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
            file.write(content)
        FileSystems.rename([partial], [path])
    except (BeamIOError, OSError) as error:
        raise BulkError(f"{path} cannot be written: {_reason(error)}") from error


def exists(path: str) -> bool:
    """Return whether a file exists."""
    return bool(FileSystems.exists(path))


def delete_files(paths: list[str]) -> None:
    """Delete files."""
    if paths:
        FileSystems.delete(paths)


def _reason(error: Exception) -> str:
    """Return the reason of an error, without the paths that Beam adds to it."""
    causes = (
        list(error.exception_details.values()) if isinstance(error, BeamIOError) and error.exception_details else []
    )
    cause = causes[0] if causes else error
    return (getattr(cause, "strerror", None) or str(cause)).rstrip(".") + "."
