"""Files with a text in each row: CSV, JSON lines and Parquet. They are read row by row, so they may be of any size.

A table's copy has the same rows and columns, and after them the columns `label`, `score` and `error`.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from client.errors import InputError
from client.journal import Result

COLUMNS = ("label", "score", "error")
MAX_CELL_CHARACTERS = 2**31 - 1
PARQUET_BATCH_ROWS = 8192


class Table(Protocol):
    def check(self) -> int:
        """Read everything once; returns the number of rows.

        Raises:
            InputError: the file has an error that would stop a run later.
        """

    def texts(self) -> Iterator[str]:
        """The text of each row; the empty text for a row without one."""

    def write(self, destination: Path, results: Iterator[Result]) -> None:
        """Write a copy with the results, one for each row."""


def open_table(path: Path, text_column: str) -> Table:
    """
    Raises:
        InputError: no such file, none of the three kinds, or no package to read it.
    """
    if not path.exists():
        raise InputError(f"No file at {path}.")
    if path.suffix not in _KINDS:
        raise InputError(f"{path} is none of {', '.join(_KINDS)}, by its name.")
    if not path.is_file():  # it is read more than once, so a pipe will not do either
        raise InputError(f"{path} is not a regular file.")
    return _KINDS[path.suffix](path, text_column)


class CsvTable:
    """With a header, in UTF-8, as RFC 4180 has it. A blank line is no row."""

    def __init__(self, path: Path, text_column: str) -> None:
        self._path = path
        self._text_column = text_column
        csv.field_size_limit(MAX_CELL_CHARACTERS)

    def check(self) -> int:
        with self._open() as file:
            _check_names(self._path, next(self._rows(file), []), self._text_column)
        return sum(1 for _ in self.texts())

    def texts(self) -> Iterator[str]:
        with self._open() as file:
            rows = self._rows(file)
            header = next(rows, [])
            column = header.index(self._text_column)
            for row in rows:
                yield row[column]

    def write(self, destination: Path, results: Iterator[Result]) -> None:
        with self._path.open("rb") as raw:
            start = raw.readline()
        encoding = "utf-8-sig" if start.startswith(b"\xef\xbb\xbf") else "utf-8"
        end = "\r\n" if start.endswith(b"\r\n") else "\n"
        with self._open() as file, destination.open("w", encoding=encoding, newline="") as copy:
            rows = self._rows(file)
            writer = csv.writer(_LineEnds(copy, end), lineterminator="\r\n")
            writer.writerow([*next(rows), *COLUMNS])
            for row, result in zip(rows, results, strict=True):
                writer.writerow([*row, result.label, result.score, result.error])

    def _open(self) -> TextIO:
        return self._path.open(encoding="utf-8-sig", newline="")

    def _rows(self, file: TextIO) -> Iterator[list[str]]:
        """The header, then the rows, all of the header's length."""
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        try:
            for row in filter(None, reader):
                header = header or row
                if len(row) != len(header):
                    what = f"has {len(row)} cells where the header has {len(header)}"
                    raise InputError(f"{self._path}, line {reader.line_num}, {what}.")
                yield row
        except csv.Error as error:
            raise InputError(f"{self._path}, line {reader.line_num}, is not valid CSV: {error}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self._path} is not UTF-8, after line {reader.line_num}: {error.reason}.") from error


class _LineEnds:
    """Rows with the input's line ends. The writer itself has CRLF: then it quotes cells with either of the two."""

    def __init__(self, file: TextIO, end: str) -> None:
        self._file = file
        self._end = end

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + self._end)


