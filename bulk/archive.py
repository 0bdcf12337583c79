"""Reads a model archive, from a local path or from object storage."""

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

from bulk.errors import BulkError
from bulk.files import read_file
from handler.classifier import TextClassifier
from handler.exported import Description, ExportedModelError, read_description
from handler.memory import give_freed_memory_back
from handler.service import HEAP_END_MIB, LARGE_BLOCK_MIB, MODEL_FOLDER
from handler.task import Task

_HANDLER: Final = Path(__file__).parents[1] / "handler"


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
        classifier.warm_up()
        # The garbage collector need not examine the model's objects again and again: 2 % of the CPU time.
        gc.collect()
        gc.freeze()
        return classifier


def read_archive(path: str) -> tuple[Archive, bool]:
    """Read the task of an archive's model.

    Returns:
        The archive, and whether its code is the code of this checkout.

    Raises:
        BulkError: the file is missing, or it is not an archive.
    """
    content = read_file(path)
    with _unpacked(path, content) as folder:
        description: Description = read_description(folder)
        is_this_code = _has_this_code(folder.parent / _HANDLER.name)
    return Archive(path, hashlib.sha256(content).hexdigest(), description.config.predicts), is_this_code


@contextmanager
def _unpacked(path: str, content: bytes) -> Iterator[Path]:
    """Unpack an archive, and give the folder of its model."""
    try:
        with tempfile.TemporaryDirectory(prefix="bulk-archive-") as folder:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                archive.extractall(folder)
            yield Path(folder, MODEL_FOLDER)
    except (zipfile.BadZipFile, ExportedModelError) as error:
        reason = str(error).rstrip(".")
        raise BulkError(f"{path} is not a model archive: {reason}. `make archive` builds one.") from error


def _has_this_code(handler: Path) -> bool:
    """Return whether the Python files of an archive's handler are equal to those of this checkout."""
    files = {file.name: file.read_bytes() for file in handler.glob("*.py")}
    return all((_HANDLER / name).is_file() and (_HANDLER / name).read_bytes() == code for name, code in files.items())
