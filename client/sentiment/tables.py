"""Tables with a text in each row: CSV, TSV, JSON lines, Parquet. They are read row by row, so they may be of any size.
All but Parquet can be read from a stream, too.

A table's copy has the same rows and columns, and the columns of the results after them (`sentiment.columns`).
"""

import codecs
import csv
import gzip
import io
import json
import select
import shlex
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Protocol, TextIO

from sentiment.columns import Added, Cell
from sentiment.errors import InputError
from sentiment.journal import Result

DEFAULT_ENCODING = "utf-8"
MAX_CELL_CHARACTERS = 2**31 - 1
PARQUET_BATCH_ROWS = 8192
LABEL_SEPARATOR = ";"
"""Between the labels of one text in a CSV file, as fastai's `ColReader(label_delim=";")` reads them."""

_GZIP_LEVEL = 6
_GZIP_START = b"\x1f\x8b"
_UTF_8_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
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
    """A file or a stream to read."""

    path: Path
    name: str
    """For messages: the path, or `standard input`."""

    format: Format
    text_column: str
    stream: IO[bytes] | None = None
    """Read instead of the path, and only once."""


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
    table: Table = TEXT_TABLES.get(source.format.kind, ParquetTable)(source)
    return table


class TextTable:
    """A table that is read as text: CSV and JSON lines. If its source is a stream, it is read once."""

    names: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source
        self._encoding = source.format.encoding
        if self._encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            self._encoding = "utf-8-sig"
        self._bytes: _Decodable | None = None

    def check(self) -> int:
        """See `Table`."""
        raise NotImplementedError

    def rows(self) -> Iterator[tuple[Any, str]]:
        """Each row, and the text in it; the empty text for a row without one.

        Raises:
            InputError: the next row cannot be read.
        """
        raise NotImplementedError

    def writer(self, copy: "Encoded", added: Added) -> Callable[[Any, Result], None]:
        """Write the header of a copy, if the format has one; returns the function that writes a row with its result."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        for _, text in self.rows():
            yield text

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        with destination.open("wb") as file, self.encoded(file, compress=compress) as copy:
            write = self.writer(copy, added)
            for (row, _), result in zip(self.rows(), results, strict=True):
                write(row, result)

    @contextmanager
    def encoded(self, file: IO[bytes], *, compress: bool) -> Iterator["Encoded"]:
        """A file for the copy, in the encoding of what has been read. It stays open.

        Raises:
            InputError: the encoding lacks a character of the results.
        """
        encoding = self._encoding
        if encoding == "utf-8-sig" and not (self._bytes and self._bytes.start == _UTF_8_MARK):
            encoding = "utf-8"
        # Without a time and a name in it, so that the same results are the same bytes.
        packed = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, 0) if compress else None
        try:
            yield Encoded(packed or file, encoding)
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise InputError(
                f"The results have the character {character!r}, which {encoding} does not have. "
                f"Convert {self._source.name} to UTF-8 first: iconv."
            ) from error
        finally:
            if packed is not None:
                packed.close()

    @contextmanager
    def _open(self, newline: str) -> Iterator[TextIO]:
        """The text. Bytes that cannot be decoded are an error that names their line."""
        stream = self._source.stream
        with self._source.path.open("rb") if stream is None else nullcontext(stream) as file:
            raw = _Raw(file)
            packed: Any = raw  # of what `gzip` asks of a file, reading does
            read = gzip.GzipFile(fileobj=packed, mode="rb").read1 if raw.start == _GZIP_START else raw.read
            self._bytes = _Decodable(read, self._source, self._encoding)
            buffer: Any = self._bytes
            try:
                yield io.TextIOWrapper(buffer, self._encoding, newline=newline)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{self._source.name} is not whole gzip: {error}.") from error


class CsvTable(TextTable):
    """With a header, as RFC 4180 has it, and any delimiter. A blank line is no row."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._dialect: dict[str, Any] = {"delimiter": source.format.delimiter}
        if not source.format.quotes:
            self._dialect |= {"quoting": csv.QUOTE_NONE, "quotechar": None}
        self._line_end = "\n"

    def check(self) -> int:
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[tuple[Any, str]]:
        column = self._source.text_column
        with self._open(newline="") as file:
            start = file.readline()
            self._line_end = "\r\n" if start.endswith("\r\n") else "\n"
            rows = self._cells(chain([start], file))
            self.names = next(rows, [])
            if column not in self.names and (hint := self._other_delimiter(start)):
                raise InputError(hint)
            check_text_column(self._source, self.names)
            index = self.names.index(column)
            for row in rows:
                yield row, row[index]

    def writer(self, copy: "Encoded", added: Added) -> Callable[[Any, Result], None]:
        writer = csv.writer(_LineEnds(copy, self._line_end), **self._dialect, lineterminator="\r\n")
        writer.writerow([*self.names, *(self._cell(column.name) for column in added.columns)])

        def write(row: list[str], result: Result) -> None:
            writer.writerow([*row, *map(self._cell, added.cells(result))])

        return write

    def _cells(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The header, then the rows, all of the header's length."""
        reader = csv.reader(lines, strict=True, **self._dialect)
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

    def _other_delimiter(self, line: str) -> str | None:
        for delimiter, shown in _OTHER_DELIMITERS.items():
            if self._source.text_column in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), []):
                return (
                    f"{self._source.name} has no column {self._source.text_column!r} as it is read. "
                    f"With --delimiter {shown} it has one."
                )
        return None


