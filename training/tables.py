"""Reader for a user's file: CSV, TSV, JSON lines, Parquet, or plain text with one text per line.

Each error names the option with the file, the line (Parquet: the row) and a remedy. Files are read with Python's
standard library, Parquet with pyarrow: `python -m training archive` must run with the packages of serving only.
"""

import csv
import gzip
import io
import json
import lzma
import math
import re
import shlex
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from training.errors import TrainingError

FORMATS: Final = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
"""Format of a file by its ending."""

DELIMITERS: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

TEXT_ENDINGS: Final = (".txt", "")
"""Endings of files with one text per line, which are read if only one column is wanted."""

WORKBOOK_ENDINGS: Final = (".xlsx", ".xls", ".xlsm", ".ods")
WORKBOOK_STARTS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of a workbook, which may be renamed: a ZIP archive (.xlsx, .ods) or an OLE file (.xls)."""

SAVE_AS_CSV: Final = "Open the workbook in Excel, and save it as `CSV UTF-8`."

OPENERS: Final[Mapping[str, Any]] = {".gz": gzip.open, ".xz": lzma.open}
"""Function that opens a compressed file, by the file's last ending in lower case."""

DAMAGED: Final = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
"""Errors raised while reading a damaged compressed file."""

LONGEST_FIELD: Final = 2**31 - 1
"""Maximum number of characters in a field of a CSV file.

Python's default, 131,072, is less than a long document has. It is also less than the text after a quote that is never
closed, which has an error message of its own.
"""

_ARRAY_TO_LINES: Final = "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin.buffer)]"
"""Program that converts a JSON array to JSON lines."""

SHOWN: Final = 5
"""Maximum number of lines or labels that a message lists."""


def ending_of(path: Path) -> str:
    """Return the ending of a file's name in lower case, without that of a compression."""
    return (Path(path.stem).suffix if path.suffix.lower() in OPENERS else path.suffix).lower()


@dataclass(frozen=True)
class Record:
    """A record of a file."""

    line: int
    """Number of the record's first line in the file, from 1; in Parquet, of its row."""

    values: tuple[Any, ...]
    """Values of the wanted columns, in their order: strings, or any type in JSON lines and Parquet."""


