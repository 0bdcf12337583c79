"""TF-IDF with logistic regression: the baseline, and a second teacher beside the transformer.

It reads spellings where the transformer reads meaning, so the two err on different tweets, and their mean on fewer.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline, make_union

from training.errors import TrainingError

FOLDS = 5
SEED = 1


def new_classifier(words_min: int = 2, characters_min: int = 3) -> Any:
    """TF-IDF of words and pairs and of 2 to 5 characters, with logistic regression; scikit-learn's pipeline.

    Args:
        words_min, characters_min: in how many texts a word, pair or sequence of characters must stand.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=words_min, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=characters_min, sublinear_tf=True)
    return make_pipeline(make_union(words, characters), LogisticRegression(C=4, max_iter=500))


def fitted(rows: pd.DataFrame) -> Any:
    """`new_classifier`, fitted on the columns `text` and `label`, of the rows.

    Raises:
        TrainingError: the texts have no word of two letters or digits.
    """
    try:
        return new_classifier().fit(rows["text"], rows["label"])
    except ValueError:  # nothing is in as many texts
        try:
            return new_classifier(1, 1).fit(rows["text"], rows["label"])
        except ValueError as error:
            raise TrainingError(f"The texts have no words that TF-IDF could count ({error}).") from error


def held_out_fifths(rows: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """The positions of another fifth of the rows each time, with each label's share of them.

    Copies of a text (compared by letters and digits) are in one fifth.

    Args:
        rows: with the columns `text` and `label`.
    """
    copies = rows["text"].str.lower().str.replace(r"[\W_]+", "", regex=True)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # a label may have less than five texts
        folds = list(splitter.split(rows, rows["label"], groups=copies))
    for _, held_out in folds:
        yield held_out


def answers(rows: pd.DataFrame, versions: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.float32]:
    """What it says of texts whose labels it has not seen: each fifth's texts are answered by a model of the others.

    Args:
        rows: with the columns `text` and `label`.
        versions: lists of as many texts as there are rows, the row's text itself or what was made of it.
        labels: all that there are, in the order wanted.

    Returns:
        probabilities, (len(versions), len(rows), C).
    """
    found = np.zeros((len(versions), len(rows), len(labels)), dtype=np.float32)
    for held_out in held_out_fifths(rows):
        others = rows.drop(rows.index[held_out])
        model = fitted(others)
        columns = [labels.index(label) for label in model.classes_]
        for version, texts in enumerate(versions):
            probabilities = model.predict_proba([texts[row] for row in held_out])
            found[version, held_out[:, None], columns] = probabilities
    return found
