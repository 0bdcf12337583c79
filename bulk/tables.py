"""The formats of input files: CSV, TSV, JSON lines, Parquet and plain text.

A table of each format divides a file into shards, reads the rows of a shard, and writes them with their results. The
copy of a row equals the copy that `sentiment score` writes. A row without a valid text gets an error. A file whose rows
cannot be told apart ends the run.
"""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol

from bulk.columns import LABEL_SEPARATOR, Cell, Cells, Columns, Kind
from bulk.errors import BulkError, cut
from bulk.shards import Rows, Shard, Source, equal_parts
from handler.errors import NotJsonError, NotUtf8Error, RequestError, WrongShapeError
from handler.exported import is_unicode

MAX_LINE_BYTES: Final = 64 << 20
"""Maximum length of a line, so that a file without line ends cannot fill the memory."""

HEAD_BYTES: Final = 1 << 20
"""Number of bytes at the beginning of a file that are read to check it. They must contain the first row."""

BLOCK_BYTES: Final = 1 << 20
PARQUET_BATCH_ROWS: Final = 8192

_GZIP_MARK: Final = b"\x1f\x8b"
_UTF_16_MARKS: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MAX_CELL_CHARACTERS: Final = 2**31 - 1

Text = str | RequestError
"""The text of a row, or the row's error."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run that a table needs."""

    text_column: str
    columns: Columns


class Table(Protocol):
    """A format of input files."""

    ending: str
    """Ending of the output files' names."""

    def check(self, path: str, file: BinaryIO, size: int) -> int:
        """Check the beginning of a file; return its size in bytes without compression.

        Raises:
            BulkError: the file does not have the format, lacks the column of texts, or has a column of the results.
        """

    def split(self, source: Source, file: BinaryIO) -> Iterator[Shard]:
        """Yield the shards of a file.

        Raises:
            BulkError: the file is not valid in its format.
        """

    def read(self, shard: Shard, file: BinaryIO) -> Rows:
        """Read the rows of a shard.

        Raises:
            BulkError: the file is not valid in its format.
        """

    def written(self, rows: Rows, cells: Sequence[Cells], indexes: Sequence[int]) -> bytes:
        """Return the content of an output file.

        Args:
            rows: the rows of a shard.
            cells: the results of all these rows.
            indexes: the rows to write.
        """

    def cells(self, content: bytes) -> Iterator[Cells]:
        """Yield the results in an output file. Numbers in CSV stay text."""


