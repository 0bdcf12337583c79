"""Labelled texts of a run and their splits, read from Kaggle's `Tweets.csv` or from the `data.csv` of a run of `fit`.

A file of `fit` has its splits in a column. `Tweets.csv` is split as in an earlier published classifier of this data, so
that figures compare: two calls of scikit-learn's `train_test_split` on the rows in file order (test_size 0.1, then 0.11
of the rest, random_state 1), which give 11,726 / 1,450 / 1,464 of the 14,640 rows, not stratified.

This module needs NumPy only, so that `python -m training evaluate` runs with the packages of serving. The stages use a
pandas table of the same texts (`Dataset.table`).
"""

import csv
import hashlib
import io
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.splits import SPLITS, Split
from training.tables import LONGEST_FIELD, SAVE_AS_CSV, WORKBOOK_STARTS

if TYPE_CHECKING:
    import pandas as pd

TEXT_COLUMN: Final = "text"
LABEL_COLUMN: Final = "airline_sentiment"
CONFIDENCE_COLUMN: Final = "airline_sentiment_confidence"
AIRLINE_COLUMN: Final = "airline"

FIT_LABEL_COLUMN, SPLIT_COLUMN = "label", "split"
FIT_COLUMNS: Final = (TEXT_COLUMN, FIT_LABEL_COLUMN, SPLIT_COLUMN)
"""Columns of a file that `fit` has written."""

MIN_ROWS: Final = 30
MIN_LABELLED_TEXTS: Final = 10
"""Minimum number of additional labelled texts; a tenth of them is held out to measure training."""

_HOW_TO_FIT = """\
For your own file, with any column names and any labels, use the command `fit`, which also makes the splits:
    python -m training fit --data {csv} --text-column TEXT --label-column LABEL --to model_store/NAME"""

_OWN_FILE: Final = (
    "CSV with the columns `text`, `label` and `split` (train, validation or test), like the data.csv of a run of `fit`"
)

_KAGGLE_NAME: Final = "Tweets.csv"
_KAGGLE_COLUMNS: Final = {LABEL_COLUMN, CONFIDENCE_COLUMN, AIRLINE_COLUMN, "tweet_id"}
"""Columns of Kaggle's file that hardly another file has."""

_HOW_TO_DOWNLOAD = """\
Expected: Tweets.csv of Kaggle's "Twitter US Airline Sentiment" (14,640 rows, with the columns `text` and
`airline_sentiment`). To download it (needs a Kaggle account and its API token):
    pip install kaggle
    kaggle datasets download crowdflower/twitter-airline-sentiment --file Tweets.csv --unzip"""


@dataclass(frozen=True)
class LabelledText:
    """A row of a file of labelled texts."""

    text: str
    label: str | None
    """The label without surrounding spaces; None if it is blank."""

    confidence: float
    """Agreement of the label's annotators, 0 to 1; 1 if the file does not have it."""

    airline: str | None
    """The airline; None if the file does not have it."""

    split: Split


@dataclass(frozen=True)
class Dataset:
    """The labelled texts of one file."""

    file: Path
    sha256: str
    """SHA-256 of the file's bytes, in hexadecimal."""

    rows: tuple[LabelledText, ...]
    """The rows in file order."""

    def labelled(self, split: Split) -> list[LabelledText]:
        """Return the rows of one split.

        Raises:
            TrainingError: the split has no row, or a label in it is blank.
        """
        rows = [row for row in self.rows if row.split == split]
        _check_split(sum(row.label is None for row in rows), len(rows), split)
        return rows

    def is_labelled(self, split: Split) -> bool:
        """Return whether the split has rows, and no label in it is blank."""
        labels = [row.label for row in self.rows if row.split == split]
        return bool(labels) and None not in labels

    def table(self) -> "pd.DataFrame":
        """Return the rows as a pandas table with the columns `text`, `label`, `confidence`, `airline` and `split`."""
        import pandas as pd

        return pd.DataFrame(
            {
                "text": [row.text for row in self.rows],
                "label": pd.Series([row.label for row in self.rows], dtype="str"),
                "confidence": [row.confidence for row in self.rows],
                "airline": pd.Series([row.airline for row in self.rows], dtype="str"),
                "split": [row.split for row in self.rows],
            }
        )


