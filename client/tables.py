"""Files with a text in each row: CSV, TSV, JSON lines, Parquet. They are read row by row, so they may be of any size.

A table's copy has the same rows and columns, and the columns of the results after them (`client.columns`).
"""

import codecs
import csv
import gzip
import io
import json
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO, cast

from client.columns import Added, Cell
from client.errors import InputError
from client.journal import Result

DEFAULT_ENCODING = "utf-8"
MAX_CELL_CHARACTERS = 2**31 - 1
PARQUET_BATCH_ROWS = 8192
LABEL_SEPARATOR = ";"
"""Between the labels of one text in a CSV file, as fastai's `ColReader(label_delim=";")` reads them."""

_GZIP_LEVEL = 6
_GZIP_START = b"\x1f\x8b"
_BLOCK_BYTES = 65_536
_OTHER_DELIMITERS = {";": "';'", "\t": "tab", ",": ",", "|": "'|'"}

_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
_SHOWN = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "parquet": "Parquet"}
FORMATS = tuple(_SHOWN)


@dataclass(frozen=True)
class Format:
    """How a file is read. Its copy is written in the same way."""

    kind: str
    """One of `FORMATS`."""

    delimiter: str
    """Of CSV and TSV."""

    encoding: str
    """Of all but Parquet."""

    quotes: bool = True
    """Whether quotes stand around a cell of CSV and TSV that has a delimiter or a line end in it."""


@dataclass(frozen=True)
class Source:
    """A file to read."""

    path: Path
    name: str
    """For messages: the path, or `standard input`."""

    format: Format
    text_column: str


class Table(Protocol):
    names: Sequence[str]
    """Of its columns; those of JSON lines are known after `check`."""

    def check(self) -> int:
        """Read everything once; returns the number of rows.

        Raises:
            InputError: the file has an error that would stop a run later.
        """

    def texts(self) -> Iterator[str]:
        """The text of each row; the empty text for a row without one."""

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        """Write a copy with the columns that are added, and a result for each row."""


def format_of(
    name: str,
    kind: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    quotes: bool = True,
) -> Format:
    """The format that a file's name and the options say.

    Raises:
        InputError: neither says one, or an option does not go with the format.
    """
    kind = kind or _kind(name)
    if kind is None:
        raise InputError(
            f"{name} is none of {', '.join(_ENDINGS)}, by its name; all but .parquet may have .gz after it. "
            "Name its format by --format, or classify a file with one text per line by `sentiment predict --file`."
        )
    if kind == "parquet" and _ending(name).endswith(".gz"):
        raise InputError(f"{name}: a Parquet file is compressed within. Decompress it first: gunzip.")
    if kind == "parquet" and encoding is not None:
        raise InputError(f"--encoding goes with CSV, TSV and JSON lines; {name} is Parquet.")
    if delimiter is not None and kind not in ("csv", "tsv"):
        raise InputError(f"--delimiter goes with CSV and TSV; {name} is {_SHOWN[kind]}.")
    if not quotes and kind not in ("csv", "tsv"):
        raise InputError(f"--no-quotes goes with CSV and TSV; {name} is {_SHOWN[kind]}.")
    return Format(kind, delimiter or ("\t" if kind == "tsv" else ","), encoding or DEFAULT_ENCODING, quotes)


def check_copy(source: Source, name: str) -> bool:
    """Check the name of a copy, which has the format of the file; returns whether it is compressed by gzip.

    Raises:
        InputError: its ending says another format.
    """
    kind, own = _kind(name), _kind(source.name) or source.format.kind
    compressed = _ending(name).endswith(".gz")
    if (kind is not None and kind != own) or (compressed and own == "parquet"):
        raise InputError(f"The output has the input's format, {_SHOWN[own]}: {name} is the name of another.")
    return compressed


def copy_name(name: str) -> str:
    """The name of the copy of a file: `tweets.csv.gz` becomes `tweets.scored.csv.gz`."""
    ending = _ending(name)
    return f"{name[: len(name) - len(ending)]}.scored{name[len(name) - len(ending) :]}"


def _kind(name: str) -> str | None:
    return _ENDINGS.get(_ending(name).removesuffix(".gz"))