class CsvTable:
    """CSV with a header, by RFC 4180. Blank lines are skipped."""

    delimiter = ","
    ending = ".csv"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        csv.field_size_limit(_MAX_CELL_CHARACTERS)

    def check(self, path: str, file: BinaryIO, size: int) -> int:
        """Check the header; see `Table.check`."""
        head = _head(path, file)
        header, _ = self._header(path, head)
        _check_columns(path, header, self._settings)
        self._check_labels()
        return size

    def split(self, source: Source, file: BinaryIO) -> Iterator[Shard]:
        """Divide a file at ends of rows; see `Table.split`. The whole file is read, as a cell may have line ends."""
        lines = _Lines(source.path, file)
        targets = [end for _, end in equal_parts(source.size, source.shards)]
        begin = index = 0
        for _ in self._rows(source.path, lines, None):
            while index < source.shards - 1 and lines.bytes >= targets[index]:
                yield Shard(source, index, begin, lines.bytes)
                begin, index = lines.bytes, index + 1
        for last in range(index, source.shards):
            yield Shard(source, last, begin, source.size)
            begin = source.size

    def read(self, shard: Shard, file: BinaryIO) -> Rows:
        """Read the rows of a shard, each as a list of cells; see `Table.read`."""
        path = shard.source.path
        header, line_end = self._header(path, file.read(HEAD_BYTES))
        file.seek(shard.begin)
        content = file.read(shard.end - shard.begin).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        rows = list(self._rows(path, io.StringIO(content, newline=""), len(header)))
        if shard.begin == 0:
            del rows[0]
        index = header.index(self._settings.text_column)
        return Rows(shard, rows, [_csv_text(row, index, len(header)) for row in rows], (header, line_end))

    def written(self, rows: Rows, cells: Sequence[Cells], indexes: Sequence[int]) -> bytes:
        """Return rows with the header and the line ends of the input; see `Table.written`."""
        header, line_end = rows.layout
        columns = len(header)
        lines: list[str] = []
        # The CSV writer has CRLF, so that it quotes cells with CR or LF.
        writer = csv.writer(_Appender(lines), delimiter=self.delimiter, lineterminator="\r\n")
        writer.writerow([*header, *self._settings.columns.names])
        for index in indexes:
            row = rows.rows[index]
            if len(row) < columns:
                row = [*row, *[""] * (columns - len(row))]
            elif len(row) > columns:
                row = [*row[: columns - 1], self.delimiter.join(row[columns - 1 :])]
            writer.writerow([*row, *map(_csv_cell, cells[index])])
        return _encoded(line_end.join(line.removesuffix("\r\n") for line in [*lines, ""]))

    def cells(self, content: bytes) -> Iterator[Cells]:
        """Yield the last cells of each row; see `Table.cells`."""
        kinds = [kind for _, kind in self._settings.columns.fields]
        reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=self.delimiter)
        next(reader)
        for row in reader:
            yield [_cell(value, kind) for value, kind in zip(row[-len(kinds) :], kinds, strict=True)]

    def _check_labels(self) -> None:
        task = self._settings.columns.task
        if task.name == "multi-label" and (split := [label for label in task.labels if LABEL_SEPARATOR in label]):
            raise BulkError(
                f"The label {split[0]!r} contains {LABEL_SEPARATOR!r}, which separates labels in CSV. Use JSON "
                "lines or Parquet instead."
            )

    def _header(self, path: str, head: bytes) -> tuple[list[str], str]:
        """Return the header, and the line end of the file."""
        text = head.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        header = next(self._rows(path, io.StringIO(text, newline=""), None), [])
        return header, "\r\n" if next(io.StringIO(text, newline=""), "").endswith("\r\n") else "\n"

    def _rows(self, path: str, lines: Iterable[str], columns: int | None) -> Iterator[list[str]]:
        """Yield the header and the rows.

        Args:
            path: the file, for error messages.
            lines: the lines of a part of the file.
            columns: number of cells of a row; None if the first row is the header.

        Raises:
            BulkError: the lines are not valid CSV, or a row of several lines has another number of cells. Usually,
                a quote is not closed, so that the cell extends to the next quote.
        """
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        line = 1
        try:
            for row in reader:
                if row:
                    columns = columns or len(row)
                    if len(row) != columns and reader.line_num > line:
                        raise BulkError(
                            f"{path}, lines {line} to {reader.line_num}, are a row of {len(row)} cells, but the header "
                            f"has {columns}. Expected a quote at the end of each cell that begins with a quote."
                        )
                    yield row
                line = reader.line_num + 1
        except csv.Error as error:
            raise BulkError(f"{path}, line {line}, is not valid {self.ending[1:].upper()}: {error}.") from error


class TsvTable(CsvTable):
    """CSV with tabs as delimiters."""

    delimiter = "\t"
    ending = ".tsv"


