"""The results so far of a long run, on disk. A later run continues from them, however the first one ended.

JSON lines: a header, which says what the results are of, then an object for each row, in the rows' order: the fields of
its prediction, or `error`. Lines are only ever appended, so after a crash all but the last are whole. A journal without
results is worth nothing: it is removed when its run ends, and replaced if one is found.
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
    """Of one row: a prediction, or an error."""

    prediction: Prediction | None
    error: str | None


class Journal:
    """Held by one process at a time."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Open the journal, or begin it.

        Raises:
            InputError: another process holds it, it has results of another run, or it is not a journal.
        """
        self.path = path
        self.rows = 0
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a regular file; this run needs a file of that name for its results.")
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
        # Before it is closed: while it is locked, no other run has begun to write to it.
        if error is not None and not self.rows and self.path.exists():
            self.path.unlink()
        self._file.close()

    def append(self, results: Iterable[Result]) -> None:
        lines = [_line(result) for result in results]
        self._write("".join(lines))
        self.rows += len(lines)

    def results(self) -> Iterator[Result]:
        """
        Raises:
            InputError: a line is not a result.
        """
        with self.path.open("rb") as file:
            next(file)
            for number, line in enumerate(file, start=2):
                yield self._result(line, number)

    def remove(self) -> None:
        self.path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # That run may have ended, and removed its journal, since this one opened it.
            held = self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except BlockingIOError:
            held = False
        if not held:
            raise InputError(f"{self.path} is being written by another run. Let it end, or stop it.")

    def _result(self, line: bytes, number: int) -> Result:
        try:
            values = json.loads(line)
            if values.keys() == {"error"}:
                return Result(None, values["error"])
            labels = values.get("labels")
            prediction = Prediction(**values | {"labels": None if labels is None else tuple(labels)})
            if prediction == Prediction():
                raise ValueError("nothing is predicted")
            return Result(prediction, None)
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{self.path}, line {number}, is not a result. Delete that file to begin anew.") from None

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
        found = _header(first)
        torn = not first and (not line or line.startswith(b"{"))
        if not torn and (found is None or not found.keys() & header.keys()):
            raise InputError(f"{self.path} is not a journal of this program. Rename it, or name another output.")
        self._file.truncate(end)
        if not self.rows:
            self._file.truncate(0)
            self._write(json.dumps(header) + "\n")
        elif found is not None and found != header:
            changed = [name for name, value in header.items() if found.get(name) != value]
            changes = "; ".join(f"{name} was {found.get(name)}, is {header[name]}" for name in changed)
            raise InputError(
                f"{self.path} has {self.rows:,} results of another run ({changes}). Run that command again, or delete "
                "that file to begin anew."
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
    """A journal's first line; None if it is not one."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def sync(path: Path) -> None:
    """Have a file's content on the disk, not only on its way there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
