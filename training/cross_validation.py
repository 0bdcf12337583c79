"""Cross-validation over the train and validation splits, by which recipes are chosen: one standard error on the
1,450 tweets of the validation split alone is 0.0095, on all 13,176 labelled ones 0.003."""

import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastai.text.all import load_learner
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline, make_union
from tqdm import tqdm

from handler.classifier import TextClassifier
from training.classifier import LEARNER_FILE, train_classifier
from training.data import labelled, labels_of
from training.evaluate import figures
from training.export import export_learner
from training.run import finished_stage
from training.settings import Settings
from training.teacher import load_teacher, train_teacher

FOLDS = 5
SEED = 1

Predict = Callable[[int, pd.DataFrame], tuple["np.ndarray[Any, Any]", float]]
"""Trains on a table's train split, and gives the probabilities (n, C) of its validation split's rows, and the minutes
that training took. The number is the fold's."""


def folds(tweets: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The tweets, with another fifth of all labelled train and validation rows as validation split each time."""
    rows = pd.concat([labelled(tweets, "train"), labelled(tweets, "validation")]).sort_index()
    for _, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(rows, rows["label"]):
        yield rows.assign(split=np.where(np.isin(np.arange(len(rows)), held_out), "validation", "train"))


def cross_validate(tweets: pd.DataFrame, predict: Predict) -> dict[str, Any]:
    """Figures of each fold, and their means and standard deviations over the folds.

    Returns:
        accuracy, macro_f1, expected_calibration_error and minutes, each with mean, deviation and folds.
    """
    labels = labels_of(tweets)
    found: dict[str, list[float]] = {}
    for index, fold in enumerate(tqdm(folds(tweets), total=FOLDS, unit="fold", disable=None)):
        probabilities, minutes = predict(index, fold)
        of_fold = figures(list(labelled(fold, "validation")["label"]), probabilities, labels) | {"minutes": minutes}
        for name in ("accuracy", "macro_f1", "expected_calibration_error", "minutes"):
            found.setdefault(name, []).append(round(of_fold[name], 6))
    return {
        name: {
            "mean": round(float(np.mean(values)), 4),
            "deviation": round(float(np.std(values, ddof=1)), 4),
            "folds": values,
        }
        for name, values in found.items()
    }


def majority(_index: int, fold: pd.DataFrame) -> tuple["np.ndarray[Any, Any]", float]:
    """Always the train split's most frequent label."""
    return _scikit_learn(DummyClassifier(strategy="prior"), fold)


def tfidf(_index: int, fold: pd.DataFrame) -> tuple["np.ndarray[Any, Any]", float]:
    """TF-IDF of words and pairs and of 2 to 5 characters, with logistic regression."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
    return _scikit_learn(make_pipeline(make_union(words, characters), LogisticRegression(C=4, max_iter=500)), fold)


def recipe(name: str, csv_sha256: str, run: Path, settings: Settings, folder: Path) -> Predict:
    """A recipe that trains the teacher, the classifier, or both on each fold, from what the run has of stages before.

    Args:
        name: one of the command line's recipes.
        folder: where each fold's stages write, and go on if they were stopped. The teachers of the folds are shared
            by all recipes with the same settings.
    """

    def predict(index: int, fold: pd.DataFrame) -> tuple["np.ndarray[Any, Any]", float]:
        validation = labelled(fold, "validation")
        teacher = None
        minutes = 0.0
        sha256 = f"{csv_sha256}, fold {index} of {FOLDS}"
        if name in ("run", "teacher"):
            teacher = folder.parent / "teacher" / str(index)
            train_teacher(fold, sha256, finished_stage(run / "general-teacher"), settings.teacher, teacher)
            minutes += _minutes(teacher)
        if name == "teacher":
            assert teacher
            probabilities, _ = load_teacher(teacher, labels_of(fold)).predict(list(validation["text"]))
            return probabilities.numpy(), minutes
        encoder = None if name == "language-model" else finished_stage(run / "distil")
        train_classifier(
            fold,
            sha256,
            encoder_folder=encoder or run / "language-model",
            teacher_folder=teacher,
            settings=settings.classifier,
            folder=folder / str(index),
        )
        minutes += _minutes(folder / str(index))
        return probabilities_of(folder / str(index), list(validation["text"])), minutes

    return predict


def probabilities_of(classifier: Path, texts: list[str]) -> "np.ndarray[Any, Any]":
    """A trained classifier's probabilities, (n, C), by the steps that serve: fastai's own in batches are not exact."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="load_learner", category=UserWarning)
        learner = load_learner(classifier / LEARNER_FILE)
    return TextClassifier(export_learner(learner, {})).predict(texts)


def _minutes(stage: Path) -> float:
    seconds: float = json.loads((stage / "record.json").read_text())["seconds"]
    return seconds / 60


def _scikit_learn(model: Any, fold: pd.DataFrame) -> tuple["np.ndarray[Any, Any]", float]:
    train, validation = labelled(fold, "train"), labelled(fold, "validation")
    started = time.monotonic()
    model.fit(train["text"], train["label"])
    minutes = (time.monotonic() - started) / 60
    return model.predict_proba(validation["text"]), minutes


def write(figures: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
