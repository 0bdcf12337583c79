"""Reads and writes whole files with Beam's file systems: local paths, and `gs://`."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError

from bulk.errors import BulkError
from bulk.local_files import File, local_files

PARTIAL: Final = ".partial"
"""Ending of a file that is being written."""

_RANDOM_DIGITS: Final = 8
"""Number of digits before this ending. Few, because file systems limit the length of a name, often to 255 bytes."""

_PARTIAL_ENDING: Final = re.compile(rf"\.(?:[0-9a-f]{{{_RANDOM_DIGITS}}}|[0-9a-f]{{32}}){re.escape(PARTIAL)}\Z")
"""Runs of earlier versions had 32 digits."""

_ERRORS: Final = (OSError, GoogleAPIError, GoogleAuthError)
"""The errors of the file systems. Beam's own are `OSError`; it passes on those of Google's clients as they are."""


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
            files = [*local_files(pattern)]
        else:
            [result] = FileSystems.match([pattern])
            files = [File(f.path, f.size_in_bytes, f.last_updated_in_seconds) for f in result.metadata_list]
    except (*_ERRORS, ValueError) as error:
        raise BulkError(f"{pattern} cannot be listed: {_reason(error)}") from error
    return sorted(files, key=lambda file: file.path)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file to read.

    Raises:
        BulkError: the file system is not known, the file is missing, or it cannot be read.
    """
    try:
        file = FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
    except (*_ERRORS, ValueError) as error:
        raise BulkError(f"{path} cannot be read: {_reason(error)}") from error
    try:
        with file:
            yield file
    except _ERRORS as error:
        raise BulkError(f"{path} cannot be read: {_reason(error)}") from error


def read_file(path: str) -> bytes:
    """Return the content of a file; raises `BulkError` like `opened`."""
    with opened(path) as file:
        return file.read()


def write_file(path: str, content: bytes) -> None:
    """Write a file whole or not at all: write it under a temporary name, and then rename it.

    Raises:
        BulkError: the file system is not known, or the file cannot be written.
    """
    partial = _partial(path)
    try:
        with FileSystems.create(partial, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
            file.write(content)
        FileSystems.rename([partial], [path])
    except (*_ERRORS, ValueError) as error:
        raise BulkError(f"{path} cannot be written: {_reason(error)}") from error


def check_name(path: str) -> None:
    """Check whether the name of a file on this machine is short enough for `write_file`.

    Raises:
        BulkError: the file's name is too long.
    """
    try:
        if is_local(path):
            with suppress(FileNotFoundError):
                os.lstat(_partial(path))
    except OSError as error:
        raise BulkError(f"{path} cannot be written: {_reason(error)} Expected a shorter name.") from error


def whole_path(path: str) -> str:
    """Return the path that a partial file of `write_file` gets when it is whole; other paths stay as they are."""
    return _PARTIAL_ENDING.sub("", path)


def exists(path: str) -> bool:
    """Return whether a file exists.

    Raises:
        BulkError: the file system is not known, or it does not answer.
    """
    try:
        return bool(FileSystems.exists(path))
    except (*_ERRORS, ValueError) as error:
        raise BulkError(f"{path} cannot be read: {_reason(error)}") from error


def delete_file(path: str) -> None:
    """Delete a file. It is no error if the file was renamed or deleted meanwhile.

    Raises:
        BulkError: the file cannot be deleted.
    """
    try:
        if is_local(path):
            # Beam's local file system would take the path as a pattern, and a missing file as an error.
            with suppress(FileNotFoundError):
                os.unlink(path)
        else:
            FileSystems.delete([escaped(path)])
    except _ERRORS as error:
        raise BulkError(f"{path} cannot be deleted: {_reason(error)}") from error


def escaped(path: str) -> str:
    """Return a path as a pattern that matches only this path."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _partial(path: str) -> str:
    """Return a name for a file that is being written, which no other process has."""
    return f"{path}.{uuid.uuid4().hex[:_RANDOM_DIGITS]}{PARTIAL}"


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line, without the paths that Beam adds to it."""
    causes = (
        list(error.exception_details.values()) if isinstance(error, BeamIOError) and error.exception_details else []
    )
    cause = causes[0] if causes else error
    return (getattr(cause, "strerror", None) or str(cause)).partition("\n")[0].rstrip(".") + "."