@dataclass(frozen=True)
class Source:
    """A file that a command-line option names."""

    option: str
    """The option, for example `--data`."""

    path: Path
    """Path of the file. The ending gives the format (`FORMATS`); text formats may be compressed (`.gz`, `.xz`)."""

    columns: Mapping[str, str]
    """Names of the wanted columns, all different, by the options that name them.

    If only one column is wanted, the file's only column may have any name, JSON lines may be strings, and the file may
    have one text per line.
    """

    labels: str | None = None
    """Name of the column with the labels, which reveal rows inside a quoted field (an unclosed quote)."""

    def records(self) -> list[Record]:
        """Read all records of the file; blank lines are skipped.

        Raises:
            TrainingError: the file or a column is missing, the content is not of the ending's format, or a value is not
                valid Unicode.
        """
        if not self.path.is_file():
            fault = "is a folder, not a file" if self.path.is_dir() else "no such file"
            raise self.problem(f"{fault}; expected {self._expected}.")
        from handler.exported import is_unicode  # imports spaCy, which takes seconds

        records = list(self._read())
        self.refuse(
            (
                record.line
                for record in records
                if any(isinstance(value, str) and (not is_unicode(value) or "\0" in value) for value in record.values)
            ),
            "a NUL character or an unpaired surrogate, which no text has",
            "Remove these characters.",
        )
        return records

    @property
    def unit(self) -> str:
        """Unit of a record's position: `line` or `row`."""
        return "row" if self._kind == "parquet" else "line"

    def refuse(self, lines: Iterable[int], fault: str, remedy: str) -> None:
        """Raise an error if there are invalid lines.

        Args:
            lines: numbers of the invalid lines.
            fault: what is wrong with them, after "rows have".
            remedy: what the user can do.

        Raises:
            TrainingError: there is at least one line.
        """
        if numbers := list(lines):
            count = f"{len(numbers):,} rows have" if len(numbers) > 1 else "A row has"
            raise self.problem(f"{self.unit} {listed(numbers)}: {count} {fault}. {remedy}")

    def problem(self, message: str) -> TrainingError:
        """Return an error whose message names the option and the file."""
        return TrainingError(f"{self.option} {self.path}: {message}")

    def _at(self, line: int | None, message: str) -> TrainingError:
        return self.problem(f"{self.unit} {line} {message}" if line else message)

    @property
    def _packing(self) -> str:
        suffix = self.path.suffix.lower()
        return suffix if suffix in OPENERS else ""

    @property
    def _ending(self) -> str:
        return ending_of(self.path)

    @property
    def _kind(self) -> str | None:
        if self._wants_one_column and self._ending in TEXT_ENDINGS:
            return "lines"
        kind = FORMATS.get(self._ending)
        return None if self._packing and kind == "parquet" else kind

    @property
    def _wants_one_column(self) -> bool:
        return len(self.columns) == 1

    @property
    def _expected(self) -> str:
        lines = ", or .txt with one text per line" if self._wants_one_column else ""
        return f"{', '.join(FORMATS)}{lines}; text formats may be compressed (.gz, .xz)"

    def _read(self) -> Iterator[Record]:
        match self._kind:
            case "parquet":
                return self._parquet()
            case "json":
                return self._json_lines(self._text())
            case "lines":
                lines = enumerate(self._text().split("\n"), start=1)
                return (Record(number, (line.rstrip("\r"),)) for number, line in lines if line.strip())
            case "delimited":
                return self._delimited(self._text())
        ending = self._ending + self._packing or "(none)"
        remedy = SAVE_AS_CSV if self._ending in WORKBOOK_ENDINGS else "Rename or convert the file."
        raise self.problem(f"the ending {ending} is not known. Expected {self._expected}. {remedy}")

    def _text(self) -> str:
        """Read the content of a text file.

        Raises:
            TrainingError: the file cannot be decompressed, is a workbook, is not UTF-8, or has NUL bytes.
        """
        try:
            with OPENERS.get(self._packing, open)(self.path, "rb") as file:
                content: bytes = file.read()
        except DAMAGED as error:
            raise self.problem(f"cannot be decompressed ({error}). Copy or compress the file again.") from error
        if content.startswith(WORKBOOK_STARTS):
            raise self.problem(f"is an Excel workbook or another archive, not text. {SAVE_AS_CSV}")
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.problem(f"is UTF-16, expected UTF-8. {self._converted('UTF-16')}")
        if (position := content.find(b"\0")) >= 0:
            raise self._at(
                1 + content.count(b"\n", 0, position),
                "has a NUL byte: the file is damaged or has another format. To remove NUL bytes: "
                + self._copied("tr -d '\\000'", "clean"),
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            before = content[max(error.start - 20, 0) : error.start].decode("utf-8", "replace").rpartition("\n")[2]
            raise self._at(
                line,
                f"is not UTF-8: byte {content[error.start]:#x} after {before!r}. {self._converted('WINDOWS-1252')}",
            ) from error

    def _converted(self, encoding: str) -> str:
        command = self._copied(f"iconv -f {encoding} -t UTF-8", "utf8")
        return f"Convert the file (Excel: save as `CSV UTF-8`), for example: {command}"

    def _copied(self, command: str, prefix: str) -> str:
        """Make a shell command that writes a decompressed copy of the file into the current folder."""
        source, copy = shlex.quote(str(self.path)), f"{prefix}-{self.path.name.removesuffix(self.path.suffix)}"
        if self._packing:
            unpack = {".gz": "gzip", ".xz": "xz"}[self._packing]
            return f"{unpack} -dc <{source} | {command} >{shlex.quote(copy)}"
        return f"{command} <{source} >{shlex.quote(copy + self.path.suffix)}"

    def _names(self, names: Sequence[str], line: int | None = None, hint: str = "") -> list[str]:
        """Return the names of the wanted columns in the file.

        Args:
            names: names of all columns.
            line: line of the record with these names; None if they are the names of the whole file.
            hint: another remedy if a column is missing.

        Raises:
            TrainingError: a column is missing or ambiguous.
        """
        if self._wants_one_column and len(names) == 1:
            return list(names)
        if missing := {option: name for option, name in self.columns.items() if name not in names}:
            existing = ", ".join(f"`{name:.40}`" for name in names[:20]) or "none"
            options = " ".join(f"{option} NAME" for option in missing)
            raise self._at(
                line,
                f"has no column {' and no '.join(f'`{name}`' for name in missing.values())}; it has {existing}. Name "
                f"the column: {options}{hint}",
            )
        wanted = list(self.columns.values())
        if duplicates := [name for name in wanted if names.count(name) > 1]:
            raise self._at(line, f"has more than one column `{duplicates[0]}`. Rename the others.")
        return wanted

    def _delimited(self, text: str) -> Iterator[Record]:
        """Parse the records of CSV or TSV, quoted as in RFC 4180."""
        csv.field_size_limit(LONGEST_FIELD)
        first = next(io.StringIO(text, newline=""), "")
        if not first.strip():
            raise self.problem("has no first line with the names of the columns.")
        if re.fullmatch(r'"?sep=.?"?', first.strip("\r\n")):
            raise self.problem(
                f"has the first line {first.strip()!r}, which is for Excel only. Remove this line, for example: "
                + self._copied("tail -n +2", "clean")
            )
        delimiter = self._delimiter(first)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line, header, names = 1, list[str](), list[str]()
        rows: list[tuple[int, list[str]]] = []
        try:
            for fields in reader:
                if not header:
                    header = [name.strip() for name in fields]
                    header_line = delimiter.join(self.columns.values())
                    hint = f"; if the first line is a text, insert a line with the columns' names: {header_line}"
                    names = self._names(header, hint=hint)
                elif fields:
                    self._check_fields(line, fields, header, delimiter)
                    rows.append((line, fields))
                line = reader.line_num + 1
        except csv.Error as error:
            raise self._at(
                line,
                f"has a quote that is not closed, or a quote within a field ({error}). Enclose a field with a quote, a "
                f'line break or a delimiter in quotes, and double each quote in it: "she said ""no""".',
            ) from error
        if self.labels:
            self._check_swallowed(rows, header, delimiter, header.index(self.labels))
        positions = [header.index(name) for name in names]
        for line, fields in rows:
            yield Record(line, tuple(fields[position] for position in positions))

    def _delimiter(self, first: str) -> str:
        """Return the ending's delimiter, or another one if only that one finds the wanted columns in the first line."""
        usual = "\t" if self._ending == ".tsv" else ","

        def has_all(candidate: str) -> bool:
            try:
                names = {name.strip() for name in next(csv.reader([first], delimiter=candidate))}
            except csv.Error:
                return False
            return set(self.columns.values()) <= names

        return next((candidate for candidate in (usual, *DELIMITERS) if has_all(candidate)), usual)

    def _check_fields(self, line: int, fields: Sequence[str], header: Sequence[str], delimiter: str) -> None:
        if len(fields) != len(header):
            raise self._at(
                line,
                f"has {len(fields)} field{'s' * (len(fields) != 1)}, where the first line has {len(header)}, separated "
                f"by {DELIMITERS[delimiter]}. Enclose a text that contains the delimiter in quotes.",
            )

    def _check_swallowed(
        self, rows: Sequence[tuple[int, list[str]]], header: Sequence[str], delimiter: str, label: int
    ) -> None:
        """Check for rows inside a quoted field, which come from a quote that opens in one row and closes in another.

        A row is told from a line of prose by its number of fields and its label: prose has a space after a comma.
        """
        usual = {fields[label].strip() for _, fields in rows}
        for line, fields in rows:
            for lines in (field.split("\n") for field in fields if "\n" in field):
                for offset, inner in enumerate(lines):
                    inner_fields = inner.rstrip("\r").split(delimiter)
                    if len(inner_fields) == len(header) and inner_fields[label].strip('"') in usual - {""}:
                        raise self._at(
                            line,
                            f"has a quoted field that contains other rows: line {line + offset}, {inner[:60]!r}, looks "
                            f"like a row. Close the quote, or double a quote that belongs to the text.",
                        )

    def _json_lines(self, text: str) -> Iterator[Record]:
        """Parse the records of JSON lines: an object in each line that is not blank."""
        kinds = "an object, or a string," if self._wants_one_column else "an object"
        if re.match(r"\s*\[\s*\{", text):
            raise self.problem(
                f"is a JSON array; expected JSON lines, {kinds} in each line. Convert it, for example: "
                + self._copied(f"{shlex.quote(sys.executable)} -c {shlex.quote(_ARRAY_TO_LINES)}", "lines")
            )
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._at(number, f"is not JSON ({error}). Expected {kinds} in each line.") from error
            if self._wants_one_column and isinstance(value, str):
                yield Record(number, (value,))
            elif isinstance(value, dict):
                yield Record(number, tuple(value[name] for name in self._names(list(value), number)))
            else:
                raise self._at(number, f"is {type(value).__name__}; expected {kinds} in each line.")

    def _parquet(self) -> Iterator[Record]:
        """Read the records of Parquet."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            install = f"{shlex.quote(sys.executable)} -m pip install pyarrow"
            raise self.problem(f"needs the package pyarrow, which is not installed: {install}") from error
        try:
            names = self._names(parquet.read_schema(self.path).names)
            table = parquet.read_table(self.path, columns=names)
            columns = [table.column(name).to_pylist() for name in names]
        except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # such as a date out of range
            raise self.problem(f"cannot be read as Parquet ({error}).") from error
        for number, values in enumerate(zip(*columns, strict=True), start=1):
            yield Record(number, values)


def as_string(value: Any) -> str | None:
    """Spell a value of JSON lines or Parquet as in CSV; None if it is blank or of another type.

    A whole number has no decimal point: a column of whole numbers with gaps has the type of decimal numbers.
    """
    match value:
        case str():
            return value if value.strip() else None
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return None
        case float() if value.is_integer():
            return str(int(value))
        case int() | float() | Decimal():
            return str(value)
    return None


def listed(values: Sequence[Any]) -> str:
    """List the first values, and the number of the others."""
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