class JsonLinesTable:
    """JSON lines: one object on each line. Blank lines are skipped."""

    ending = ".jsonl"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._names = frozenset(settings.columns.names)

    def check(self, path: str, file: BinaryIO, size: int) -> int:
        """Check the first object; see `Table.check`."""
        for line in _head(path, file).removeprefix(codecs.BOM_UTF8).splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                _check_columns(path, list(row), self._settings)
                break
        return size

    def split(self, source: Source, file: BinaryIO) -> Iterator[Shard]:
        """Divide a file into parts of equal size; see `Table.split`."""
        del file
        return _split_bytes(source)

    def read(self, shard: Shard, file: BinaryIO) -> Rows:
        """Read the rows of a shard, each as its line; see `Table.read`."""
        lines: list[str] = []
        texts: list[Text] = []
        for line in _lines(shard, file):
            if line and not line.isspace():
                row, text = self._row(shard.source.path, line)
                lines.append(row)
                texts.append(text)
        return Rows(shard, lines, texts)

    def written(self, rows: Rows, cells: Sequence[Cells], indexes: Sequence[int]) -> bytes:
        """Return lines with the results as further fields; see `Table.written`."""
        names = self._settings.columns.names
        lines = []
        for index in indexes:
            fields = rows.rows[index].removesuffix("}").rstrip()
            added = json.dumps(dict(zip(names, cells[index], strict=True)), ensure_ascii=False)
            lines.append(f"{fields}{'' if fields == '{' else ', '}{added[1:]}\n")
        return "".join(lines).encode()

    def cells(self, content: bytes) -> Iterator[Cells]:
        """Yield the results of each line; see `Table.cells`."""
        for line in content.split(b"\n")[:-1]:
            row = json.loads(line)
            yield [row[name] for name in self._settings.columns.names]

    def _row(self, path: str, line: bytes) -> tuple[str, Text]:
        """Return the line to write and its text. A line that is no object becomes an object with the line as text."""
        try:
            text = line.decode().strip()
            row = json.loads(text)
        except UnicodeDecodeError as error:
            return self._substitute(line), NotUtf8Error(_not_utf_8("line", error))
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} (character {error.pos})" if isinstance(error, json.JSONDecodeError) else "too large"
            return self._substitute(line), NotJsonError(f"The line is not JSON: {reason}. Expected a JSON object.")
        if not isinstance(row, dict):
            return self._substitute(line), WrongShapeError("The line is not a JSON object. Expected a JSON object.")
        if not self._names.isdisjoint(row):
            _check_columns(path, list(row), self._settings)
        value = row.get(self._settings.text_column)
        if value is not None and not isinstance(value, str):
            return text, WrongShapeError(f"{self._settings.text_column!r} is not a string. Expected a string.")
        return text, value or ""

    def _substitute(self, line: bytes) -> str:
        return json.dumps({self._settings.text_column: line.decode(errors="backslashreplace")}, ensure_ascii=False)


class PlainTextTable(CsvTable):
    """Plain text: one text on each line. The output is CSV with the texts in the column of texts."""

    def check(self, path: str, file: BinaryIO, size: int) -> int:
        """Check the encoding, and the columns of the output; see `Table.check`."""
        _head(path, file)
        _check_columns(path, [self._settings.text_column], self._settings)
        self._check_labels()
        return size

    def split(self, source: Source, file: BinaryIO) -> Iterator[Shard]:
        """Divide a file into parts of equal size; see `Table.split`."""
        del file
        return _split_bytes(source)

    def read(self, shard: Shard, file: BinaryIO) -> Rows:
        """Read the lines of a shard, each as a row of one cell; see `Table.read`."""
        rows: list[list[str]] = []
        texts: list[Text] = []
        for line in _lines(shard, file):
            content = line.rstrip(b"\r")
            rows.append([content.decode(errors="backslashreplace")])
            texts.append(_decoded(content))
        return Rows(shard, rows, texts, ([self._settings.text_column], "\n"))


