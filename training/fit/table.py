"""A user's labelled texts, read from CSV, TSV, JSON lines or Parquet and checked before training.

Each error names the line of the file (Parquet: the row) and a remedy.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from handler.limits import Limits
from training.data import copies_of
from training.errors import TrainingError
from training.splits import SPLITS, Split
from training.tables import SHOWN, Record, Source, as_string, listed

MIN_ROWS: Final = 30
MIN_LABEL_TEXTS: Final = 3
"""Minimum number of different texts of a label: one for each split."""

FEW_LABEL_TEXTS: Final = 20
"""Number of different texts of a label below which its figures are not reliable."""

MAX_LABELS: Final = 200
OTHER_LANGUAGES: Final = (
    "`fit` is made for English: its teacher was trained on English texts, and its tokenizer separates words at spaces. "
    "For another language, train a learner with fastai and `export` it. If the language has no spaces between words, "
    "use fastai's SentencePieceTokenizer"
)
ONE_LABEL: Final = (
    "`fit` trains one label for each text. For several labels, or for a number, train a learner with fastai and "
    "`export` it."
)

SPLIT_NAMES: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
"""Splits by the names that a file may use for them."""


@dataclass(frozen=True)
class Columns:
    """The names of a file's columns."""

    text: str = "text"
    label: str = "label"
    split: str | None = None
    """None if the file has no splits."""


@dataclass(frozen=True)
class Table:
    """A file's labelled texts."""

    rows: pd.DataFrame
    """A table with the columns `text`, `label` and `line`, and `split` if the file has splits."""

    warnings: tuple[str, ...]
    """Problems of the data that do not prevent training."""


def read_table(path: Path, columns: Columns) -> Table:
    """Read and check a file of labelled texts.

    Args:
        path: see `training.tables.Source`.
        columns: names of the file's columns.

    Raises:
        TrainingError: a problem with the file, its columns or its rows.
    """
    if len({columns.text, columns.label, columns.split}) < 3:
        raise TrainingError("--text-column, --label-column and --split-column: expected different columns.")
    wanted = {"--text-column": columns.text, "--label-column": columns.label}
    if columns.split:
        wanted["--split-column"] = columns.split
    source = Source("--data", path, wanted, labels=columns.label)
    return _checked(source, columns, source.records())


def _checked(source: Source, columns: Columns, records: Sequence[Record]) -> Table:
    """Check the records and return them as a table.

    Raises:
        TrainingError: there are too few records, or a text, label or split is invalid.
    """
    if len(records) < MIN_ROWS:
        raise source.problem(f"has {len(records)} rows; training and evaluation need at least {MIN_ROWS}.")
    lines = [record.line for record in records]
    texts, labels, *splits = zip(*(record.values for record in records), strict=True)
    source.refuse(
        (line for line, label in zip(lines, labels, strict=True) if isinstance(label, list | dict)),
        f"a label that is a list or an object (column `{columns.label}`)",
        ONE_LABEL,
    )
    labels, texts = tuple(map(_label, labels)), tuple(map(as_string, texts))
    source.refuse(
        (line for line, label in zip(lines, labels, strict=True) if label is None),
        f"no valid label (column `{columns.label}`: a string, a number or a boolean)",
        "Add the labels or remove these rows: a text without a label can be used neither to train nor to evaluate.",
    )
    source.refuse(
        (line for line, text in zip(lines, texts, strict=True) if text is None),
        f"no text (column `{columns.text}`: a string or a number)",
        "Add the texts or remove these rows.",
    )
    longest = Limits().max_text_characters
    source.refuse(
        (line for line, text in zip(lines, texts, strict=True) if len(text) > longest),
        f"a text of more than {longest:,} characters, which is also the limit of the server",
        "Shorten the texts, or divide each into several rows.",
    )
    rows = pd.DataFrame({"text": texts, "label": labels, "line": lines})
    if splits:
        rows["split"] = _splits(source, columns, lines, splits[0])
    return Table(rows, tuple(_warnings(source, columns, rows)))


def _splits(source: Source, columns: Columns, lines: Sequence[int], splits: Sequence[Any]) -> list[Split]:
    known = [SPLIT_NAMES.get(str(split).strip().lower()) for split in splits]
    source.refuse(
        (line for line, split in zip(lines, known, strict=True) if split is None),
        f"an unknown split (column `{columns.split}`; expected {', '.join(SPLIT_NAMES)})",
        "Rename the splits, or omit --split-column to split the file here.",
    )
    return [split for split in known if split]


