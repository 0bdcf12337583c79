"""Tables with a text in each row: CSV, TSV, JSON lines and Parquet.

Tables are read row by row, so their size is not limited. All formats but Parquet can also be read from a stream. The
copy of a table has the same rows and columns, followed by the columns of the results (`sentiment.columns`).
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
"""Separator of the labels of one text in a CSV file, for fastai's `ColReader(label_delim=";")`."""

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
    """Format of a file and of its copy."""

    kind: str
    """Name of the format: one of `FORMATS`."""

    delimiter: str
    """Delimiter of CSV and TSV."""

    encoding: str
    """Encoding of all formats but Parquet."""

    quotes: bool = True
    """Whether cells of CSV and TSV may be quoted, and so contain delimiters and line breaks."""


@dataclass(frozen=True)
class Source:
    """A file or a stream to read."""

    path: Path
    name: str
    """Name for messages: the path, or `standard input`."""

    format: Format
    text_column: str
    stream: IO[bytes] | None = None
    """Stream to read instead of the path. It can be read once."""


class Table(Protocol):
    """A table with a text in each row."""

    names: Sequence[str]
    """Names of the columns. For JSON lines, `check` collects them."""

    def check(self) -> int:
        """Read the whole file; returns the number of rows.

        Raises:
            InputError: the file is not valid in its format.
        """

    def texts(self) -> Iterator[str]:
        """The text of each row; the empty string for a row without a text."""

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        """Write a copy with the added columns, and with the result of each row."""


def format_of(
    name: str,
    kind: str | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
    quotes: bool = True,
) -> Format:
    """The format of a file, from its name and the options.

    Args:
        name: the file's name, or `standard input`.
        kind: one of `FORMATS`; None for the format of the file's ending.
        delimiter: the delimiter of CSV or TSV; None for the format's default.
        encoding: the text's encoding; None for UTF-8.
        quotes: whether cells of CSV and TSV may be quoted.

    Raises:
        InputError: the format is unknown, or an option does not apply to it.
    """
    kind = kind or _kind(name)
    if kind is None:
        raise InputError(
            f"The format of {name} is unknown. Expected the ending {', '.join(_ENDINGS)}; all but .parquet may be "
            "followed by .gz. Set the format with --format. For a file with one text per line, use `sentiment predict "
            "--file`."
        )
    if kind == "parquet" and _ending(name).endswith(".gz"):
        raise InputError(f"{name}: Parquet compressed by gzip is not supported. Decompress the file first: gunzip.")
    if kind == "parquet" and encoding is not None:
        raise InputError(f"--encoding applies to CSV, TSV and JSON lines; {name} is Parquet.")
    if delimiter is not None and kind not in ("csv", "tsv"):
        raise InputError(f"--delimiter applies to CSV and TSV; {name} is {_SHOWN[kind]}.")
    if not quotes and kind not in ("csv", "tsv"):
        raise InputError(f"--no-quotes applies to CSV and TSV; {name} is {_SHOWN[kind]}.")
    return Format(kind, delimiter or ("\t" if kind == "tsv" else ","), encoding or DEFAULT_ENCODING, quotes)


def check_copy(source: Source, name: str) -> bool:
    """Check the name of a copy, which is written in the input's format; returns whether to compress it by gzip.

    Raises:
        InputError: the name has the ending of another format.
    """
    kind, own = _kind(name), _kind(source.name) or source.format.kind
    compressed = _ending(name).endswith(".gz")
    if (kind is not None and kind != own) or (compressed and own == "parquet"):
        raise InputError(
            f"The output is written in the input's format, {_SHOWN[own]}, but {name} has the ending of another format."
        )
    return compressed


def copy_name(name: str) -> str:
    """Default name of the copy of a file: `tweets.csv.gz` becomes `tweets.scored.csv.gz`."""
    ending = _ending(name)
    return f"{name[: len(name) - len(ending)]}.scored{name[len(name) - len(ending) :]}"


def _kind(name: str) -> str | None:
    return _ENDINGS.get(_ending(name).removesuffix(".gz"))