class ParquetTable:
    """Parquet with a column of strings."""

    ending = ".parquet"

    def __init__(self, settings: Settings) -> None:
        import pyarrow
        import pyarrow.parquet

        self._arrow = pyarrow
        self._settings = settings

    def check(self, path: str, file: BinaryIO, size: int) -> int:
        """Check the schema; see `Table.check`."""
        del size
        with self._reading(path):
            parquet = self._arrow.parquet.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
        _check_columns(path, schema.names, self._settings)
        column = self._settings.text_column
        kind = schema.field(column).type
        value = kind.value_type if self._arrow.types.is_dictionary(kind) else kind
        types = self._arrow.types
        if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)):
            raise BulkError(f"{path}: the column {column!r} is {cut(str(kind))}; expected strings.")
        return sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))

    def split(self, source: Source, file: BinaryIO) -> Iterator[Shard]:
        """Divide the rows of a file into parts of equal size; see `Table.split`."""
        with self._reading(source.path):
            rows = self._arrow.parquet.ParquetFile(file).metadata.num_rows
        for index, (begin, end) in enumerate(equal_parts(rows, source.shards)):
            yield Shard(source, index, begin, end)

    def read(self, shard: Shard, file: BinaryIO) -> Rows:
        """Read the rows of a shard as an Arrow table; see `Table.read`."""
        with self._reading(shard.source.path):
            parquet = self._arrow.parquet.ParquetFile(file)
            groups, first = _row_groups(parquet.metadata, shard)
            batches = []
            for batch in parquet.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups) if groups else ():
                begin, end = max(shard.begin - first, 0), min(shard.end - first, batch.num_rows)
                first += batch.num_rows
                if begin < end:
                    batches.append(batch.slice(begin, end - begin))
            table = self._arrow.Table.from_batches(batches, parquet.schema_arrow)
            column = table.column(self._settings.text_column)
            if self._arrow.types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            # The bytes of a string are not checked when they are read.
            texts = column.cast(self._arrow.large_binary()).to_pylist()
        return Rows(shard, table, [_decoded(text or b"") for text in texts])

    def written(self, rows: Rows, cells: Sequence[Cells], indexes: Sequence[int]) -> bytes:
        """Return rows with the results as further columns; see `Table.written`."""
        string = self._arrow.string()
        types = {"text": string, "number": self._arrow.float64(), "texts": self._arrow.list_(string)}
        table = rows.rows
        if len(indexes) != table.num_rows:
            # Arrow's `take` lacks some types, such as string_view.
            table = self._arrow.concat_tables([table.slice(index, 1) for index in indexes])
        for number, (name, kind) in enumerate(self._settings.columns.fields):
            values = [cells[index][number] for index in indexes]
            table = table.append_column(name, self._arrow.array(values, types[kind]))
        content = io.BytesIO()
        with self._arrow.parquet.ParquetWriter(content, table.schema) as writer:
            writer.write_table(table, PARQUET_BATCH_ROWS)
        return content.getvalue()

    def cells(self, content: bytes) -> Iterator[Cells]:
        """Yield the values in the last columns; see `Table.cells`."""
        names = self._settings.columns.names
        for row in self._arrow.parquet.read_table(io.BytesIO(content), columns=names).to_pylist():
            yield [row[name] for name in names]

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Convert the errors of a damaged file."""
        try:
            yield
        except (self._arrow.ArrowException, UnicodeDecodeError, OSError) as error:
            raise BulkError(f"{path} is not Parquet, or it is damaged: {cut(str(error))}") from error


TABLES: Final[Mapping[str, Callable[[Settings], Table]]] = {
    "csv": CsvTable,
    "tsv": TsvTable,
    "jsonl": JsonLinesTable,
    "parquet": ParquetTable,
    "text": PlainTextTable,
}
"""The formats by name."""

OUTPUT_ENDINGS: Final = {CsvTable.ending, TsvTable.ending, JsonLinesTable.ending, ParquetTable.ending}
"""The endings of the output files' names in all formats."""

ENDINGS: Final[Mapping[str, str]] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
"""The format for each ending of a file's name."""


