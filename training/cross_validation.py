"""Cross-validation over the train and validation splits, with which recipes are compared.

The standard error of the accuracy is 0.0095 on the 1,450 tweets of the validation split, and 0.003 on all 13,176 tweets
of both splits.
"""

import contextlib
import hashlib
import json
import pickle
import sys
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
from training.data import Dataset, labelled, labels_of
from training.errors import TrainingError
from training.export.folder import export_files
from training.measure.figures import figures
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
"""Number of texts with which the time per text is measured."""

MIN_PROBABILITY = np.finfo(np.float32).tiny
"""Smallest probability, so that its logarithm is finite."""

FIGURES = ("accuracy", "macro_f1", "expected_calibration_error", "minutes", "megabytes", "milliseconds")
"""Names of the figures of a recipe."""


@dataclass(frozen=True)
class Trained:
    """A model that a recipe trained on the train split of a fold."""

    predict: Callable[[list[str]], "NDArray[np.floating[Any]]"]
    """Function that returns the probabilities (n, C) of texts."""

    minutes: float
    """Training time, without the stages that all folds share."""

    megabytes: float
    """Size of the model's weights."""

    calibrated: bool = False
    """True if the model was calibrated on the held-out labels, so that the figures need `calibrated_apart`."""


Recipe = Callable[[int, pd.DataFrame], Trained]
"""Function of a fold's number and table that trains a model on the table's train split."""


