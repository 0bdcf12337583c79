"""The records of a user's file: CSV, TSV, JSON lines, Parquet, or texts alone, one a line.

Every problem is told with the option that names the file, the line (Parquet: the row) and the way out. Files are read
with Python's own library, Parquet with pyarrow: an archive is built where only serving's packages are installed.
"""

import csv
import gzip
import io
import json
import lzma
import shlex
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from handler.exported import is_unicode
from training.errors import TrainingError

FORMATS: Final = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
}
DELIMITERS: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

TEXT_ENDINGS: Final = (".txt", "")
"""Of files with one text a line, which are read where one column is wanted."""

OPENERS: Final[Mapping[str, Any]] = {".gz": gzip.open, ".xz": lzma.open}
"""What opens a packed file, by its last ending in lower case."""

DAMAGED: Final = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)
"""What reading a packed file raises if it is damaged."""

LONGEST_FIELD: Final = 2**31 - 1
"""Characters in a field of a CSV file. Python's own limit, 131,072, is less than a long document, or than what follows
a quote that is never closed, which is told as what it is."""

SHOWN: Final = 5
"""Lines or labels that a message names at most."""


@dataclass(frozen=True)
class Record:
    """A record of a file."""

    line: int
    """Its first line in the file, from 1; of Parquet the row."""

    values: tuple[Any, ...]
    """Of the wanted columns, in their order; strings, in JSON lines and Parquet anything."""


