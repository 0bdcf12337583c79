"""Writes a file whole or not at all: a killed process or a full disk leaves the previous file, never a part of one."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.errors import TrainingError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to. At the end, the file at this path replaces the one at `path`.

    Raises:
        TrainingError: PyTorch could not write the file. An `OSError` of another writer is raised as it is.
    """
    # `torch.save` writes the stem into the file, so that another stem would change the file's hash.
    partial = path.with_suffix(".partial")
    try:
        yield partial
        os.replace(partial, path)
    except RuntimeError as error:
        # PyTorch's writer reports a full disk by an error of its own.
        raise TrainingError(f"{path} cannot be written. Is the disk full? ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. In JSON, the bytes of a file name that is not UTF-8 become valid escapes."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write a value as JSON."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