def _ending(name: str) -> str:
    """Ending of a file's name in lower case: the last suffix, or the last two if the last is `.gz`."""
    path = Path(name.lower())
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def open_table(source: Source) -> Table:
    """Open a table.

    Raises:
        InputError: the file is missing or not a regular file, or the package to read it is not installed.
    """
    if not source.path.exists():
        raise InputError(f"No file at {source.name}.")
    if not source.path.is_file():  # a pipe can be read once, and tables are read twice
        raise InputError(f"{source.name} is not a regular file. Use - to read standard input.")
    table: Table = TEXT_TABLES.get(source.format.kind, ParquetTable)(source)
    return table


class TextTable:
    """A table in a text format: CSV, TSV or JSON lines. If its source is a stream, it can be read once."""

    names: Sequence[str] = ()

    def __init__(self, source: Source) -> None:
        self._source = source
        self._encoding = source.format.encoding
        if self._encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            self._encoding = "utf-8-sig"
        self._bytes: _Decodable | None = None

    def check(self) -> int:
        """Read the whole file; see `Table.check`."""
        raise NotImplementedError

    def rows(self) -> Iterator[tuple[Any, str]]:
        """Each row with its text; the empty string for a row without a text.

        Raises:
            InputError: the next row is not valid.
        """
        raise NotImplementedError

    def writer(self, copy: "Encoded", added: Added) -> Callable[[Any, Result], None]:
        """Write the header of a copy, if the format has one; returns a function that writes a row with its result."""
        raise NotImplementedError

    def texts(self) -> Iterator[str]:
        """The text of each row; see `Table.texts`."""
        for _, text in self.rows():
            yield text

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        """Write a copy; see `Table.write`."""
        with destination.open("wb") as file, self.encoded(file, compress=compress) as copy:
            write = self.writer(copy, added)
            for (row, _), result in zip(self.rows(), results, strict=True):
                write(row, result)

    @contextmanager
    def encoded(self, file: IO[bytes], *, compress: bool) -> Iterator["Encoded"]:
        """Encoder of the copy, in the input's encoding. The file stays open.

        Raises:
            InputError: the encoding cannot represent a character of the results.
        """
        encoding = self._encoding
        if encoding == "utf-8-sig" and not (self._bytes and self._bytes.start == _UTF_8_MARK):
            encoding = "utf-8"
        # No time and no name in the header, so that the same results give the same bytes.
        packed = gzip.GzipFile("", "wb", _GZIP_LEVEL, file, 0) if compress else None
        try:
            yield Encoded(packed or file, encoding)
        except UnicodeEncodeError as error:
            character = error.object[error.start]
            raise InputError(
                f"The results contain the character {character!r}, which {encoding} cannot represent. "
                f"Convert {self._source.name} to UTF-8 first: iconv."
            ) from error
        finally:
            if packed is not None:
                packed.close()

    @contextmanager
    def _open(self, newline: str) -> Iterator[TextIO]:
        """Open the text. If bytes cannot be decoded, the error names their line."""
        stream = self._source.stream
        with self._source.path.open("rb") if stream is None else nullcontext(stream) as file:
            raw = _Raw(file)
            packed: Any = raw  # `gzip` only calls `read`
            read = gzip.GzipFile(fileobj=packed, mode="rb").read1 if raw.start == _GZIP_START else raw.read
            self._bytes = _Decodable(read, self._source, self._encoding)
            buffer: Any = self._bytes
            try:
                yield io.TextIOWrapper(buffer, self._encoding, newline=newline)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise InputError(f"{self._source.name} is not complete gzip: {error}.") from error


