"""A user's labelled texts: CSV, TSV, JSON lines or Parquet, checked before anything is trained.

Every problem is told with the line (Parquet: the row) of the file, and with what to do about it.
"""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from handler.exported import is_unicode
from handler.limits import Limits
from training.data import copies_of, existing
from training.errors import TrainingError
from training.splits import SPLITS, Split

FEWEST_ROWS: Final = 30
FEWEST_TEXTS: Final = 3
"""Of one label: one for each split."""

FEW_TEXTS: Final = 20
"""Of one label, under which its figures say little."""

MOST_LABELS: Final = 200
SHOWN: Final = 5
"""Lines or labels that a message names at most."""

DELIMITERS: Final = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
SPLIT_NAMES: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}

csv.field_size_limit(2**31 - 1)  # a quote that is never closed is told as what it is


@dataclass(frozen=True)
class Columns:
    """The names of a file's columns."""

    text: str = "text"
    label: str = "label"
    split: str | None = None
    """None: the file has no splits of its own."""


@dataclass(frozen=True)
class Table:
    """A file's labelled texts."""

    rows: pd.DataFrame
    """The columns `text`, `label` and `line`, and `split` where the file has splits."""

    warnings: tuple[str, ...]
    """What is wrong with the data and stands in nobody's way."""


def read_table(path: Path, columns: Columns) -> Table:
    """Read and check a file of labelled texts.

    Args:
        path: its ending says its format: `.csv`, `.tsv`, `.jsonl`, `.ndjson` (those with `.gz` or `.xz`, too) or
            `.parquet`.

    Raises:
        TrainingError: a problem with the file, its columns or its rows.
    """
    if len({columns.text, columns.label, columns.split}) < 3:
        raise TrainingError("--text-column, --label-column and --split-column: expected different columns.")
    existing(path, "; expected CSV, TSV, JSON lines or Parquet with a column of texts and one of labels.")
    packed = path.suffix.lower() if path.suffix.lower() in (".gz", ".xz") else ""
    ending = (Path(path.stem).suffix if packed else path.suffix).lower()
    kind = FORMATS.get(ending)
    if kind is None or (packed and kind == "parquet"):
        raise TrainingError(
            f"{path}: the ending {ending + packed or '(none)'} is not known. Expected {', '.join(FORMATS)}, the text "
            f"formats also with .gz or .xz behind; rename or convert the file."
        )
    reader = _Reader(path, columns, "row" if kind == "parquet" else "line")
    if kind == "parquet":
        records = reader.parquet()
    else:
        text = reader.text(packed)
        records = reader.json_lines(text) if kind == "json" else reader.delimited(text, "\t" if kind == "tsv" else ",")
    return reader.checked(list(records))


Record = tuple[int, Any, Any, Any]
"""Line, text, label, split."""