def read_dataset(file: Path) -> Dataset:
    """Read a file of labelled texts: the columns are Kaggle's, or `FIT_COLUMNS`.

    Raises:
        TrainingError: the file is missing, is not CSV, lacks a column, has a blank text, or has too few rows to
            split them.
    """
    existing(file, f".\n{_expected(file)}")
    content = file.read_bytes()
    header, rows = _parse(file, content)
    is_fit = LABEL_COLUMN not in header and set(FIT_COLUMNS) <= set(header)
    label_column = FIT_LABEL_COLUMN if is_fit else LABEL_COLUMN
    wanted = (TEXT_COLUMN, LABEL_COLUMN) if _may_be_of_kaggle(file, header) else FIT_COLUMNS
    if not is_fit and (missing := [name for name in wanted if name not in header]):
        columns = ", ".join(f"`{name}`" for name in header[:20])
        raise TrainingError(
            f"{file} has no column {' and no '.join(f'`{name}`' for name in missing)}; "
            f"it has {columns}.\n{_expected(file, header)}\n{_HOW_TO_FIT.format(csv=file)}"
        )

    for number, fields in enumerate(rows, start=1):
        if len(fields) > len(header):
            raise _not_csv(file, f"row {number} has {len(fields)} fields, the first line has {len(header)}")

    def column(name: str) -> list[str]:
        """Return the values of a column; a row or a file without the column has blank values."""
        position = header.index(name) if name in header else len(header)
        return [fields[position] if position < len(fields) else "" for fields in rows]

    texts = column(TEXT_COLUMN)
    if blank := [index for index, text in enumerate(texts) if not text.strip()]:
        raise TrainingError(
            f"{file} has {len(blank)} rows with no text, the first at row {blank[0]}. Add them, or remove the rows."
        )
    if not is_fit and len(rows) < MIN_ROWS:
        raise TrainingError(
            f"{file} has {len(rows)} rows; at least {MIN_ROWS} are needed to split them.\n{_expected(file, header)}"
        )
    splits = _known_splits(file, column(SPLIT_COLUMN)) if is_fit else split_of_rows(len(rows)).tolist()
    values = (texts, column(label_column), column(CONFIDENCE_COLUMN), column(AIRLINE_COLUMN), splits)
    return Dataset(
        file,
        hashlib.sha256(content).hexdigest(),
        tuple(
            LabelledText(text, label.strip() or None, _confidence(confidence), airline or None, split)
            for text, label, confidence, airline, split in zip(*values, strict=True)
        ),
    )


def _parse(file: Path, content: bytes) -> tuple[list[str], list[list[str]]]:
    """Parse CSV; return the names of the columns, and the fields of each row that is not blank."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        lines = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header, *rows = [fields for fields in lines if fields]
    except (ValueError, csv.Error) as error:
        reason = str(error)
        if content.startswith(WORKBOOK_STARTS):
            reason = f"it is an Excel workbook or another archive. {SAVE_AS_CSV}".rstrip(".")
        raise _not_csv(file, reason if content.strip() else "the file is empty") from error
    return header, rows


def _not_csv(file: Path, reason: str) -> TrainingError:
    return TrainingError(f"{file} cannot be read as CSV: {reason}.\n{_expected(file)}")


def _may_be_of_kaggle(file: Path, header: Sequence[str]) -> bool:
    return file.name.lower() == _KAGGLE_NAME.lower() or bool(_KAGGLE_COLUMNS & set(header))


def _expected(file: Path, header: Sequence[str] = ()) -> str:
    """Describe the files that `read_dataset` reads; Kaggle's file only if the given one may be it."""
    return f"{_HOW_TO_DOWNLOAD}\nOr {_OWN_FILE}." if _may_be_of_kaggle(file, header) else f"Expected: {_OWN_FILE}."


def _confidence(value: str) -> float:
    """Parse a confidence, clipped to 0 to 1; 1 if there is none."""
    try:
        confidence = float(value)
    except ValueError:
        return 1.0
    return 1.0 if math.isnan(confidence) else min(max(confidence, 0.0), 1.0)


def _known_splits(file: Path, splits: Sequence[str]) -> list[Any]:
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise TrainingError(
            f"{file} has the split {unknown[0]!r}; expected {', '.join(SPLITS)}.\n{_HOW_TO_FIT.format(csv=file)}"
        )
    return list(splits)


def split_of_rows(rows: int) -> NDArray[np.str_]:
    """Assign a split to each of `rows` rows, by position; see the module's docstring."""
    splits = np.full(rows, "train", dtype="<U10")
    rest, test = _train_test_split(np.arange(rows), 0.1)
    _, validation = _train_test_split(rest, 0.11)
    splits[test], splits[validation] = "test", "validation"
    return splits


