"""The results so far of a long run, on disk: a run that ends in any way is gone on with from here.

JSON lines: a header, which says what the results are of, then `[label, score, error, model version]` for each row, in
the rows' order. Lines are only ever appended, so after a crash all but the last are whole.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from client.errors import InputError


@dataclass(frozen=True)
class Result:
    """Of one row: label and score, or an error."""

    label: str | None
    score: float | None
    error: str | None
    model_version: str | None


class Journal:
    """Held by one process at a time."""

    def __init__(self, path: Path, header: Mapping[str, object]) -> None:
        """Open it, or begin it.

        Raises:
            InputError: another process holds it, or it has another header.
        """
        self.path = path
        self.rows = 0
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read(header)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, results: Iterable[Result]) -> None:
        lines = [json.dumps(astuple(result)) + "\n" for result in results]
        self._write("".join(lines))
        self.rows += len(lines)

    def results(self) -> Iterator[Result]:
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield Result(*json.loads(line))

    def remove(self) -> None:
        self.path.unlink()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is being written by another run. Let it end, or stop it.") from None

    def _read(self, header: Mapping[str, object]) -> None:
        self._file.seek(0)
        first = b""
        end = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b"\n"):
                break
            first = first or line
            end += len(line)
            self.rows = number
        self._file.truncate(end)
        if not first:
            self._write(json.dumps(header) + "\n")
        elif (found := json.loads(first)) != header:
            changed = [name for name, value in header.items() if found.get(name) != value]
            changes = ", ".join(f"{name} was {found.get(name)}, is {header[name]}" for name in changed)
            raise InputError(
                f"{self.path} has {self.rows:,} results of another run ({changes}). Start it again as it was, or "
                "delete that file to begin anew."
            )

    def _write(self, text: str) -> None:
        self._file.write(text.encode())
        self._file.flush()


def sync(path: Path) -> None:
    """Have a file's content on the disk, not only on its way there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
