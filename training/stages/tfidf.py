"""TF-IDF with logistic regression: the baseline, and a second teacher beside the transformer.

TF-IDF depends on spelling, the transformer on meaning. The two err on different texts, and their mean errs on fewer.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline, make_union

from training.errors import TrainingError

FOLDS = 5
"""Number of parts into which rows are divided, for cross-validation and for soft labels."""

SEED = 1


def new_classifier(words_min: int = 2, characters_min: int = 3) -> Any:
    """Make a scikit-learn pipeline: TF-IDF of words, word pairs and 2 to 5 characters, then logistic regression.

    Args:
        words_min: number of texts in which a word or a word pair must occur to be counted.
        characters_min: number of texts in which a sequence of characters must occur to be counted.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=words_min, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=characters_min, sublinear_tf=True)
    return make_pipeline(make_union(words, characters), LogisticRegression(C=4, max_iter=500))


def fitted(rows: pd.DataFrame) -> Any:
    """Fit `new_classifier` on the columns `text` and `label` of the rows; a constant if they have only one label.

    Raises:
        TrainingError: the texts have no word of at least two letters or digits.
    """
    if rows["label"].nunique() == 1:
        return DummyClassifier(strategy="prior").fit(rows["text"], rows["label"])
    try:
        return new_classifier().fit(rows["text"], rows["label"])
    except ValueError:  # no word occurs in enough texts
        try:
            return new_classifier(1, 1).fit(rows["text"], rows["label"])
        except ValueError as error:
            raise TrainingError(f"The texts have no words that TF-IDF can count ({error}).") from error


def held_out_fifths(rows: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """Yield the row positions of each of five stratified parts of the rows.

    Copies of a text are in the same part. They are compared by letters and digits, texts without these by all
    characters.

    Args:
        rows: a table with the columns `text` and `label`.

    Raises:
        TrainingError: no label has five rows.
    """
    if rows["label"].value_counts().max() < FOLDS:
        raise TrainingError(
            f"No label has {FOLDS} texts, so the texts cannot be divided into {FOLDS} parts. Add texts, or train "
            "without TF-IDF: --set classifier.tfidf_weight=0."
        )
    # Not the keys of `copies_of`: with other groups, the folds of all earlier cross-validations would change.
    copies = rows["text"].str.lower().str.replace(r"[\W_]+", "", regex=True)
    copies = copies.where(copies != "", rows["text"])
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a label may have fewer than five texts
        folds = list(splitter.split(rows, rows["label"], groups=copies))
    for _, held_out in folds:
        yield held_out


def probabilities(rows: pd.DataFrame, texts: Sequence[str], labels: Sequence[str]) -> NDArray[np.float32]:
    """Predict texts that are not among the rows with a model of all rows, (texts, C); see `soft_labels`."""
    predicted = np.zeros((len(texts), len(labels)), dtype=np.float32)
    if texts:
        model = fitted(rows)
        predicted[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(texts)
    return predicted


def soft_labels(rows: pd.DataFrame, versions: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.float32]:
    """Predict texts with models that have not seen their labels: each of five parts by a model of the other four.

    Args:
        rows: a table with the columns `text` and `label`.
        versions: lists of texts, one text for each row: the row's text or a span of it.
        labels: all labels, in the order of the columns.

    Returns:
        Probabilities, (len(versions), len(rows), C).
    """
    soft = np.zeros((len(versions), len(rows), len(labels)), dtype=np.float32)
    for held_out in held_out_fifths(rows):
        others = rows.drop(rows.index[held_out])
        model = fitted(others)
        columns = [labels.index(label) for label in model.classes_]
        for version, texts in enumerate(versions):
            probabilities = model.predict_proba([texts[row] for row in held_out])
            soft[version, held_out[:, None], columns] = probabilities
    return soft