@dataclass(frozen=True)
class Source:
    """A file that an option of the command line names."""

    option: str
    """The option that names it: `--data`."""

    path: Path
    """Its ending says its format: one of `FORMATS`, those of text also with `.gz` or `.xz` behind."""

    columns: Mapping[str, str]
    """The different names of the wanted columns, by the options that name them. If one column is wanted, a file with
    one column may name it otherwise, JSON lines may be strings, and the file may have one text a line."""

    labels: str | None = None
    """The column with few different values, which show rows that a quote has swallowed."""

    def records(self) -> list[Record]:
        """All records of the file. Blank lines are none.

        Raises:
            TrainingError: no such file, a form that the ending does not promise, no such column, or a value that is not
                Unicode.
        """
        if not self.path.is_file():
            raise self.problem(f"no such file; expected {self._expected}.")
        records = list(self._read())
        self.refuse(
            (
                record.line
                for record in records
                if any(isinstance(value, str) and (not is_unicode(value) or "\0" in value) for value in record.values)
            ),
            "a NUL character or half of a surrogate pair, which no text has",
            "Remove them.",
        )
        return records

    @property
    def unit(self) -> str:
        """Of a record's place: `line` or `row`."""
        return "row" if self._kind == "parquet" else "line"

    def refuse(self, lines: Iterable[int], what: str, way_out: str) -> None:
        """
        Raises:
            TrainingError: there are such lines.
        """
        if found := list(lines):
            count = f"{len(found):,} rows have" if len(found) > 1 else "A row has"
            raise self.problem(f"{self.unit} {listed(found)}: {count} {what}. {way_out}")

    def problem(self, what: str) -> TrainingError:
        """An error of the file."""
        return TrainingError(f"{self.option} {self.path}: {what}")

    def _at(self, line: int | None, what: str) -> TrainingError:
        return self.problem(f"{self.unit} {line} {what}" if line else what)

    @property
    def _packing(self) -> str:
        suffix = self.path.suffix.lower()
        return suffix if suffix in OPENERS else ""

    @property
    def _ending(self) -> str:
        return (Path(self.path.stem).suffix if self._packing else self.path.suffix).lower()

    @property
    def _kind(self) -> str | None:
        if self._wants_one and self._ending in TEXT_ENDINGS:
            return "lines"
        kind = FORMATS.get(self._ending)
        return None if self._packing and kind == "parquet" else kind

    @property
    def _wants_one(self) -> bool:
        return len(self.columns) == 1

    @property
    def _expected(self) -> str:
        lines = ", or .txt with one text a line" if self._wants_one else ""
        return f"{', '.join(FORMATS)}{lines}; the text formats also with .gz or .xz behind"

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
        raise self.problem(f"the ending {ending} is not known. Expected {self._expected}. Rename or convert the file.")

    def _text(self) -> str:
        """The file's content.

        Raises:
            TrainingError: it cannot be unpacked, is not UTF-8, or has NUL bytes.
        """
        try:
            with OPENERS.get(self._packing, open)(self.path, "rb") as file:
                content: bytes = file.read()
        except DAMAGED as error:
            raise self.problem(f"does not unpack ({error}): copy or compress it once more.") from error
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.problem(f"is UTF-16, expected UTF-8. {self._converted('UTF-16')}")
        if (place := content.find(b"\0")) >= 0:
            raise self._at(
                1 + content.count(b"\n", 0, place),
                "has a NUL byte, which no text file has: the file is damaged or of another format. To remove them: "
                + self._copied("tr -d '\\000'", "clean"),
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            before = content[max(error.start - 20, 0) : error.start].decode("utf-8", "replace").rpartition("\n")[2]
            raise self._at(
                line,
                f"is not UTF-8: byte {content[error.start]:#x} behind {before!r}. {self._converted('WINDOWS-1252')}",
            ) from error

    def _converted(self, encoding: str) -> str:
        command = self._copied(f"iconv -f {encoding} -t UTF-8", "utf8")
        return f"Convert it (Excel: save as `CSV UTF-8`), for example: {command}"

    def _copied(self, command: str, prefix: str) -> str:
        """A shell's command line that writes a copy of the file, not packed, in the folder where it is run."""
        source, copy = shlex.quote(str(self.path)), f"{prefix}-{self.path.name.removesuffix(self.path.suffix)}"
        if self._packing:
            unpack = {".gz": "gzip", ".xz": "xz"}[self._packing]
            return f"{unpack} -dc <{source} | {command} >{shlex.quote(copy)}"
        return f"{command} <{source} >{shlex.quote(copy + self.path.suffix)}"

    def _names(self, names: Sequence[str], line: int | None = None, hint: str = "") -> list[str]:
        """What the wanted columns are called in the file.

        Args:
            names: of all its columns.
            line: of the record that has them; None if they are the whole file's.
            hint: another way out if one is missing.
        """
        if self._wants_one and len(names) == 1:
            return list(names)
        if missing := {option: name for option, name in self.columns.items() if name not in names}:
            found = ", ".join(f"`{name:.40}`" for name in names[:20]) or "none"
            ways = " ".join(f"{option} NAME" for option in missing)
            raise self._at(
                line,
                f"has no column {' and no '.join(f'`{name}`' for name in missing.values())}; it has {found}. Name the "
                f"column: {ways}{hint}",
            )
        wanted = list(self.columns.values())
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise self._at(line, f"has more than one column `{twice[0]}`. Rename the others.")
        return wanted

    def _delimited(self, text: str) -> Iterator[Record]:
        """The records of CSV or TSV, quoted as in RFC 4180."""
        csv.field_size_limit(LONGEST_FIELD)
        first = next(io.StringIO(text, newline=""), "")
        if not first.strip():
            raise self.problem("has no first line with the names of its columns.")
        delimiter = self._delimiter(first)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line, header, names = 1, list[str](), list[str]()
        rows: list[tuple[int, list[str]]] = []
        try:
            for fields in reader:
                if not header:
                    header = [name.strip() for name in fields]
                    above = delimiter.join(self.columns.values())
                    hint = f"; if the first line is a text, put a line with the columns' names above it: {above}"
                    names = self._names(header, hint=hint)
                elif fields:
                    self._check_fields(line, fields, header, delimiter)
                    rows.append((line, fields))
                line = reader.line_num + 1
        except csv.Error as error:
            raise self._at(
                line,
                f"has a quote that is not closed, or one within a field ({error}). A field that has a quote, a line "
                f'break or a delimiter stands in quotes, and a quote in it is written twice: "she said ""no""".',
            ) from error
        if self.labels:
            self._check_swallowed(rows, header, delimiter, header.index(self.labels))
        places = [header.index(name) for name in names]
        for line, fields in rows:
            yield Record(line, tuple(fields[place] for place in places))

    def _delimiter(self, first: str) -> str:
        """Another delimiter than the ending's, where the first line has the wanted columns by that one alone."""
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
                f"by {DELIMITERS[delimiter]}. A text with the delimiter in it stands in quotes.",
            )

    def _check_swallowed(
        self, rows: Sequence[tuple[int, list[str]]], header: Sequence[str], delimiter: str, label: int
    ) -> None:
        """A quote that opens in one row and closes in another makes one text of them all.

        A line of prose has a space behind a comma, a row has none.
        """
        usual = {fields[label].strip() for _, fields in rows}
        for line, fields in rows:
            for lines in (field.split("\n") for field in fields if "\n" in field):
                for behind, inner in enumerate(lines):
                    inside = inner.rstrip("\r").split(delimiter)
                    if len(inside) == len(header) and inside[label].strip('"') in usual - {""}:
                        raise self._at(
                            line,
                            f"has a quote that swallows other rows: line {line + behind}, {inner[:60]!r}, looks like a "
                            f"row of its own. Close the quote, or write a quote that belongs to the text twice.",
                        )

    def _json_lines(self, text: str) -> Iterator[Record]:
        """The records of JSON lines: an object in every line that is not blank."""
        kinds = "an object, or a string," if self._wants_one else "an object"
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self._at(number, f"is not JSON ({error}). Expected {kinds} in each line.") from error
            if self._wants_one and isinstance(found, str):
                yield Record(number, (found,))
            elif isinstance(found, dict):
                yield Record(number, tuple(found[name] for name in self._names(list(found), number)))
            else:
                raise self._at(number, f"is {type(found).__name__}; expected {kinds} in each line.")

    def _parquet(self) -> Iterator[Record]:
        """The records of Parquet."""
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
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self.problem(f"does not read as Parquet ({error}).") from error
        for number, values in enumerate(zip(*columns, strict=True), start=1):
            yield Record(number, values)


def listed(values: Sequence[Any]) -> str:
    """The first values, and how many more there are."""
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
