"""Reads and writes the files of a run.

A file is written whole or not at all: a killed process, a full disk or a power failure leaves the previous file, never
a part of one. If a file is damaged otherwise, such as by an incomplete copy, the error says what to remove.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from training.errors import TrainingError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to. At the end, the file at this path replaces the one at `path`.

    Raises:
        TrainingError: PyTorch could not write the file. An `OSError` of another writer has the name of the file.
    """
    # `torch.save` writes the stem into the file, so that another stem would change the file's hash.
    partial = path.with_suffix(".partial")
    try:
        yield partial
        # Otherwise a power failure after the renaming could leave an empty file.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except RuntimeError as error:
        # PyTorch's writer reports a full disk by an error of its own.
        raise TrainingError(f"{path} cannot be written. Is the disk full? ({error})") from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8. In JSON, the bytes of a file name that is not UTF-8 become valid escapes."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, indent: int = 1) -> None:
    """Write a value as JSON."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def reading(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Report damaged content of a file, which the body reads, in one line.

    Args:
        path: the file.
        remedy: what to do; None: remove the file's folder.

    Raises:
        TrainingError: the file is damaged. If it cannot be opened, the `OSError` is raised as it is.
    """
    try:
        yield
    except TrainingError:
        raise
    except Exception as error:  # a damaged pickle can raise any error
        if isinstance(error, OSError) and error.filename is not None:
            raise
        # PyTorch's messages have further lines, with advice for the developer.
        reason = re.split(r"[.:]?\s*\n|\.\s", f"{type(error).__name__}: {error}", maxsplit=1)[0].rstrip(": ")
        remedy = remedy or f"remove {path.parent}, and run the command that made it again"
        raise TrainingError(f"{path} is damaged ({reason}): {remedy}.") from error


def read_json(path: Path, form: Mapping[str, type | UnionType], remedy: str | None = None) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        form: the keys that the object must have, with the types of their values.
        remedy: see `reading`.

    Raises:
        TrainingError: the file is damaged, or has another form.
    """
    with reading(path, remedy):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not has_form(value, form):
            raise ValueError(f"expected a JSON object with {', '.join(form)}")
        return dict(value)


def has_form(value: object, form: Mapping[str, type | UnionType]) -> bool:
    """Return whether a value is a JSON object that has these keys, with values of these types."""
    return isinstance(value, dict) and all(name in value and isinstance(value[name], form[name]) for name in form)