def _ending(name: str) -> str:
    """A file name's ending in lower case, with the one before it if it is `.gz`."""
    path = Path(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def open_table(source: Source) -> Table:
    """
    Raises:
        InputError: no such file, it is not regular, or no package to read it.
    """
    if not source.path.exists():
        raise InputError(f"No file at {source.name}.")
    if not source.path.is_file():  # it is read more than once, so a pipe will not do either
        raise InputError(f"{source.name} is not a regular file. `-` reads standard input.")
    return _KINDS[source.format.kind](source)


class _Text:
    """What is read as text: CSV and JSON lines."""

    names: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source
        self._encoding = source.format.encoding
        if self._encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            self._encoding = "utf-8-sig"
        with source.path.open("rb") as file:
            self._compressed = file.read(len(_GZIP_START)) == _GZIP_START

    @contextmanager
    def _open(self, newline: str) -> Iterator[TextIO]:
        """The text. What the bytes cannot be read as is an error that says where."""
        with self._bytes() as raw, io.TextIOWrapper(raw, encoding=self._encoding, newline=newline) as file:
            try:
                yield file
            except UnicodeError as error:
                if isinstance(error, UnicodeEncodeError):
                    raise
                line = self._line_that_cannot_be_decoded()
                reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
                raise InputError(
                    f"{self._source.name}, line {line}, is not {self._source.format.encoding.upper()}: {reason}. "
                    f"{self._other_encoding()}"
                ) from error

    @contextmanager
    def _bytes(self) -> Iterator[BinaryIO]:
        """The bytes that are decoded."""
        if not self._compressed:
            with self._source.path.open("rb") as file:
                yield file
            return
        try:
            with gzip.open(self._source.path) as file:
                yield cast(BinaryIO, file)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{self._source.name} is not whole gzip: {error}.") from error

    def _line_that_cannot_be_decoded(self) -> int:
        decoder = _decoder(self._encoding)
        line = 1
        with self._bytes() as file:
            while block := file.read(_BLOCK_BYTES):
                before = decoder.getstate()
                try:
                    line += decoder.decode(block).count("\n")
                except UnicodeError:
                    decoder = _decoder(self._encoding)
                    decoder.setstate(before)
                    for byte in block:
                        try:
                            line += decoder.decode(bytes([byte])).count("\n")
                        except UnicodeError:
                            break
                    break
        return line

    def _other_encoding(self) -> str:
        with self._bytes() as file:
            start = file.read(2)
        if start in (b"\xff\xfe", b"\xfe\xff") and self._encoding != "utf-16":
            return "It begins as UTF-16 does: --encoding utf-16."
        return "Name its encoding, for example --encoding cp1252 for a file of Windows programs."

    @contextmanager
    def _create(self, destination: Path, newline: str, *, compress: bool) -> Iterator[TextIO]:
        encoding = self._encoding
        if encoding == "utf-8-sig":
            with self._bytes() as start:
                encoding = "utf-8-sig" if start.read(3) == b"\xef\xbb\xbf" else "utf-8"
        with destination.open("wb") as raw:
            # Without a time and a name in it, so that the same results are the same bytes.
            packed = gzip.GzipFile("", "wb", _GZIP_LEVEL, raw, 0) if compress else None
            with io.TextIOWrapper(packed or raw, encoding=encoding, newline=newline) as copy:
                try:
                    yield copy
                except UnicodeEncodeError as error:
                    character = error.object[error.start]
                    raise InputError(
                        f"The results have the character {character!r}, which {encoding} does not have. "
                        f"Convert {self._source.name} to UTF-8 first: iconv."
                    ) from error


def _decoder(encoding: str) -> io.IncrementalNewlineDecoder:
    """With each kind of line end as a line feed."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)


class CsvTable(_Text):
    """With a header, as RFC 4180 has it, and any delimiter. A blank line is no row."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._dialect: dict[str, Any] = {"delimiter": source.format.delimiter}
        if not source.format.quotes:
            self._dialect |= {"quoting": csv.QUOTE_NONE, "quotechar": None}

    def check(self) -> int:
        with self._open(newline="") as file:
            self.names = next(self._rows(file), [])
            if self._source.text_column not in self.names and (hint := self._other_delimiter()):
                raise InputError(hint)
            check_text_column(self._source, self.names)
        return sum(1 for _ in self.texts())

    def texts(self) -> Iterator[str]:
        with self._open(newline="") as file:
            rows = self._rows(file)
            column = next(rows, []).index(self._source.text_column)
            for row in rows:
                yield row[column]

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        with self._open(newline="") as file:
            start = file.readline()
        end = "\r\n" if start.endswith("\r\n") else "\n"
        with self._open(newline="") as file, self._create(destination, "", compress=compress) as copy:
            rows = self._rows(file)
            writer = csv.writer(_LineEnds(copy, end), **self._dialect, lineterminator="\r\n")
            writer.writerow([*next(rows), *(self._cell(column.name) for column in added.columns)])
            for row, result in zip(rows, results, strict=True):
                writer.writerow([*row, *map(self._cell, added.cells(result))])

    def _rows(self, file: TextIO) -> Iterator[list[str]]:
        """The header, then the rows, all of the header's length."""
        reader = csv.reader(file, strict=True, **self._dialect)
        header: list[str] | None = None
        line = 1
        try:
            for row in reader:
                if row:
                    header = header or row
                    if len(row) != len(header):
                        what = f"has {len(row)} cells where the header has {len(header)}"
                        raise InputError(f"{self._source.name}, line {line}, {what}.")
                    yield row
                line = reader.line_num + 1
        except csv.Error as error:
            kind = _SHOWN[self._source.format.kind]
            reason = str(error).replace("\t", "\\t")
            hint = (
                " If quotes are characters like others in this file: --no-quotes." if self._source.format.quotes else ""
            )
            until = f", read until line {reader.line_num}" if reader.line_num > line else ""
            raise InputError(
                f"{self._source.name}, line {line}, is not valid {kind}: {reason}{until}.{hint}"
            ) from error

    def _cell(self, cell: Cell) -> Cell:
        """A cell of the results, as the file can hold it.

        Raises:
            InputError: a label has the character in it that stands between labels.
        """
        if isinstance(cell, list):
            for label in cell:
                if LABEL_SEPARATOR in label:
                    raise InputError(
                        f"The label {label!r} has a {LABEL_SEPARATOR!r}, which stands between the labels of a CSV "
                        "file. Score JSON lines or Parquet instead."
                    )
            cell = LABEL_SEPARATOR.join(cell)
        if isinstance(cell, str) and not self._source.format.quotes:
            # Without quotes, a cell cannot have these characters.
            return cell.translate(dict.fromkeys(map(ord, f"\r\n{self._source.format.delimiter}"), " "))
        return cell

    def _other_delimiter(self) -> str | None:
        with self._open(newline="") as file:
            line = file.readline().rstrip("\r\n")
        for delimiter, shown in _OTHER_DELIMITERS.items():
            if self._source.text_column in next(csv.reader([line], delimiter=delimiter), []):
                return (
                    f"{self._source.name} has no column {self._source.text_column!r} as it is read. "
                    f"With --delimiter {shown} it has one."
                )
        return None


class _LineEnds:
    """Rows with the input's line ends. The writer itself has CRLF: then it quotes cells with either of the two."""

    def __init__(self, file: TextIO, end: str) -> None:
        self._file = file
        self._end = end

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + self._end)


