"""Journal of a scoring run: the results so far, on disk. A later run continues from them if the first is interrupted.

The format is JSON lines. The first line is a header that identifies the run. Then comes one object for each row, in the
rows' order, with the fields of the row's prediction or with `error`. Lines are only appended, so a crash can damage the
last line alone. A journal without results is removed when its run ends, or replaced if the run was killed.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sentiment.errors import InputError
from sentiment.inference import Prediction


@dataclass(frozen=True)
class Result:
    """The result of one row: a prediction or an error."""

    prediction: Prediction | None
    error: str | None


class Journal:
    """A journal file, locked by one process at a time."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Open the journal, or create it.

        Args:
            path: the journal's file.
            header: what identifies the run: input, server and options.

        Raises:
            InputError: another process holds the lock, the journal belongs to another run, or the file is not a
                journal.
        """
        self.path = path
        self.rows = 0
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file. The run stores its results in a file of this name.")
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file is removed before it is closed: while it is locked, no other run can write to it.
        if error is not None and not self.rows and self.path.exists():
            self.path.unlink()
        self._file.close()

    def append(self, results: Iterable[Result]) -> None:
        """Write the results of the next rows."""
        lines = [_line(result) for result in results]
        self._write("".join(lines))
        self.rows += len(lines)

    def results(self) -> Iterator[Result]:
        """All results, in the rows' order.

        Raises:
            InputError: a line is not a result.
        """
        with self.path.open("rb") as file:
            next(file)
            for number, line in enumerate(file, start=2):
                yield self._result(line, number)

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another run may have ended and removed this file.
            locked = self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except BlockingIOError:
            locked = False
        if not locked:
            raise InputError(f"{self.path} is locked by another run. Wait until that run ends, or stop it.")

    def _result(self, line: bytes, number: int) -> Result:
        try:
            values = json.loads(line)
            if values.keys() == {"error"}:
                return Result(None, values["error"])
            labels = values.get("labels")
            prediction = Prediction(**values | {"labels": None if labels is None else tuple(labels)})
            if prediction == Prediction():
                raise ValueError("the prediction is empty")
            return Result(prediction, None)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{self.path}, line {number}, is not a result. Delete this file to start again.") from None

    def _read(self, header: Mapping[str, object]) -> None:
        self._file.seek(0)
        first = line = b""
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            first = first or line
            end += len(line)
            self.rows = number
        existing = _header(first)
        torn = not first and (not line or line.startswith(b"{"))
        if not torn and (existing is None or not existing.keys() & header.keys()):
            raise InputError(f"{self.path} is not a journal of this program. Rename it, or choose another output.")
        self._file.truncate(end)
        if not self.rows:
            self._file.truncate(0)
            self._write(json.dumps(header) + "\n")
        elif existing is not None and existing != header:
            changed = [name for name, value in header.items() if existing.get(name) != value]
            changes = "; ".join(f"{name} was {existing.get(name)}, is {header[name]}" for name in changed)
            raise InputError(
                f"{self.path} has {self.rows:,} results of another run ({changes}). Run that command again, or delete "
                "this file to start again."
            )

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()


def _line(result: Result) -> str:
    if result.prediction is None:
        return json.dumps({"error": result.error}) + "\n"
    fields = vars(result.prediction)
    return json.dumps({name: value for name, value in fields.items() if value is not None and value != {}}) + "\n"


def _header(line: bytes) -> dict[str, object] | None:
    """The header in a journal's first line; None if the line is not a header."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def sync(path: Path) -> None:
    """Write a file's buffered content to the disk (fsync)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
