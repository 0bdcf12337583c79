"""The labelled texts of a run and their splits: Kaggle's `Tweets.csv`, or the file that `fit` made of a user's.

A file of `fit` has its splits in a column. The split of `Tweets.csv` is the one of the known example this project
succeeds, so that figures compare: two calls of scikit-learn's `train_test_split` on the rows in file order (test_size
0.1, then 0.11 of the rest, random_state 1), which gives 11,726 / 1,450 / 1,464 of the 14,640 rows. It is not
stratified.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from training.errors import TrainingError
from training.export.sample import Sample, sample_of
from training.splits import SPLITS, Split

TEXT_COLUMN = "text"
LABEL_COLUMN = "airline_sentiment"
CONFIDENCE_COLUMN = "airline_sentiment_confidence"

FIT_COLUMNS = ("text", "label", "split")
"""Of a file that `fit` has written."""

FEWEST_LABELLED_TEXTS = 10
"""A tenth of them is held out, to see how training goes."""

_HOW_TO_FIT = """\
For a file of your own, with any names of columns and any labels, there is another command, which makes the splits, too:
    python -m training fit --data {csv} --text-column TEXT --label-column LABEL --to model_store/NAME"""

_HOW_TO_DOWNLOAD = """\
Expected: the data.csv that `python -m training fit` keeps in its run's folder, or Tweets.csv of Kaggle's
"Twitter US Airline Sentiment" (14,640 rows, columns `text` and `airline_sentiment` among them). To download the latter
(needs a Kaggle account and its API token):
    pip install kaggle
    kaggle datasets download crowdflower/twitter-airline-sentiment --file Tweets.csv --unzip"""


def read_tweets(csv: Path) -> pd.DataFrame:
    """Read the tweets in file order, with the columns `text`, `label`, `confidence`, `airline` and `split`.

    Confidence is how far a label's annotators agreed, 0 to 1; 1 where the file does not say. Airlines are missing
    where it names none. The columns of a file are Kaggle's, or `FIT_COLUMNS`.

    Labels are without the spaces around them. A blank one stays missing (NaN): whoever needs labels asks `labelled`
    for them.

    Raises:
        TrainingError: no such file, not a CSV, a column missing, a blank text, or too few rows to split.
    """
    existing(csv, f".\n{_HOW_TO_DOWNLOAD}")
    try:
        # A tweet may say "NA" or "null"; only an empty field is missing.
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, UnicodeDecodeError) as error:
        raise TrainingError(f"{csv} does not read as a CSV file: {error}\n{_HOW_TO_DOWNLOAD}") from error
    is_fits = LABEL_COLUMN not in table.columns and set(FIT_COLUMNS) <= set(table.columns)
    label_column = "label" if is_fits else LABEL_COLUMN
    missing = [name for name in (TEXT_COLUMN, label_column) if name not in table.columns]
    if missing:
        found = ", ".join(f"`{name}`" for name in table.columns[:20])
        raise TrainingError(
            f"{csv} has no column {' and no '.join(f'`{name}`' for name in missing)}; "
            f"it has {found}.\n{_HOW_TO_FIT.format(csv=csv)}\n{_HOW_TO_DOWNLOAD}"
        )
    blank = table.index[table[TEXT_COLUMN].fillna("").str.strip() == ""]
    if len(blank):
        raise TrainingError(f"{csv} has {len(blank)} rows with no text, the first at row {blank[0]}.")
    if len(table) < 30:
        raise TrainingError(f"{csv} has {len(table)} rows; at least 30 are needed to split them.\n{_HOW_TO_DOWNLOAD}")
    label = table[label_column].str.strip()
    tweets = pd.DataFrame({"text": table[TEXT_COLUMN], "label": label.mask(label == "")})
    confidence = table.get(CONFIDENCE_COLUMN, pd.Series(1.0, index=table.index))
    tweets["confidence"] = pd.to_numeric(confidence, errors="coerce").fillna(1.0).clip(0, 1)
    tweets["airline"] = table.get("airline", pd.Series(index=table.index, dtype=str))
    tweets["split"] = _splits_of(csv, table) if is_fits else split_of_rows(len(tweets))
    return tweets


def _splits_of(csv: Path, table: pd.DataFrame) -> pd.Series:
    if others := sorted(set(table["split"].fillna("")) - set(SPLITS)):
        raise TrainingError(
            f"{csv} has the split {others[0]!r}; expected {', '.join(SPLITS)}.\n{_HOW_TO_FIT.format(csv=csv)}"
        )
    return table["split"]


def copies_of(texts: pd.Series) -> pd.Series:
    """What copies of a text have in common: its letters and digits, or all of it if it has none."""
    plain = texts.str.lower().str.replace(r"[\W_]+", "", regex=True)
    return plain.mask(plain == "", texts)


def split_of_rows(rows: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
    """The split of each of `rows` rows, by position (see the module's docstring)."""
    rest, test = train_test_split(np.arange(rows), test_size=0.1, random_state=1)
    train, validation = train_test_split(rest, test_size=0.11, random_state=1)
    split = np.empty(rows, dtype="<U10")
    split[train], split[validation], split[test] = "train", "validation", "test"
    return split


def labelled(tweets: pd.DataFrame, split: Split) -> pd.DataFrame:
    """The rows of one split, every one of them with a label.

    Raises:
        TrainingError: if a label in the split is blank.
    """
    rows = tweets[tweets["split"] == split]
    blank = int(rows["label"].isna().sum())
    if blank:
        raise TrainingError(
            f"{blank:,} of the {len(rows):,} rows in the {split} split have a blank label. "
            f"They can be neither trained on nor scored: use a file with their labels, or another split."
        )
    return rows


def held_out(tweets: pd.DataFrame, file: Path) -> Sample:
    """The texts of a file that the classifier is not trained on, and so does not know by heart.

    Raises:
        TrainingError: there are none.
    """
    return sample_of(tweets.loc[tweets["split"] != "train", "text"], f"the validation and test splits of {file.name}")


def labels_of(tweets: pd.DataFrame) -> list[str]:
    """The labels that occur, in the order of fastai's categories.

    Raises:
        TrainingError: there is but one, or one that the train split does not have, which nothing can learn.
    """
    found = sorted(tweets["label"].dropna().unique())
    trained_on = set(tweets.loc[tweets["split"] == "train", "label"])
    if others := [label for label in found if label not in trained_on]:
        raise TrainingError(
            f"The label {', '.join(map(repr, others))} stands outside the train split alone. Is it a slip of the pen? "
            f"Otherwise leave those rows out: too few of them to learn from."
        )
    if len(found) < 2:
        raise TrainingError(f"The data has one label, {', '.join(found)}; expected two or more.")
    return found


def read_labelled_texts(path: Path, labels: Sequence[str]) -> pd.DataFrame:
    """Texts of `label<TAB>text` lines, as a table with the columns `label` and `text`.

    Raises:
        TrainingError: no such file, too few lines, a line of another form, or other labels than `labels`.
    """
    existing(path, "; expected UTF-8 lines of `label<TAB>text`.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines also splits at characters within a line
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: expected UTF-8 lines of `label<TAB>text` ({error}).") from error
    rows = pd.DataFrame([line.partition("\t")[::2] for line in lines if line.strip()], columns=["label", "text"])
    wrong = rows[~rows["label"].isin(labels) | (rows["text"].str.strip() == "")]
    if len(wrong) or rows.empty:
        example = "an empty file" if rows.empty else repr("\t".join(wrong.iloc[0])[:40])
        raise TrainingError(
            f"{path}: expected UTF-8 lines of `label<TAB>text`, labels {', '.join(labels)}; found {example}."
        )
    if len(rows) < FEWEST_LABELLED_TEXTS:
        raise TrainingError(f"{path}: expected at least {FEWEST_LABELLED_TEXTS} lines; found {len(rows)}.")
    return rows


def existing(path: Path, what: str) -> Path:
    """
    Raises:
        TrainingError: no such file.
    """
    if not path.is_file():
        raise TrainingError(f"No file at {path}{what}")
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