class CsvTable(TextTable):
    """CSV with a header, by RFC 4180, with any delimiter. Blank lines are skipped."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        csv.field_size_limit(MAX_CELL_CHARACTERS)
        self._dialect: dict[str, Any] = {"delimiter": source.format.delimiter}
        if not source.format.quotes:
            self._dialect |= {"quoting": csv.QUOTE_NONE, "quotechar": None}
        self._line_end = "\n"

    def check(self) -> int:
        """Read the whole file; see `Table.check`."""
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[tuple[Any, str]]:
        """Each row as a list of cells, with its text."""
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
        """Write the header; see `TextTable.writer`."""
        writer = csv.writer(_LineEnds(copy, self._line_end), **self._dialect, lineterminator="\r\n")
        writer.writerow([*self.names, *(self._cell(column.name) for column in added.columns)])

        def write(row: list[str], result: Result) -> None:
            writer.writerow([*row, *map(self._cell, added.cells(result))])

        return write

    def _cells(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """The header, then the rows, each with as many cells as the header.

        Raises:
            InputError: a row has another number of cells, or the file is not valid CSV.
        """
        reader = csv.reader(lines, strict=True, **self._dialect)
        header: list[str] | None = None
        line = 1
        try:
            for row in reader:
                if row:
                    header = header or row
                    if len(row) != len(header):
                        counts = f"{len(row)} cells, but the header has {len(header)}"
                        hint = "Quote the cells that contain the delimiter."
                        raise InputError(f"{self._source.name}, line {line}, has {counts}. {hint}")
                    yield row
                line = reader.line_num + 1
        except csv.Error as error:
            kind = _SHOWN[self._source.format.kind]
            reason = str(error).replace("\t", "\\t")
            hint = (
                " If quotes have no special meaning in this file, use --no-quotes."
                if self._source.format.quotes
                else ""
            )
            until = f", read until line {reader.line_num}" if reader.line_num > line else ""
            raise InputError(
                f"{self._source.name}, line {line}, is not valid {kind}: {reason}{until}.{hint}"
            ) from error

    def _cell(self, cell: Cell) -> Cell:
        """A cell of the results, as a value for CSV.

        Raises:
            InputError: a label contains the separator of labels.
        """
        if isinstance(cell, list):
            for label in cell:
                if LABEL_SEPARATOR in label:
                    raise InputError(
                        f"The label {label!r} contains {LABEL_SEPARATOR!r}, which separates labels in CSV. Use JSON "
                        "lines or Parquet instead."
                    )
            cell = LABEL_SEPARATOR.join(cell)
        if isinstance(cell, str) and not self._source.format.quotes:
            # An unquoted cell cannot contain these characters.
            return cell.translate(dict.fromkeys(map(ord, f"\r\n{self._source.format.delimiter}"), " "))
        return cell

    def _other_delimiter(self, line: str) -> str | None:
        for delimiter, shown in _OTHER_DELIMITERS.items():
            if self._source.text_column in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), []):
                return (
                    f"{self._source.name} has no column {self._source.text_column!r} with this delimiter. "
                    f"With --delimiter {shown}, it has one."
                )
        return None


class _LineEnds:
    """Writer of rows with the input's line ends. The CSV writer has CRLF, so that it quotes cells with CR or LF."""

    def __init__(self, file: "Encoded", end: str) -> None:
        self._file = file
        self._end = end

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + self._end)


class JsonLinesTable(TextTable):
    """JSON lines: one object on each line. Blank lines are skipped. The copy has each line unchanged, except its end.

    In a stream, the first object must contain the column of texts, because later objects are not known yet.
    """

    def check(self) -> int:
        """Read the whole file; see `Table.check`."""
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
        """Each row as its line and its object, with its text."""
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
        """A function that writes a row with its result; JSON lines have no header."""
        names = [column.name for column in added.columns]

        def write(read: tuple[str, dict[str, Any]], result: Result) -> None:
            line, row = read
            check_added(self._source, list(row), added)
            values = json.dumps(dict(zip(names, added.cells(result), strict=True)), ensure_ascii=False)
            copy.write(line.removesuffix("}").rstrip() + (", " if row else "") + values[1:] + "\n")

        return write


class Encoded:
    """Text file on top of a binary file."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, encoding: str) -> None:
        self._file = file
        self._encode = codecs.getincrementalencoder(encoding)().encode

    def write(self, text: str) -> int:
        """Encode and write a text; returns its length."""
        self._file.write(self._encode(text))
        return len(text)


class _Raw:
    """Bytes of a file or a stream, with its start available before the first read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.start = b""
        while len(self.start) < len(_GZIP_START) and (block := self._next(len(_GZIP_START) - len(self.start))):
            self.start += block
        self._unread = self.start

    def read(self, size: int) -> bytes:
        """At most `size` bytes. From a stream: the available bytes, without waiting for more."""
        if self._unread:
            block, self._unread = self._unread[:size], self._unread[size:]
            return block
        return self._next(size)

    def _next(self, size: int) -> bytes:
        while (block := self._file.read(size)) is None:  # the stream is non-blocking: another program has set it so
            select.select([self._file], [], [])
        return block


