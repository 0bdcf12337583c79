"""A user's labelled texts: CSV, TSV, JSON lines or Parquet, checked before anything is trained.

Every problem is told with the line (Parquet: the row) of the file, and with what to do about it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from handler.limits import Limits
from training.data import copies_of
from training.errors import TrainingError
from training.splits import SPLITS, Split
from training.tables import SHOWN, Record, Source, listed

FEWEST_ROWS: Final = 30
FEWEST_TEXTS: Final = 3
"""Of one label: one for each split."""

FEW_TEXTS: Final = 20
"""Of one label, under which its figures say little."""

MOST_LABELS: Final = 200
SPLIT_NAMES: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}


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
        path: see `training.tables.Source`.

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
    """The records as a table.

    Raises:
        TrainingError: too few of them, or a text, label or split that cannot be.
    """
    if len(records) < FEWEST_ROWS:
        raise source.problem(f"has {len(records)} rows; at least {FEWEST_ROWS} are needed to train and to measure.")
    lines = [record.line for record in records]
    texts, labels, *splits = zip(*(record.values for record in records), strict=True)
    labels = tuple(map(_label, labels))
    source.refuse(
        (line for line, label in zip(lines, labels, strict=True) if label is None),
        f"no label that can be read (column `{columns.label}`: a string, a whole number or a boolean)",
        "Fill them in or remove these rows: a text without a label can be neither trained on nor measured.",
    )
    source.refuse(
        (line for line, text in zip(lines, texts, strict=True) if not isinstance(text, str) or not text.strip()),
        f"no text (column `{columns.text}`)",
        "Fill them in or remove these rows.",
    )
    longest = Limits().max_text_characters
    source.refuse(
        (line for line, text in zip(lines, texts, strict=True) if len(text) > longest),
        f"a text of more than {longest:,} characters, which a server does not take either",
        "Shorten them, or cut each into several rows.",
    )
    rows = pd.DataFrame({"text": texts, "label": labels, "line": lines})
    if splits:
        rows["split"] = _splits(source, columns, lines, splits[0])
    return Table(rows, tuple(_warnings(source, columns, rows)))


def _splits(source: Source, columns: Columns, lines: Sequence[int], splits: Sequence[Any]) -> list[Split]:
    found = [SPLIT_NAMES.get(str(split).strip().lower()) for split in splits]
    source.refuse(
        (line for line, split in zip(lines, found, strict=True) if split is None),
        f"another split than {', '.join(SPLIT_NAMES)} (column `{columns.split}`)",
        "Rename them, or leave --split-column out: then the split is made here.",
    )
    return [split for split in found if split]


def _warnings(source: Source, columns: Columns, rows: pd.DataFrame) -> Iterator[str]:
    """What is wrong with the labels and stands in nobody's way.

    Raises:
        TrainingError: one label alone, or one with too few texts, or too many labels.
    """
    copies = copies_of(rows["text"])
    texts = copies.groupby(rows["label"]).nunique().sort_values()
    if len(texts) == 1:
        raise source.problem(
            f"has one label, {texts.index[0]!r}, in all {len(rows):,} rows; expected two or more in the column "
            f"`{columns.label}`."
        )
    if len(texts) > MOST_LABELS:
        raise source.problem(
            f"has {len(texts):,} different labels, for example {', '.join(map(repr, texts.index[:3]))}; at most "
            f"{MOST_LABELS} are trained. Is `{columns.label}` the column of the labels?"
        )
    if rare := [str(label) for label in texts.index if texts[label] < FEWEST_TEXTS]:
        places = {label: list(rows.loc[rows["label"] == label, "line"]) for label in rare}
        told = "; ".join(f"{label!r} {source.unit} {listed(places[label])}" for label in rare[:SHOWN])
        more = f"; and {len(rare) - SHOWN} labels more" if len(rare) > SHOWN else ""
        raise source.problem(
            f"has labels with fewer than {FEWEST_TEXTS} different texts, one for each of the splits "
            f"{', '.join(SPLITS)}: {told}{more}. Is it a slip of the pen? Otherwise add texts, give these rows "
            f"another label, or remove them."
        )
    if few := [f"{label!r} {texts[label]}" for label in texts.index if texts[label] < FEW_TEXTS]:
        yield f"labels with fewer than {FEW_TEXTS} different texts, whose figures say little: {listed(few)}"
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(texts.index):
        alike["".join(str(label).casefold().split())].append(repr(label))
    if same := [" and ".join(names) for names in alike.values() if len(names) > 1]:
        yield f"labels that differ in capitals or spaces alone, and are trained apart: {listed(same)}"
    different = rows["label"].groupby(copies).transform("nunique") > 1
    if different.any():
        lines = list(rows.loc[different, "line"])
        yield (
            f"{len(lines):,} rows are copies of a text (by letters and digits) whose copies have different labels, "
            f"{source.unit} {listed(lines)}: no model can be right on all of them. Give the copies one label, or "
            f"remove them"
        )


def _label(value: Any) -> str | None:
    """A label as a string; None if it is blank or cannot be one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, int):
        return str(value)
    return " ".join(value.split()) or None if isinstance(value, str) else None