class JsonLinesTable:
    """An object a line, in UTF-8. A blank line is no row. The copy has each line as it was, its end apart."""

    def __init__(self, path: Path, text_column: str) -> None:
        self._path = path
        self._text_column = text_column

    def check(self) -> int:
        names: dict[str, None] = {}
        rows = 0
        for _, row in self._rows():
            names |= dict.fromkeys(row)
            rows += 1
        if rows:
            _check_names(self._path, list(names), self._text_column)
        return rows

    def texts(self) -> Iterator[str]:
        for _, row in self._rows():
            yield row.get(self._text_column) or ""

    def write(self, destination: Path, results: Iterator[Result]) -> None:
        with destination.open("w", encoding="utf-8", newline="\n") as copy:
            for (line, row), result in zip(self._rows(), results, strict=True):
                values = (result.label, result.score, result.error)
                added = json.dumps(dict(zip(COLUMNS, values, strict=True)), ensure_ascii=False)
                copy.write(line.removesuffix("}").rstrip() + (", " if row else "") + added[1:] + "\n")

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines, and the objects in them."""
        with self._path.open(encoding="utf-8-sig", newline="\n") as file:
            number = 0
            try:
                for number, line in enumerate(file, start=1):  # noqa: B007  # for the errors below
                    if not line.isspace():
                        row = json.loads(line)
                        text = row.get(self._text_column)
                        if text is not None and not isinstance(text, str):
                            raise TypeError(f"{self._text_column!r} is not a string")
                        yield line.strip(), row
            except UnicodeDecodeError as error:
                raise InputError(f"{self._path} is not UTF-8, after line {number}: {error.reason}.") from error
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                expected = f"a JSON object with a string in {self._text_column!r}"
                raise InputError(f"{self._path}, line {number}, is not {expected}: {error}.") from error


class ParquetTable:
    """With a column of strings. The copy has the same schema, three fields longer."""

    def __init__(self, path: Path, text_column: str) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise InputError(f"Reading {path} needs a package that is not installed: pip install pyarrow") from error
        self._arrow = pyarrow
        self._path = path
        self._text_column = text_column
        try:
            with self._open() as file:
                self._schema = file.schema_arrow
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not Parquet: {error}.") from error

    def check(self) -> int:
        _check_names(self._path, self._schema.names, self._text_column)
        kind = self._schema.field(self._text_column).type
        value = kind.value_type if self._arrow.types.is_dictionary(kind) else kind
        if not (self._arrow.types.is_string(value) or self._arrow.types.is_large_string(value)):
            raise InputError(f"{self._path}: the column {self._text_column!r} is {kind}; expected strings.")
        with self._open() as file:
            return int(file.metadata.num_rows)

    def texts(self) -> Iterator[str]:
        with self._reading(), self._open() as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[self._text_column]):
                for text in batch.column(0).to_pylist():
                    yield text or ""

    def write(self, destination: Path, results: Iterator[Result]) -> None:
        kinds = (self._arrow.string(), self._arrow.float64(), self._arrow.string())
        schema = self._schema
        for name, kind in zip(COLUMNS, kinds, strict=True):
            schema = schema.append(self._arrow.field(name, kind))
        with self._reading(), self._open() as file, self._arrow.parquet.ParquetWriter(destination, schema) as writer:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                rows = [(row.label, row.score, row.error) for row in islice(results, batch.num_rows)]
                added = [
                    self._arrow.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)
                ]
                writer.write_batch(self._arrow.RecordBatch.from_arrays([*batch.columns, *added], schema=schema))

    def _open(self) -> Any:
        return self._arrow.parquet.ParquetFile(self._path)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Parquet's metadata may be whole, and its pages not."""
        try:
            yield
        except (self._arrow.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the content's
                raise
            raise InputError(f"{self._path} cannot be read to its end: {error}.") from error


_KINDS: Mapping[str, Callable[[Path, str], Table]] = {
    ".csv": CsvTable,
    ".jsonl": JsonLinesTable,
    ".parquet": ParquetTable,
}


def _check_names(path: Path, names: list[str], text_column: str) -> None:
    if text_column not in names:
        raise InputError(
            f"{path} has no column {text_column!r}; it has {', '.join(names) or 'none'}. Name one by --text-column."
        )
    if names.count(text_column) > 1:
        raise InputError(f"{path} has more than one column {text_column!r}. Rename or drop the others first.")
    if taken := [name for name in COLUMNS if name in names]:
        raise InputError(f"{path} has a column {taken[0]!r} already, which the results need. Rename or drop it first.")