class JsonLinesTable(_Text):
    """An object a line. A blank line is no row. The copy has each line as it was, its end apart."""

    def check(self) -> int:
        names: dict[str, None] = {}
        rows = 0
        for _, row in self._rows():
            names |= dict.fromkeys(row)
            rows += 1
        self.names = list(names)
        if rows:
            check_text_column(self._source, self.names)
        return rows

    def texts(self) -> Iterator[str]:
        for _, row in self._rows():
            yield row.get(self._source.text_column) or ""

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        names = [column.name for column in added.columns]
        with self._create(destination, "\n", compress=compress) as copy:
            for (line, row), result in zip(self._rows(), results, strict=True):
                values = json.dumps(dict(zip(names, added.cells(result), strict=True)), ensure_ascii=False)
                copy.write(line.removesuffix("}").rstrip() + (", " if row else "") + values[1:] + "\n")

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Lines, and the objects in them."""
        column = self._source.text_column
        with self._open(newline="\n") as file:
            number = 0
            try:
                for number, line in enumerate(file, start=1):  # noqa: B007  # for the errors below
                    if not line.isspace():
                        row = json.loads(line)
                        text = row.get(column)
                        if text is not None and not isinstance(text, str):
                            raise TypeError(f"{column!r} is not a string")
                        yield line.strip(), row
            except UnicodeError:
                raise
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                expected = f"a JSON object with a string in {column!r}"
                raise InputError(f"{self._source.name}, line {number}, is not {expected}: {error}.") from error


class ParquetTable:
    """With a column of strings. The copy has the same schema, and the fields of the results."""

    def __init__(self, source: Source) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            install = f"{shlex.quote(sys.executable)} -m pip install pyarrow"
            raise InputError(
                f"Reading {source.name} needs the package pyarrow, which is not installed: {install}"
            ) from error
        self._arrow = pyarrow
        self._source = source
        try:
            with self._open() as file:
                self._schema = file.schema_arrow
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise InputError(f"{source.name} is not Parquet: {error}.") from error
        self.names: Sequence[str] = self._schema.names

    def check(self) -> int:
        check_text_column(self._source, self.names)
        kind = self._schema.field(self._source.text_column).type
        value = kind.value_type if self._arrow.types.is_dictionary(kind) else kind
        if not (self._arrow.types.is_string(value) or self._arrow.types.is_large_string(value)):
            column = self._source.text_column
            raise InputError(f"{self._source.name}: the column {column!r} is {kind}; expected strings.")
        with self._open() as file:
            return int(file.metadata.num_rows)

    def texts(self) -> Iterator[str]:
        with self._reading(), self._open() as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[self._source.text_column]):
                for text in batch.column(0).to_pylist():
                    yield text or ""

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        del compress  # Parquet compresses by itself
        string = self._arrow.string()
        types = {"text": string, "number": self._arrow.float64(), "texts": self._arrow.list_(string)}
        kinds = [types[column.kind] for column in added.columns]
        schema = self._schema
        for column, kind in zip(added.columns, kinds, strict=True):
            schema = schema.append(self._arrow.field(column.name, kind))
        with self._reading(), self._open() as file, self._arrow.parquet.ParquetWriter(destination, schema) as writer:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS):
                rows = [added.cells(row) for row in islice(results, batch.num_rows)]
                arrays = [
                    self._arrow.array(values, kind) for values, kind in zip(zip(*rows, strict=True), kinds, strict=True)
                ]
                writer.write_batch(self._arrow.RecordBatch.from_arrays([*batch.columns, *arrays], schema=schema))

    def _open(self) -> Any:
        return self._arrow.parquet.ParquetFile(self._source.path)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Parquet's metadata may be whole, and its pages not."""
        try:
            yield
        except (self._arrow.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the content's
                raise
            raise InputError(f"{self._source.name} cannot be read to its end: {error}.") from error


_KINDS: Mapping[str, Callable[[Source], Table]] = {
    "csv": CsvTable,
    "tsv": CsvTable,
    "jsonl": JsonLinesTable,
    "parquet": ParquetTable,
}


def check_text_column(source: Source, names: Sequence[str]) -> None:
    """
    Raises:
        InputError: the column of texts is missing, or there is more than one.
    """
    column = source.text_column
    if column not in names:
        has = ", ".join(names) or "none"
        raise InputError(f"{source.name} has no column {column!r}; it has {has}. Name one by --text-column.")
    if list(names).count(column) > 1:
        raise InputError(f"{source.name} has more than one column {column!r}. Rename or drop the others first.")


def check_added(source: Source, names: Sequence[str], added: Added) -> None:
    """
    Raises:
        InputError: a column of the results is in the file already.
    """
    if taken := [column.name for column in added.columns if column.name in names]:
        raise InputError(
            f"{source.name} has a column {taken[0]!r} already, which the results need. Name the results' columns "
            "otherwise, for example by --prefix predicted_"
        )