@dataclass(frozen=True)
class _Reader:
    path: Path
    columns: Columns
    unit: str
    """Of a record's place: `line` or `row`."""

    def text(self, packed: str) -> str:
        """The file's content.

        Raises:
            TrainingError: it cannot be unpacked, is not UTF-8, or has NUL bytes.
        """
        opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(packed, open)
        try:
            with opened(self.path, "rb") as file:
                content: bytes = file.read()
        except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
            raise self.problem(f"does not unpack ({error}): copy or compress it once more.") from error
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise self.problem(f"is UTF-16, expected UTF-8. {self._convert('UTF-16')}")
        if (place := content.find(b"\0")) >= 0:
            raise self.at(
                [1 + content.count(b"\n", 0, place)],
                "has a NUL byte, which no text file has: the file is damaged or of another format. To remove them: "
                f"tr -d '\\000' <{self.path.name} >clean{''.join(self.path.suffixes)}",
            )
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = 1 + content.count(b"\n", 0, error.start)
            before = content[max(error.start - 20, 0) : error.start].decode("utf-8", "replace").rpartition("\n")[2]
            raise self.at(
                [line],
                f"is not UTF-8: byte {content[error.start]:#x} behind {before!r}. {self._convert('WINDOWS-1252')}",
            ) from error

    def _convert(self, encoding: str) -> str:
        name = self.path.name
        return f"Convert it (Excel: save as `CSV UTF-8`), for example: iconv -f {encoding} -t UTF-8 {name} >utf8-{name}"

    def delimited(self, text: str, delimiter: str) -> Iterator[Record]:
        """The records of CSV or TSV, quoted as in RFC 4180."""
        first = text.partition("\n")[0]
        if not first.strip():
            raise self.problem("has no first line with the names of its columns.")
        delimiter = self._delimiter(first, delimiter)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        line, header = 1, list[str]()
        rows: list[tuple[int, list[str]]] = []
        try:
            for fields in reader:
                if not header:
                    header = [name.strip() for name in fields]
                    self._check_columns(header, first)
                elif fields:
                    self._check_fields(line, fields, header, delimiter)
                    rows.append((line, fields))
                line = reader.line_num + 1
        except csv.Error as error:
            raise self.at(
                [line],
                f"has a quote that is not closed, or one within a field ({error}). A field that has a quote, a line "
                f'break or a delimiter stands in quotes, and a quote in it is written twice: "she said ""no""".',
            ) from error
        places = [header.index(name) for name in self._wanted()]
        self._check_swallowed(rows, header, delimiter, places)
        for line, fields in rows:
            yield _record(line, [fields[place] for place in places])

    def _delimiter(self, first: str, delimiter: str) -> str:
        """Another delimiter than the ending's, where the first line has the wanted columns by that one alone."""

        def has_all(candidate: str) -> bool:
            try:
                names = {name.strip() for name in next(csv.reader([first], delimiter=candidate))}
            except csv.Error:
                return False
            return set(self._wanted()) <= names

        return next((candidate for candidate in (delimiter, *DELIMITERS) if has_all(candidate)), delimiter)

    def _wanted(self) -> list[str]:
        return [self.columns.text, self.columns.label, *([self.columns.split] if self.columns.split else [])]

    def _check_columns(self, header: Sequence[str], first: str) -> None:
        if missing := [name for name in self._wanted() if name not in header]:
            options = {self.columns.text: "--text-column", self.columns.label: "--label-column"}
            ways = " ".join(f"{options.get(name, '--split-column')} NAME" for name in missing)
            raise self.problem(
                f"has no column {' and no '.join(f'`{name}`' for name in missing)}; its first line has "
                f"{', '.join(f'`{name:.40}`' for name in header[:20])}. Name the column ({ways}); if the first line is "
                f"a text, put a line with the columns' names above it: {self.columns.text},{self.columns.label}"
            )
        if twice := [name for name in self._wanted() if list(header).count(name) > 1]:
            raise self.problem(f"has more than one column `{twice[0]}`. Rename the others.")

    def _check_fields(self, line: int, fields: Sequence[str], header: Sequence[str], delimiter: str) -> None:
        if len(fields) != len(header):
            raise self.at(
                [line],
                f"has {len(fields)} field{'s' * (len(fields) != 1)}, where the first line has {len(header)}, separated "
                f"by {DELIMITERS[delimiter]}. A text with the delimiter in it stands in quotes.",
            )

    def _check_swallowed(
        self, rows: Sequence[tuple[int, list[str]]], header: Sequence[str], delimiter: str, places: Sequence[int]
    ) -> None:
        """A quote that opens in one row and closes in another makes one text of them all.

        A line of prose has a space behind a comma, a row has none.
        """
        label = places[1]
        usual = {fields[label].strip() for _, fields in rows}
        for line, fields in rows:
            for lines in (field.split("\n") for field in fields if "\n" in field):
                for behind, inner in enumerate(lines):
                    inside = inner.rstrip("\r").split(delimiter)
                    if len(inside) == len(header) and inside[label].strip('"') in usual - {""}:
                        raise self.at(
                            [line],
                            f"has a quote that swallows other rows: line {line + behind}, {inner[:60]!r}, looks like a "
                            f"row of its own. Close the quote, or write a quote that belongs to the text twice.",
                        )

    def json_lines(self, text: str) -> Iterator[Record]:
        """The records of JSON lines: an object in every line that is not blank."""
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise self.at([number], f"is not JSON ({error}). Expected an object in each line.") from error
            if not isinstance(found, dict):
                raise self.at([number], f"is {type(found).__name__}; expected a JSON object in each line.")
            if missing := [name for name in self._wanted() if name not in found]:
                raise self.at(
                    [number],
                    f"has no `{missing[0]}`; it has {', '.join(f'`{name:.40}`' for name in list(found)[:20])}. "
                    f"Name the keys with --text-column and --label-column.",
                )
            yield _record(number, [found[name] for name in self._wanted()])

    def parquet(self) -> Iterator[Record]:
        """The records of Parquet."""
        try:
            import pyarrow
            from pyarrow import parquet
        except ModuleNotFoundError as error:
            raise self.problem("needs the package pyarrow: pip install pyarrow.") from error
        try:
            names = parquet.read_schema(self.path).names
            self._check_columns(names, "")
            table = parquet.read_table(self.path, columns=self._wanted())
        except (pyarrow.ArrowException, OSError) as error:
            raise self.problem(f"does not read as Parquet ({error}).") from error
        columns = [table.column(name).to_pylist() for name in self._wanted()]
        for number, values in enumerate(zip(*columns, strict=True), start=1):
            yield _record(number, values)

    def checked(self, records: Sequence[Record]) -> Table:
        """The records as a table.

        Raises:
            TrainingError: too few of them, or a text, label or split that cannot be.
        """
        if len(records) < FEWEST_ROWS:
            raise self.problem(f"has {len(records)} rows; at least {FEWEST_ROWS} are needed to train and to measure.")
        labels = [(line, _label(label)) for line, _, label, _ in records]
        self._refuse(
            (line for line, label in labels if label is None),
            f"no label that can be read (column `{self.columns.label}`: a string, a whole number or a boolean)",
            "Fill them in or remove these rows: a text without a label can be neither trained on nor measured.",
        )
        self._refuse(
            (line for line, text, _, _ in records if not isinstance(text, str) or not text.strip()),
            f"no text (column `{self.columns.text}`)",
            "Fill them in or remove these rows.",
        )
        self._refuse(
            (
                line
                for (line, text, *_), (_, label) in zip(records, labels, strict=True)
                if not is_unicode(text) or not is_unicode(str(label)) or "\0" in text or "\0" in str(label)
            ),
            "a NUL character or half of a surrogate pair, which no text has",
            "Remove them from the text or the label.",
        )
        longest = Limits().max_text_characters
        self._refuse(
            (line for line, text, *_ in records if len(text) > longest),
            f"a text of more than {longest:,} characters, which a server does not take either",
            "Shorten them, or cut each into several rows.",
        )
        rows = pd.DataFrame(
            {
                "text": [text for _, text, *_ in records],
                "label": [label for _, label in labels],
                "line": [line for line, *_ in records],
            }
        )
        if self.columns.split:
            rows["split"] = self._splits(records)
        return Table(rows, tuple(self._labels_checked(rows)))

    def _splits(self, records: Sequence[Record]) -> list[Split]:
        found = [SPLIT_NAMES.get(str(split).strip().lower()) for *_, split in records]
        self._refuse(
            (line for (line, *_), split in zip(records, found, strict=True) if split is None),
            f"another split than {', '.join(SPLIT_NAMES)} (column `{self.columns.split}`)",
            "Rename them, or leave --split-column out: then the split is made here.",
        )
        return [split for split in found if split]

    def _labels_checked(self, rows: pd.DataFrame) -> Iterator[str]:
        """Warnings.

        Raises:
            TrainingError: one label alone, or one with too few texts, or too many labels.
        """
        copies = copies_of(rows["text"])
        texts = copies.groupby(rows["label"]).nunique().sort_values()
        if len(texts) == 1:
            raise self.problem(
                f"has one label, {texts.index[0]!r}, in all {len(rows):,} rows; expected two or more in the column "
                f"`{self.columns.label}`."
            )
        if len(texts) > MOST_LABELS:
            raise self.problem(
                f"has {len(texts):,} different labels, for example {', '.join(map(repr, texts.index[:3]))}; at most "
                f"{MOST_LABELS} are trained. Is `{self.columns.label}` the column of the labels?"
            )
        if rare := [str(label) for label in texts.index if texts[label] < FEWEST_TEXTS]:
            places = {label: list(rows.loc[rows["label"] == label, "line"]) for label in rare}
            told = "; ".join(f"{label!r} {self.unit} {_listed(places[label])}" for label in rare[:SHOWN])
            more = f"; and {len(rare) - SHOWN} labels more" if len(rare) > SHOWN else ""
            raise self.problem(
                f"has labels with fewer than {FEWEST_TEXTS} different texts, one for each of the splits "
                f"{', '.join(SPLITS)}: {told}{more}. Is it a slip of the pen? Otherwise add texts, give these rows "
                f"another label, or remove them."
            )
        if few := [f"{label!r} {texts[label]}" for label in texts.index if texts[label] < FEW_TEXTS]:
            yield f"labels with fewer than {FEW_TEXTS} different texts, whose figures say little: {_listed(few)}"
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for label in sorted(texts.index):
            alike["".join(str(label).casefold().split())].append(repr(label))
        if same := [" and ".join(names) for names in alike.values() if len(names) > 1]:
            yield f"labels that differ in capitals or spaces alone, and are trained apart: {_listed(same)}"
        different = rows["label"].groupby(copies).transform("nunique") > 1
        if different.any():
            lines = list(rows.loc[different, "line"])
            yield (
                f"{len(lines):,} rows are copies of a text (by letters and digits) whose copies have different labels, "
                f"{self.unit} {_listed(lines)}: no model can be right on all of them. Give the copies one label, or "
                f"remove them"
            )

    def _refuse(self, lines: Iterable[int], what: str, way_out: str) -> None:
        if found := list(lines):
            count = f"{len(found):,} rows have" if len(found) > 1 else "A row has"
            raise self.problem(f"{self.unit} {_listed(found)}: {count} {what}. {way_out}")

    def at(self, lines: Sequence[int], what: str) -> TrainingError:
        return self.problem(f"{self.unit} {_listed(lines)} {what}")

    def problem(self, what: str) -> TrainingError:
        return TrainingError(f"{self.path}: {what}")


def _record(line: int, values: Sequence[Any]) -> Record:
    """A record of the values of the wanted columns, the split's where there is one."""
    text, label, *split = values
    return line, text, label, split[0] if split else None


def _label(value: Any) -> str | None:
    """A label as a string; None if it is blank or cannot be one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, int):
        return str(value)
    return " ".join(value.split()) or None if isinstance(value, str) else None


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