def _train_test_split(positions: NDArray[np.intp], share: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide positions as scikit-learn's `train_test_split` does with `test_size=share, random_state=1`."""
    test = math.ceil(share * len(positions))
    order = np.random.RandomState(1).permutation(len(positions))
    return positions[order[test:]], positions[order[:test]]


def read_tweets(file: Path) -> "pd.DataFrame":
    """Read a file of labelled texts as a pandas table; see `read_dataset` and `Dataset.table`."""
    return read_dataset(file).table()


def labelled(table: "pd.DataFrame", split: Split) -> "pd.DataFrame":
    """Return the rows of one split of a table.

    Raises:
        TrainingError: the split has no row, or a label in it is blank.
    """
    rows = table[table["split"] == split]
    _check_split(int(rows["label"].isna().sum()), len(rows), split)
    return rows


def _check_split(blank: int, rows: int, split: Split) -> None:
    if not rows:
        raise TrainingError(f"The {split} split has no row. Use another split, or a file with rows of this split.")
    if blank:
        raise TrainingError(
            f"{blank:,} of the {rows:,} rows in the {split} split have a blank label, and can be used neither to train "
            f"nor to evaluate. Use a file with their labels, or another split."
        )


def labels_of(table: "pd.DataFrame") -> list[str]:
    """Return the labels that occur in a table, in the order of fastai's categories.

    Raises:
        TrainingError: there is only one label, or the train split lacks a label.
    """
    labels = sorted(table["label"].dropna().unique())
    train_labels = set(table.loc[table["split"] == "train", "label"])
    if missing := [label for label in labels if label not in train_labels]:
        raise TrainingError(
            f"The label {', '.join(map(repr, missing))} occurs only outside the train split. Is it a typing error? "
            f"Otherwise remove those rows: there are too few of them to learn from."
        )
    if len(labels) < 2:
        raise TrainingError(f"The data has one label, {', '.join(labels)}; expected two or more.")
    return labels


_SIGNS: Final = re.compile(
    r"""[:;=]['-]?[()\[\]dp/\\|]+(?!\w)  # an emoticon, in lower case
    | (?<=\w)\#                        # C#
    | (?<!\w)[+-](?=\d)                # -5
    | (?<=\d)[^\w\s](?=\d)             # 1.5
    | (?<=\d)%""",
    re.VERBOSE,
)
"""Punctuation that has a meaning of its own."""

_VARIATION_SELECTORS: Final = {chr(code) for code in range(0xFE00, 0xFE10)}
"""Marks that change only how the character before them is shown."""


def copies_of(texts: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return for each text a key that its copies share.

    Copies differ only in capitals, spaces, punctuation without a meaning of its own, or the order and the repetition of
    symbols. Symbols are, for example, emoji. A text without letters and digits has no copies but equal texts.
    """
    return texts.map(_copy_key)


def _copy_key(text: str) -> str:
    lower = unicodedata.normalize("NFC", text.lower())
    plain = re.sub(r"[\W_]+", "", lower)
    if not plain:
        return text
    categories = {character: unicodedata.category(character) for character in set(lower)}
    marks = {character for character, category in categories.items() if category[0] == "M"} - _VARIATION_SELECTORS
    signs = {character for character, category in categories.items() if category in ("Sc", "Sm", "So")}
    signs.update(_SIGNS.findall(lower))
    if not marks and not signs:
        return plain
    # The key begins with letters and digits, so that marks and symbols do not change the order of the keys, and with
    # it the random split of the other texts.
    marked = "".join(character for character in lower if character.isalnum() or character in marks) if marks else ""
    return "\0".join([plain, marked, *sorted(signs)])


def read_labelled_texts(path: Path, labels: Sequence[str]) -> "pd.DataFrame":
    """Read lines of `label<TAB>text` as a table with the columns `label` and `text`.

    Raises:
        TrainingError: the file is missing or has too few lines, or a line has another format or an unknown label.
    """
    import pandas as pd

    existing(path, "; expected UTF-8 lines of `label<TAB>text`.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines also splits at characters within a line
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: expected UTF-8 lines of `label<TAB>text` ({error}).") from error
    rows = pd.DataFrame([line.partition("\t")[::2] for line in lines if line.strip()], columns=["label", "text"])
    invalid = rows[~rows["label"].isin(labels) | (rows["text"].str.strip() == "")]
    if len(invalid) or rows.empty:
        example = "an empty file" if rows.empty else repr("\t".join(invalid.iloc[0])[:40])
        raise TrainingError(
            f"{path}: expected UTF-8 lines of `label<TAB>text`, labels {', '.join(labels)}; found {example}."
        )
    if len(rows) < MIN_LABELLED_TEXTS:
        raise TrainingError(f"{path}: expected at least {MIN_LABELLED_TEXTS} lines; found {len(rows)}.")
    return rows


def existing(path: Path, ending: str) -> Path:
    """Return the path if it is a file.

    Args:
        path: the path.
        ending: end of the error message, after the path.

    Raises:
        TrainingError: there is no file at the path.
    """
    if path.is_dir():
        raise TrainingError(f"{path} is a folder, not a file{ending}")
    if not path.is_file():
        raise TrainingError(f"No file at {path}{ending}")
    return path


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
