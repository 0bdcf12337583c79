"""Reads a model archive, from a local path or from object storage."""

import errno
import gc
import hashlib
import io
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from bulk.errors import BulkError, cut
from bulk.files import read_file
from handler.classifier import TextClassifier
from handler.exported import ExportedModelError, ModelConfig, read_config, read_description
from handler.memory import give_freed_memory_back
from handler.service import HEAP_END_MIB, LARGE_BLOCK_MIB, MODEL_FOLDER
from handler.task import Task

_HANDLER: Final = Path(__file__).parents[1] / "handler"
NAME_CHARACTERS: Final = 100
"""Maximum length of the name of an archive's file in a message."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class SharedClassifier(TextClassifier):
    """A classifier that several threads may use. spaCy's tokenizers of some languages serve one thread at a time."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tokenizing = threading.Lock()

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, see `TextClassifier.ids`."""
        with self._tokenizing:
            return super().ids(text)


@dataclass(frozen=True)
class Archive:
    """A model archive."""

    path: str
    sha256: str
    task: Task

    def load(self) -> SharedClassifier:
        """Load the model. One thread computes a forward pass.

        Raises:
            BulkError: the archive has changed since the run began, or it is damaged.
        """
        content = read_file(self.path)
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise BulkError(f"{self.path} has changed since the run began. Start the command again.")
        give_freed_memory_back(LARGE_BLOCK_MIB, HEAP_END_MIB)
        with _unpacked(self.path, content) as folder:
            classifier = cast(SharedClassifier, SharedClassifier.load_archived(folder, threads=1))
        # The garbage collector need not examine the model's objects again and again: 2 % of the CPU time.
        gc.collect()
        gc.freeze()
        return classifier


def read_archive(path: str, *, with_check: bool) -> tuple[Archive, bool]:
    """Read the task of an archive's model.

    Args:
        path: the archive.
        with_check: whether to check all of the model except its network. This imports spaCy, which takes a second.

    Returns:
        The archive, and whether its code is the code of this checkout.

    Raises:
        BulkError: the file is missing, or it is not an archive.
    """
    content = read_file(path)
    with _unpacked(path, content) as folder:
        config: ModelConfig = read_description(folder).config if with_check else read_config(folder)
        is_this_code = _has_this_code(folder.parent / _HANDLER.name)
    return Archive(path, hashlib.sha256(content).hexdigest(), config.predicts), is_this_code


@contextmanager
def _unpacked(path: str, content: bytes) -> Iterator[Path]:
    """Unpack an archive, and give the folder of its model.

    Raises:
        BulkError: the content is not an archive, a file in it is damaged, or the temporary folder is full. This
            includes the errors of the code that reads the model in the folder.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="bulk-archive-") as folder:
            try:
                _extract(content, folder)
                yield Path(folder, MODEL_FOLDER)
            except (zipfile.BadZipFile, ExportedModelError, OSError, ValueError, RuntimeError) as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                raise BulkError(
                    f"{path} is not a model archive, or it is damaged: {_reason(error, folder)}. `make archive` builds "
                    "one."
                ) from error
    except OSError as error:
        # `tempdir` is None if `tempfile` has found no folder.
        where = f" {tempfile.tempdir}" if tempfile.tempdir else ""
        reason = "is full" if error.errno in _FULL else f"cannot be used: {error.strerror}"
        raise BulkError(
            f"{path} cannot be unpacked: the temporary folder{where} {reason}. Free some space, or choose another "
            "folder with TMPDIR."
        ) from error


def _extract(content: bytes, folder: str) -> None:
    """Unpack the files of an archive.

    Raises:
        BadZipFile: the content is not a zip file, or a file in it cannot be unpacked.
        OSError: the temporary folder is full.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            try:
                archive.extract(member, folder)
            except Exception as error:  # a damaged or encrypted file has errors of many types
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                reason = getattr(error, "strerror", None) or error
                raise zipfile.BadZipFile(f"{cut(member.filename, NAME_CHARACTERS)}: {reason}") from error


def _reason(error: Exception, folder: str) -> str:
    """Return the reason of an error, with the names of files within the archive in place of those in a folder."""
    reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return cut(reason.replace(f"{folder}/", "")).rstrip(".")


def _has_this_code(handler: Path) -> bool:
    """Return whether the Python files of an archive's handler are equal to those of this checkout."""
    files = {file.name: file.read_bytes() for file in handler.glob("*.py")}
    return all((_HANDLER / name).is_file() and (_HANDLER / name).read_bytes() == code for name, code in files.items())