class _Lines:
    """The lines of a file in UTF-8, with the number of bytes of the lines that were taken."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.bytes = 0
        self._path = path
        self._file = file

    def __iter__(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        rest = ""
        while block := self._file.read(BLOCK_BYTES):
            lines = list(io.StringIO(rest + decoder.decode(block), newline=""))
            rest = lines.pop() if lines else ""  # its end may be in the next block
            if len(rest) > MAX_LINE_BYTES:
                raise _long_line(self._path)
            yield from self._counted(lines)
        yield from self._counted(io.StringIO(rest + decoder.decode(b"", True), newline=""))

    def _counted(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            is_first = not self.bytes
            self.bytes += len(line) if line.isascii() else len(line.encode("utf-8", "surrogateescape"))
            yield line.removeprefix("\ufeff") if is_first else line


class _Appender:
    """A file for a CSV writer that appends each row to a list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def _lines(shard: Shard, file: BinaryIO) -> list[bytes]:
    """Read the lines that begin in a shard, without their line feeds."""
    begin = max(shard.begin - 1, 0)
    file.seek(begin)
    content = file.read(shard.end - begin)
    # A line that begins before the shard ends at the first line feed that is not before the byte before the shard.
    content = content.partition(b"\n")[2] if shard.begin else content.removeprefix(codecs.BOM_UTF8)
    parts = [content]
    while content and not parts[-1].endswith(b"\n") and (block := file.read(BLOCK_BYTES)):
        end = block.find(b"\n") + 1
        parts.append(block[:end] if end else block)
        if len(parts) * BLOCK_BYTES > MAX_LINE_BYTES:
            raise _long_line(shard.source.path)
    lines = b"".join(parts).split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _long_line(path: str) -> BulkError:
    return BulkError(f"{path} has a line of more than {MAX_LINE_BYTES >> 20} MiB. Expected one row per line.")


def _split_bytes(source: Source) -> Iterator[Shard]:
    for index, (begin, end) in enumerate(equal_parts(source.size, source.shards)):
        yield Shard(source, index, begin, end)


def _row_groups(metadata: Any, shard: Shard) -> tuple[list[int], int]:
    """Return the row groups that have rows of a shard, and the number of rows before the first of them."""
    groups: list[int] = []
    first = before = 0
    for index in range(metadata.num_row_groups):
        rows = metadata.row_group(index).num_rows
        if before < shard.end and before + rows > shard.begin:
            first = first if groups else before
            groups.append(index)
        before += rows
    return groups, first


def _head(path: str, file: BinaryIO) -> bytes:
    """Return the beginning of a text file.

    Raises:
        BulkError: the file is compressed, or it begins like UTF-16.
    """
    head = file.read(HEAD_BYTES)
    if head.startswith(_GZIP_MARK):
        raise BulkError(f"{path} is compressed by gzip, so it cannot be divided. Decompress it first: gunzip.")
    if head.startswith(_UTF_16_MARKS):
        raise BulkError(f"{path} begins like UTF-16. Convert it to UTF-8 first: iconv -f utf-16 -t utf-8.")
    return head


def _check_columns(path: str, names: Sequence[str], settings: Settings) -> None:
    """Check the names of a file's columns.

    Raises:
        BulkError: the column of texts is missing or occurs more than once, or the file has a column of the results.
    """
    column = settings.text_column
    if column not in names:
        has = cut(", ".join(names)) or "none"
        raise BulkError(f"{path} has no column {column!r}; it has {has}. Choose one with --text-column.")
    if list(names).count(column) > 1:
        raise BulkError(f"{path} has more than one column {column!r}. Rename or remove the others first.")
    if taken := [name for name in settings.columns.names if name in names]:
        raise BulkError(
            f"{path} already has a column {taken[0]!r}, a name that the results need. Add a prefix to the results' "
            "columns, for example --prefix predicted_"
        )


def _csv_text(row: list[str], index: int, columns: int) -> Text:
    if len(row) != columns:
        return WrongShapeError(f"The row has {len(row)} cells, but the header has {columns}.")
    if not all(cell.isascii() or is_unicode(cell) for cell in row):
        return NotUtf8Error("The row is not UTF-8. Expected text in UTF-8.")
    return row[index]


def _csv_cell(cell: Cell) -> str | float | None:
    return LABEL_SEPARATOR.join(cell) if isinstance(cell, list) else cell


def _cell(value: str, kind: Kind) -> Cell:
    """Read a cell of the results. A number stays text."""
    return value.split(LABEL_SEPARATOR) if value and kind == "texts" else value or None


def _encoded(text: str) -> bytes:
    """Encode the rows of a CSV file, and escape the bytes of the input that are not UTF-8."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").encode()


def _decoded(text: bytes) -> Text:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        return NotUtf8Error(_not_utf_8("text", error))


def _not_utf_8(what: str, error: UnicodeDecodeError) -> str:
    return f"The {what} is not UTF-8 (byte {error.start}). Expected text in UTF-8."