class _LineEnds:
    """Rows with the input's line ends. The writer itself has CRLF: then it quotes cells with either of the two."""

    def __init__(self, file: "Encoded", end: str) -> None:
        self._file = file
        self._end = end

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + self._end)


class JsonLinesTable(TextTable):
    """An object a line. A blank line is no row. The copy has each line as it was, its end apart.

    Of a stream, the first object must have the column of texts: whether another one has it, nobody knows yet.
    """

    def check(self) -> int:
        names: dict[str, None] = {}
        rows = 0
        for (_, row), _ in self.rows():
            names |= dict.fromkeys(row)
            rows += 1
        self.names = list(names)
        if rows:
            check_text_column(self._source, self.names)
        return rows

    def rows(self) -> Iterator[tuple[Any, str]]:
        column = self._source.text_column
        first = self._source.stream is not None
        with self._open(newline="\n") as file:
            number = 0
            try:
                for number, line in enumerate(file, start=1):  # noqa: B007  # for the errors below
                    if line.isspace():
                        continue
                    row = json.loads(line)
                    text = row.get(column)
                    if text is not None and not isinstance(text, str):
                        raise TypeError(f"{column!r} is not a string")
                    if first:
                        check_text_column(self._source, list(row))
                        first = False
                    yield (line.strip(), row), text or ""
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                expected = f"a JSON object with a string in {column!r}"
                raise InputError(f"{self._source.name}, line {number}, is not {expected}: {error}.") from error

    def writer(self, copy: "Encoded", added: Added) -> Callable[[Any, Result], None]:
        names = [column.name for column in added.columns]

        def write(read: tuple[str, dict[str, Any]], result: Result) -> None:
            line, row = read
            check_added(self._source, list(row), added)
            values = json.dumps(dict(zip(names, added.cells(result), strict=True)), ensure_ascii=False)
            copy.write(line.removesuffix("}").rstrip() + (", " if row else "") + values[1:] + "\n")

        return write


class Encoded:
    """Text, written to a file of bytes."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, encoding: str) -> None:
        self._file = file
        self._encode = codecs.getincrementalencoder(encoding)().encode

    def write(self, text: str) -> int:
        self._file.write(self._encode(text))
        return len(text)


class _Raw:
    """The bytes of a file or a stream, whose start has been looked at."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.start = b""
        while len(self.start) < len(_GZIP_START) and (block := self._next(len(_GZIP_START) - len(self.start))):
            self.start += block
        self._left = self.start

    def read(self, size: int) -> bytes:
        """At most so many bytes. Of a stream: what is there; more is not waited for."""
        if self._left:
            block, self._left = self._left[:size], self._left[size:]
            return block
        return self._next(size)

    def _next(self, size: int) -> bytes:
        while (block := self._file.read(size)) is None:  # another program has set the stream to non-blocking
            select.select([self._file], [], [])
        return block


class _Decodable(io.BufferedIOBase):
    """Bytes that an encoding can decode, up to an error that names the line."""

    def __init__(self, read: Callable[[int], bytes], source: Source, encoding: str) -> None:
        self._read = read
        self._source = source
        self._encoding = encoding
        self._decoder = _decoder(encoding)
        self._line = 1
        self._error: InputError | None = None
        self.start = b""
        """The first three bytes: byte-order marks are not longer."""

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1) -> bytes:
        """
        Raises:
            InputError: the next bytes cannot be decoded.
        """
        if self._error is not None:
            raise self._error
        block = self._read(size)
        self.start = (self.start + block)[: len(_UTF_8_MARK)]
        before = self._decoder.getstate()
        try:
            self._line += self._decoder.decode(block, final=not block).count("\n")
        except UnicodeError as error:
            self._decoder = _decoder(self._encoding)
            self._decoder.setstate(before)
            block = block[: self._good(block)]
            self._error = self._told(error)
            if not block:
                raise self._error from error
        return block

    def _good(self, block: bytes) -> int:
        """How many bytes are before those that cannot be decoded."""
        for index in range(len(block)):
            try:
                self._line += self._decoder.decode(block[index : index + 1]).count("\n")
            except UnicodeError:
                return index
        return len(block)

    def _told(self, error: UnicodeError) -> InputError:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        way_out = "Name its encoding, for example --encoding cp1252 for a file of Windows programs."
        if self.start.startswith(_UTF_16_MARKS) and self._encoding != "utf-16":
            way_out = "It begins as UTF-16 does: --encoding utf-16."
        name, encoding = self._source.name, self._source.format.encoding.upper()
        return InputError(f"{name}, line {self._line}, is not {encoding}: {reason}. {way_out}")


def _decoder(encoding: str) -> io.IncrementalNewlineDecoder:
    """With each kind of line end as a line feed."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)


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


TEXT_TABLES: Mapping[str, Callable[[Source], TextTable]] = {
    "csv": CsvTable,
    "tsv": CsvTable,
    "jsonl": JsonLinesTable,
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
