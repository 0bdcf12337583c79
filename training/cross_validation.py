"""Cross-validation over the train and validation splits, by which recipes are chosen: one standard error on the
1,450 tweets of the validation split alone is 0.0095, on all 13,176 labelled ones 0.003."""

import hashlib
import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from tqdm import tqdm

from handler.classifier import TextClassifier
from handler.exported import WEIGHTS_FILE
from training.data import labelled, labels_of
from training.errors import TrainingError
from training.export.learner import export_file
from training.measure.evaluate import figures
from training.settings import Settings
from training.stages.calibration import calibrated_apart
from training.stages.classifier import inputs_of, train_classifier
from training.stages.products import LEARNER_FILE, TEACHER_FILE
from training.stages.record import command_line, differences, finished_stage, record_of, source_commit
from training.stages.targets import to_targets
from training.stages.teacher import load_teacher, train_teacher, transformer_input
from training.stages.tfidf import FOLDS, held_out_fifths, new_classifier
from training.stages.warm_start import saw_labels, start_of

TIMED_TEXTS = 200
SMALLEST = np.finfo(np.float32).tiny
"""Of a probability, so that its logarithm is a number."""
FIGURES = ("accuracy", "macro_f1", "expected_calibration_error", "minutes", "megabytes", "milliseconds")


@dataclass(frozen=True)
class Trained:
    """What a recipe made of a fold's train split."""

    predict: Callable[[list[str]], "NDArray[np.floating[Any]]"]
    """Texts to probabilities, (n, C)."""

    minutes: float
    """That training took, without the stages that all folds share."""

    megabytes: float

    calibrated: bool = False
    """On the labels that the fold holds out. Its figures are of a calibration apart, then."""


Recipe = Callable[[int, pd.DataFrame], Trained]
"""Trains on a table's train split. The number is the fold's."""