class _Decodable(io.BufferedIOBase):
    """Bytes that are valid in an encoding. At the first invalid byte, reading raises an error that names its line."""

    def __init__(self, read: Callable[[int], bytes], source: Source, encoding: str) -> None:
        self._read = read
        self._source = source
        self._encoding = encoding
        self._decoder = _decoder(encoding)
        self._line = 1
        self._error: InputError | None = None
        self.start = b""
        """The first three bytes, the length of the longest byte-order mark."""

    def readable(self) -> bool:
        """Whether the file can be read: True."""
        return True

    def read1(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            InputError: the next bytes are not valid in the encoding.
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
            block = block[: self._valid_bytes(block)]
            self._error = self._decoding_error(error)
            if not block:
                raise self._error from error
        return block

    def _valid_bytes(self, block: bytes) -> int:
        """Number of bytes before the first invalid one."""
        for index in range(len(block)):
            try:
                self._line += self._decoder.decode(block[index : index + 1]).count("\n")
            except UnicodeError:
                return index
        return len(block)

    def _decoding_error(self, error: UnicodeError) -> InputError:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        hint = "Set the file's encoding, for example --encoding cp1252 for a file from a Windows program."
        if self.start.startswith(_UTF_16_MARKS) and self._encoding != "utf-16":
            hint = "The file starts like UTF-16: use --encoding utf-16."
        name, encoding = self._source.name, self._source.format.encoding.upper()
        return InputError(f"{name}, line {self._line}, is not {encoding}: {reason}. {hint}")


def _decoder(encoding: str) -> io.IncrementalNewlineDecoder:
    """Decoder that translates each kind of line end to a line feed."""
    return io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)


class ParquetTable:
    """Parquet with a column of strings. The copy has the same schema, followed by the fields of the results."""

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
        """Check the column of texts; see `Table.check`."""
        check_text_column(self._source, self.names)
        kind = self._schema.field(self._source.text_column).type
        value = kind.value_type if self._arrow.types.is_dictionary(kind) else kind
        types = self._arrow.types
        if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
            column = self._source.text_column
            raise InputError(f"{self._source.name}: the column {column!r} is {kind}; expected strings.")
        with self._open() as file:
            return int(file.metadata.num_rows)

    def texts(self) -> Iterator[str]:
        """The text of each row; see `Table.texts`."""
        with self._reading(), self._open() as file:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=[self._source.text_column]):
                for text in batch.column(0).to_pylist():
                    yield text or ""

    def write(self, destination: Path, added: Added, results: Iterator[Result], *, compress: bool) -> None:
        """Write a copy; see `Table.write`."""
        del compress  # Parquet has its own compression
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
        """Convert errors in the file's pages, which can be damaged although the metadata is valid."""
        try:
            yield
        except (self._arrow.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the content
                raise
            raise InputError(f"{self._source.name} is damaged: {error}.") from error


TEXT_TABLES: Mapping[str, Callable[[Source], TextTable]] = {
    "csv": CsvTable,
    "tsv": CsvTable,
    "jsonl": JsonLinesTable,
}


def check_text_column(source: Source, names: Sequence[str]) -> None:
    """Check the column of texts.

    Raises:
        InputError: there is no such column, or more than one.
    """
    column = source.text_column
    if column not in names:
        has = ", ".join(names) or "none"
        raise InputError(f"{source.name} has no column {column!r}; it has {has}. Choose one with --text-column.")
    if list(names).count(column) > 1:
        raise InputError(f"{source.name} has more than one column {column!r}. Rename or remove the others first.")


def check_added(source: Source, names: Sequence[str], added: Added) -> None:
    """Check the names of the added columns.

    Raises:
        InputError: the file already has a column of the results.
    """
    if taken := [column.name for column in added.columns if column.name in names]:
        raise InputError(
            f"{source.name} already has a column {taken[0]!r}, a name that the results need. Add a prefix to the "
            "results' columns, for example --prefix predicted_"
        )