def _warnings(source: Source, columns: Columns, rows: pd.DataFrame) -> Iterator[str]:
    """Check the labels, and yield a warning for each problem that does not prevent training.

    Raises:
        TrainingError: there is only one label, there are too many labels, or a label has too few texts.
    """
    copies = copies_of(rows["text"])
    texts = copies.groupby(rows["label"]).nunique().sort_values()
    if len(texts) == 1:
        raise source.problem(
            f"has one label, {texts.index[0]!r}, in all {len(rows):,} rows; expected two or more in the column "
            f"`{columns.label}`."
        )
    if len(texts) > MAX_LABELS:
        raise source.problem(
            f"has {len(texts):,} different labels, for example {', '.join(map(repr, texts.index[:3]))}; the limit "
            f"is {MAX_LABELS}. Is `{columns.label}` the column of the labels? {ONE_LABEL}"
        )
    if rare := [str(label) for label in texts.index if texts[label] < MIN_LABEL_TEXTS]:
        lines_of = {label: list(rows.loc[rows["label"] == label, "line"]) for label in rare}
        shown = "; ".join(f"{label!r} {source.unit} {listed(lines_of[label])}" for label in rare[:SHOWN])
        more = f"; and {len(rare) - SHOWN} more labels" if len(rare) > SHOWN else ""
        raise source.problem(
            f"has labels with fewer than {MIN_LABEL_TEXTS} different texts, one for each of the splits "
            f"{', '.join(SPLITS)}: {shown}{more}. Are they typing errors? Otherwise add texts, change the label of "
            f"these rows, or remove them. {ONE_LABEL}"
        )
    if not is_mostly_latin(rows["text"]):
        yield f"most letters of the texts are not Latin. {OTHER_LANGUAGES}"
    if few := [f"{label!r} {texts[label]}" for label in texts.index if texts[label] < FEW_LABEL_TEXTS]:
        yield f"labels with fewer than {FEW_LABEL_TEXTS} different texts have unreliable figures: {listed(few)}"
    similar: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(texts.index):
        similar["".join(unicodedata.normalize("NFKC", label).casefold().split())].append(label)
    if groups := [" and ".join(_distinct(labels)) for labels in similar.values() if len(labels) > 1]:
        yield (
            "labels that differ only in capitals, spaces or the Unicode form of a character are trained as different "
            f"labels: {listed(groups)}"
        )
    if several := [
        repr(label) for label in texts.index if len(parts := _parts(label)) > 1 and parts & set(texts.index)
    ]:
        yield f"labels that list other labels are trained as labels of their own: {listed(several)}. {ONE_LABEL[:-1]}"
    different = rows["label"].groupby(copies).transform("nunique") > 1
    if different.any():
        lines = list(rows.loc[different, "line"])
        nearly = "nearly " * (rows.loc[different, "text"].nunique() > copies[different].nunique())
        yield (
            f"{len(lines):,} rows have {nearly}the same text as a row with another label, {source.unit} "
            f"{listed(lines)}: no model can predict all of them. Give these rows the same label, or remove some of them"
        )


def _distinct(labels: Sequence[str]) -> list[str]:
    """Quote labels, with escapes if some of them look the same."""
    look_the_same = len({unicodedata.normalize("NFC", label) for label in labels}) < len(labels)
    return [ascii(label) if look_the_same else repr(label) for label in labels]


def _parts(label: str) -> set[str]:
    """Split a label at the characters that usually separate several labels of a text."""
    return {part.strip() for part in re.split(r"[,;|]", label)}


def is_mostly_latin(texts: Iterable[str]) -> bool:
    """Return whether at least half of the letters are Latin; English texts have other letters in names only."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    letters = {character: count for character, count in counts.items() if character.isalpha()}
    latin = sum(count for letter, count in letters.items() if unicodedata.name(letter, "").startswith("LATIN"))
    return 2 * latin >= sum(letters.values())


def _label(value: Any) -> str | None:
    """Convert a label to a string without surplus spaces; None if it is blank or of another type."""
    label = as_string(value)
    return label and " ".join(label.split())