def folds(tweets: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The tweets, with another fifth of all labelled train and validation rows as validation split each time.

    Copies of a tweet (compared by letters and digits) are in one fold.
    """
    rows = pd.concat([labelled(tweets, "train"), labelled(tweets, "validation")]).sort_index()
    for held_out in held_out_fifths(rows):
        yield rows.assign(split=np.where(np.isin(np.arange(len(rows)), held_out), "validation", "train"))


def cross_validate(tweets: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
    """Figures of each fold, and their means and standard deviations over the folds.

    Returns:
        accuracy, macro_f1, expected_calibration_error, minutes (of training), megabytes, and milliseconds (the median
        for one text alone), each with mean, deviation and folds; and calibrated_apart: whether each fifth of a fold was
        calibrated on the others.
    """
    found: dict[str, list[float]] = {}
    for index, fold in enumerate(tqdm(folds(tweets), total=FOLDS, unit="fold", disable=None)):
        trained = recipe(index, fold)
        held_out = labelled(fold, "validation")
        texts = list(held_out["text"])
        probabilities = trained.predict(texts)
        if trained.calibrated:
            targets = to_targets(held_out["label"], labels_of(fold))
            probabilities = calibrated_apart(np.log(np.maximum(probabilities, SMALLEST)), targets)
        of_fold = figures(list(held_out["label"]), probabilities, labels_of(fold))
        of_fold |= {"minutes": trained.minutes, "megabytes": trained.megabytes}
        of_fold["milliseconds"] = _milliseconds(trained, texts[:TIMED_TEXTS])
        for name in FIGURES:
            found.setdefault(name, []).append(round(of_fold[name], 6))
    described = {"command": command_line(), "commit": source_commit(), "calibrated_apart": trained.calibrated}
    return described | {
        name: {
            "mean": round(float(np.mean(values)), 4),
            "deviation": round(float(np.std(values, ddof=1)), 4),
            "folds": values,
        }
        for name, values in found.items()
    }


def _milliseconds(trained: Trained, texts: list[str]) -> float:
    times = []
    for text in texts:
        started = time.perf_counter()
        trained.predict([text])
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def majority(_index: int, fold: pd.DataFrame) -> Trained:
    """Always the train split's most frequent label."""
    return _scikit_learn(DummyClassifier(strategy="prior"), fold)


def tfidf(_index: int, fold: pd.DataFrame) -> Trained:
    """TF-IDF with logistic regression."""
    return _scikit_learn(new_classifier(), fold)


def recipe(
    name: str,
    csv_sha256: str,
    run: Path,
    settings: Settings,
    folder: Path,
    transformer: str,
    start: Path | None = None,
) -> Recipe:
    """A recipe that trains the teacher, the classifier, or both on each fold, from what the run has of stages before.

    Args:
        name: one of the command line's recipes.
        folder: where each fold's stages write, and go on if they were stopped. The teachers of the folds are beside
            it, shared by all recipes whose teachers are the same.
        transformer: that the teachers begin with.
        start: what `training.stages.warm_start` unpacked, in place of the run's own encoder; None: what the run's
            classifier began with.

    Raises:
        TrainingError: a recipe's stage is missing, or the start is not one that can be cross-validated.
    """
    start = start or (start_of(run) if name == "run" else None)
    first = start or (start_of(run, "distil") if name in ("run", "distil") else None)
    if first and saw_labels(first):
        raise TrainingError(
            "The exported model to begin with may have been trained on labels that a fold holds out: the figures "
            "would be too good. Begin with one whose card has no classifier's stage, or with a language model."
        )

    with_teacher = name in {"teacher", "teachers"} or (name == "run" and finished_stage(run / "teacher") is not None)
    kind = json.dumps([asdict(settings.teacher), transformer_input(transformer) if with_teacher else {}])
    teachers = folder.parent / f"teacher-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"

    def trained(index: int, fold: pd.DataFrame) -> Trained:
        labels = labels_of(fold)
        teacher = None
        minutes = 0.0
        sha256 = f"{csv_sha256}, fold {index} of {FOLDS}"
        if with_teacher:
            teacher = teachers / str(index)
            train_teacher(fold, sha256, settings.teacher, teacher, transformer)
            minutes += _minutes(teacher)
        if teacher and name != "run":
            network = load_teacher(teacher, labels)
            size = _megabytes(teacher / TEACHER_FILE)
            alone = Trained(lambda texts: network.predict(texts)[0].numpy(), minutes, size)
            return alone if name == "teacher" else _mixed(alone, tfidf(index, fold), settings.classifier.tfidf_weight)
        if name == "distil" and not start and not finished_stage(run / "distil"):
            raise TrainingError(f"{run} has no distil stage: run `python -m training distil` first.")
        train_classifier(
            fold,
            sha256,
            encoder_folder=start or (run / "language-model" if name == "language-model" else _encoder_of(run)),
            teacher_folder=teacher,
            settings=settings.classifier,
            folder=folder / str(index),
        )
        minutes += _minutes(folder / str(index))
        export_file(folder / str(index) / LEARNER_FILE, run, None, "", folder / str(index) / "model")
        classifier = TextClassifier.load(folder / str(index) / "model")
        size = _megabytes(folder / str(index) / "model" / WEIGHTS_FILE)
        return Trained(classifier.predict, minutes, size, calibrated=True)

    return trained


def _encoder_of(run: Path) -> Path:
    """Where the folds' classifiers begin, if they are not told."""
    return finished_stage(run / "distil") or run / "language-model"


def check_it_is_the_runs(run: Path, csv_sha256: str, settings: Settings, start: Path | None, transformer: str) -> None:
    """Whether the folds would be trained as the run's own last two stages were; stages that it does not have do not
    count. The figures stand on the card of the run's model.

    Raises:
        TrainingError: other settings, tweets or made-up texts, another start, or another transformer.
    """
    for name, wanted in (("teacher", settings.teacher), ("classifier", settings.classifier)):
        if finished_stage(run / name) is None:
            continue
        record = record_of(run / name)
        if name == "teacher":
            inputs = {"data": csv_sha256} | transformer_input(transformer)
        else:
            encoder = start or start_of(run) or _encoder_of(run)
            inputs = inputs_of(csv_sha256, encoder, finished_stage(run / "teacher"), settings.classifier)
        if found := differences(record, {"settings": asdict(wanted), "inputs": inputs}):
            raise TrainingError(
                f"The run's own {name} differs from what the folds would be: {found}. Give what it was trained with, "
                f"or a --name for this recipe."
            )


def _mixed(first: Trained, second: Trained, weight: float) -> Trained:
    """The mean of both answers, in which the second has this weight."""
    return Trained(
        lambda texts: (1 - weight) * first.predict(texts) + weight * second.predict(texts),
        first.minutes + second.minutes,
        first.megabytes + second.megabytes,
    )


def _minutes(stage: Path) -> float:
    seconds: float = record_of(stage)["seconds"]
    return seconds / 60


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def _scikit_learn(model: Any, fold: pd.DataFrame) -> Trained:
    train = labelled(fold, "train")
    started = time.monotonic()
    model.fit(train["text"], train["label"])
    minutes = (time.monotonic() - started) / 60
    return Trained(model.predict_proba, minutes, len(pickle.dumps(model)) / 1e6)


def write(figures: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