def run_recipe(
    recipe_name: str,
    data: Dataset,
    run: Path,
    settings: Settings,
    *,
    result_name: str | None = None,
    transformer: str | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """Cross-validate a recipe, and write the result into the run's folder `cross-validation`.

    Args:
        recipe_name: a key of `training.settings.RECIPES`.
        data: the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        result_name: name of the result's file and of the folds' folder; None: the recipe's name.
        transformer: transformer of the teachers; None: `settings.transformer`.
        start: see `recipe`.

    Returns:
        See `cross_validate`.

    Raises:
        TrainingError: see `recipe` and `check_recipe_of_run`.
    """
    transformer = transformer or settings.transformer
    if recipe_name == "run" and result_name is None:
        check_recipe_of_run(run, data.sha256, settings, start, transformer)
    folder = run / "cross-validation" / (result_name or recipe_name)
    train = BASELINES.get(recipe_name) or recipe(recipe_name, data.sha256, run, settings, folder, transformer, start)
    with contextlib.redirect_stdout(sys.stderr):  # messages of the stages; standard output has only the figures
        result = cross_validate(data.table(), train)
    write(result, folder.with_name(f"{folder.name}.json"))
    return result


def folds(tweets: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield tables of the train and validation rows, each with another fifth of the rows as validation split.

    Copies of a text (compared by letters and digits) are in the same fifth.
    """
    rows = pd.concat([labelled(tweets, "train"), labelled(tweets, "validation")]).sort_index()
    for held_out in held_out_fifths(rows):
        yield rows.assign(split=np.where(np.isin(np.arange(len(rows)), held_out), "validation", "train"))


def cross_validate(tweets: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
    """Train and evaluate a recipe on each fold.

    Returns:
        - command, commit
        - calibrated_apart: whether each fifth of a fold was calibrated on the other four
        - accuracy, macro_f1, expected_calibration_error, minutes (of training), megabytes, and milliseconds (median for
          one text alone): the values of the folds, their mean and their standard deviation
    """
    by_name: dict[str, list[float]] = {}
    for index, fold in enumerate(tqdm(folds(tweets), total=FOLDS, unit="fold", disable=None)):
        trained = recipe(index, fold)
        held_out = labelled(fold, "validation")
        texts = list(held_out["text"])
        probabilities = trained.predict(texts)
        if trained.calibrated:
            targets = to_targets(held_out["label"], labels_of(fold))
            probabilities = calibrated_apart(np.log(np.maximum(probabilities, MIN_PROBABILITY)), targets)
        fold_figures = figures(list(held_out["label"]), probabilities, labels_of(fold))
        fold_figures |= {"minutes": trained.minutes, "megabytes": trained.megabytes}
        fold_figures["milliseconds"] = _milliseconds(trained, texts[:TIMED_TEXTS])
        for name in FIGURES:
            by_name.setdefault(name, []).append(round(fold_figures[name], 6))
    provenance = {"command": command_line(), "commit": source_commit(), "calibrated_apart": trained.calibrated}
    return provenance | {
        name: {
            "mean": round(float(np.mean(values)), 4),
            "deviation": round(float(np.std(values, ddof=1)), 4),
            "folds": values,
        }
        for name, values in by_name.items()
    }


def _milliseconds(trained: Trained, texts: list[str]) -> float:
    times = []
    for text in texts:
        started = time.perf_counter()
        trained.predict([text])
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def majority(_index: int, fold: pd.DataFrame) -> Trained:
    """Recipe that predicts the most frequent label of the train split for every text."""
    return _scikit_learn(DummyClassifier(strategy="prior"), fold)


def tfidf(_index: int, fold: pd.DataFrame) -> Trained:
    """Recipe of TF-IDF with logistic regression."""
    return _scikit_learn(new_classifier(), fold)


BASELINES: dict[str, Recipe] = {"majority": majority, "tfidf": tfidf}
"""Recipes that train no stage."""


def recipe(
    name: str,
    csv_sha256: str,
    run: Path,
    settings: Settings,
    folder: Path,
    transformer: str,
    start: Path | None = None,
) -> Recipe:
    """Make a recipe that trains the teacher, the classifier or both on each fold, from the run's earlier stages.

    Args:
        name: a key of `training.settings.RECIPES`.
        csv_sha256: SHA-256 of the file of the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        folder: folder of the folds' stages, which resume if they were interrupted. Beside it are the folds' teachers,
            which all recipes with the same teacher share.
        transformer: transformer of the teachers.
        start: encoder that `training.stages.warm_start.unpack` wrote, instead of the run's encoder; None: the encoder
            that the run's classifier was initialized from.

    Raises:
        TrainingError: a stage of the recipe is missing, or `start` may have seen labels that a fold holds out.
    """
    start = start or (start_of(run) if name == "run" else None)
    first = start or (start_of(run, "distil") if name in ("run", "distil") else None)
    if first and saw_labels(first):
        raise TrainingError(
            "The exported model of --start may have been trained on labels that a fold holds out, so the figures would "
            "be too good. Use a model whose card has no stage `classifier`, or a language model."
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
            transformer_alone = Trained(lambda texts: network.predict(texts)[0].numpy(), minutes, size)
            if name == "teacher":
                return transformer_alone
            return _mixed(transformer_alone, tfidf(index, fold), settings.classifier.tfidf_weight)
        if name == "distil" and not start and not finished_stage(run / "distil"):
            raise TrainingError(f"{run} has no stage `distil`. Run `python -m training distil` first.")
        train_classifier(
            fold,
            sha256,
            encoder_folder=start or (run / "language-model" if name == "language-model" else _encoder_of(run)),
            teacher_folder=teacher,
            settings=settings.classifier,
            folder=folder / str(index),
        )
        minutes += _minutes(folder / str(index))
        export_files([folder / str(index) / LEARNER_FILE], folder / str(index) / "model")
        classifier = TextClassifier.load(folder / str(index) / "model")
        size = _megabytes(folder / str(index) / "model" / WEIGHTS_FILE)
        return Trained(classifier.predict, minutes, size, calibrated=True)

    return trained


def _encoder_of(run: Path) -> Path:
    """Return the run's encoder: of its distillation, or of its language model if it has no distillation."""
    return finished_stage(run / "distil") or run / "language-model"


def check_recipe_of_run(run: Path, csv_sha256: str, settings: Settings, start: Path | None, transformer: str) -> None:
    """Check that the folds will be trained as the run's teacher and classifier, as far as the run has them.

    The figures of this recipe are on the card of the run's model.

    Raises:
        TrainingError: the settings, the data, the synthetic texts, the encoder or the transformer differ.
    """
    for name, expected in (("teacher", settings.teacher), ("classifier", settings.classifier)):
        if finished_stage(run / name) is None:
            continue
        record = record_of(run / name)
        if name == "teacher":
            inputs = {"data": csv_sha256} | transformer_input(transformer)
        else:
            encoder = start or start_of(run) or _encoder_of(run)
            inputs = inputs_of(csv_sha256, encoder, finished_stage(run / "teacher"), settings.classifier)
        if changes := differences(record, {"settings": asdict(expected), "inputs": inputs}):
            raise TrainingError(
                f"The run's {name} was trained differently: {changes}. Give the same options, or a --name for this "
                f"recipe."
            )


def _mixed(first: Trained, second: Trained, weight: float) -> Trained:
    """Combine two models: the weighted mean of their probabilities, in which `weight` is the second one's."""
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
    """Write the figures of a recipe as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
