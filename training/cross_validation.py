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
from collections.abc import Callable, Iterator, Sequence
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
from training.data import Dataset, labelled, labels_of, sha256_of
from training.errors import TrainingError
from training.export.folder import export_files
from training.export.lineage import stages_behind
from training.files import write_json
from training.measure.figures import figures
from training.settings import Settings
from training.stages.calibration import calibrated_apart
from training.stages.classifier import inputs_of, train_classifier
from training.stages.generator import generate, generator_inputs
from training.stages.products import (
    ENCODER_FILE,
    GENERATED_FILE,
    LABEL_STAGES,
    LEARNER_FILE,
    TEACHER_FILE,
    VOCABULARY_FILE,
)
from training.stages.record import command_line, differences, finished_stage, record_of, source_commit
from training.stages.run import encoder_of, generated_of, teachers_of
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
    """Training time, without the stages that all folds share, and without the teachers' predictions that another recipe
    has stored."""

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
        transformer: transformer of the only teacher; None: `settings.transformers`.
        start: see `recipe`.

    Returns:
        See `cross_validate`.

    Raises:
        TrainingError: an option does not apply to the recipe; or see `recipe` and `check_recipe_of_run`.
    """
    result_name = result_name or recipe_name
    if result_name == "run" and recipe_name != "run":
        raise TrainingError(f"--name run is for the recipe run, not {recipe_name}.")
    if transformer and recipe_name not in ("teacher", "teachers", "run"):
        raise TrainingError(f"The recipe {recipe_name} has no teacher: omit --transformer.")
    if start and recipe_name not in ("distil", "run"):
        raise TrainingError(f"The recipe {recipe_name} has its own encoder, or none: omit --start.")
    transformers = (transformer,) if transformer else settings.transformers
    provenance: dict[str, Any] = {}
    if result_name == "run":
        provenance["stages"] = check_recipe_of_run(run, data.sha256, settings, start, transformers)
    folder = run / "cross-validation" / result_name
    train = BASELINES.get(recipe_name) or recipe(recipe_name, data.sha256, run, settings, folder, transformers, start)
    with contextlib.redirect_stdout(sys.stderr):  # messages of the stages; standard output has only the figures
        result = cross_validate(data.table(), train) | provenance
    write(result, folder.with_name(f"{folder.name}.json"))
    return result


def folds(tweets: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield tables of the train and validation rows, each with another fifth of the rows as validation split.

    Copies of a text are in the same fifth, see `held_out_fifths`.
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
    transformers: Sequence[str],
    start: Path | None = None,
) -> Recipe:
    """Make a recipe that trains teachers, generator and classifier on each fold, from the run's earlier stages.

    Args:
        name: a key of `training.settings.RECIPES`.
        csv_sha256: SHA-256 of the file of the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        folder: folder of the folds' stages, which resume if they were interrupted. Beside it are the folds' teachers
            and generators, which all recipes with the same settings share.
        transformers: transformers of the teachers.
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
            "be too good. Use a model whose card has no stage that is trained on the data's labels."
        )
    if name == "distil" and not start and not finished_stage(run / "distil"):
        raise TrainingError(f"{run} has no stage `distil`. Run `python -m training distil` first.")
    encoder = run / "language-model"
    if name in ("run", "distil"):
        encoder = start or encoder_of(run)
        if encoder == run / "distil" and set(stages_behind(run, "distil")) & set(LABEL_STAGES):
            raise TrainingError(
                f"The distillation of {run} was trained on labels that a fold holds out, so the figures would be too "
                "good. Name another encoder with --start, such as model_store/general."
            )
    number = {"teacher": 1, "teachers": len(transformers)}.get(name, 0)
    if name == "run":
        number = len(teachers_of(run, len(transformers)))
    folds_teachers = [
        (one, _shared(folder, "teacher", asdict(settings.teacher), transformer_input(one)))
        for one in transformers[:number]
    ]
    folds_generators = None
    if name == "run" and generated_of(run, settings.generator):
        hashes = {file: sha256_of(encoder / file) for file in (ENCODER_FILE, VOCABULARY_FILE)}
        folds_generators = _shared(folder, "generator", asdict(settings.generator), hashes)

    def trained(index: int, fold: pd.DataFrame) -> Trained:
        sha256 = f"{csv_sha256}, fold {index} of {FOLDS}"
        teachers = []
        for one, folders in folds_teachers:
            teachers.append(folders / str(index))
            train_teacher(fold, sha256, settings.teacher, teachers[-1], one)
        minutes = sum(map(_minutes, teachers))
        if name in ("teacher", "teachers"):
            model = _of_teachers(teachers, labels_of(fold), minutes)
            return model if name == "teacher" else _mixed(model, tfidf(index, fold), settings.classifier.tfidf_weight)
        generated = None
        if folds_generators:
            generator = folds_generators / str(index)
            generate(fold, sha256, encoder_folder=encoder, settings=settings.generator, folder=generator)
            generated = generator / GENERATED_FILE
            minutes += _minutes(generator)
        train_classifier(
            fold,
            sha256,
            encoder_folder=encoder,
            teachers=teachers,
            generated=generated,
            settings=settings.classifier,
            folder=folder / str(index),
        )
        minutes += _minutes(folder / str(index))
        export_files([folder / str(index) / LEARNER_FILE], folder / str(index) / "model")
        classifier = TextClassifier.load(folder / str(index) / "model")
        size = _megabytes(folder / str(index) / "model" / WEIGHTS_FILE)
        return Trained(classifier.predict, minutes, size, calibrated=True)

    return trained


def _shared(folder: Path, stage: str, *determined_by: dict[str, Any]) -> Path:
    """Return the folder of the folds' stages that all recipes with these settings and inputs share."""
    kind = json.dumps(determined_by)
    return folder.parent / f"{stage}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def _of_teachers(folders: Sequence[Path], labels: Sequence[str], minutes: float) -> Trained:
    """Make a model of transformers: the mean of their probabilities."""
    networks = [load_teacher(folder, labels) for folder in folders]
    size = sum(_megabytes(folder / TEACHER_FILE) for folder in folders)
    return Trained(
        lambda texts: np.mean([network.predict(texts)[0].numpy() for network in networks], axis=0), minutes, size
    )


def check_recipe_of_run(
    run: Path, csv_sha256: str, settings: Settings, start: Path | None, transformers: Sequence[str]
) -> dict[str, Any]:
    """Check that the folds have the settings and inputs of the run's finished stages.

    The figures of this recipe are on the card of the run's model.

    Returns:
        Settings and inputs of the run's stages by the stage's name. `training.export.card` compares them with those of
        the model, because the run's stages may be trained again later.

    Raises:
        TrainingError: the settings, the data, the synthetic texts, the encoder or the transformers differ.
    """
    encoder = start or start_of(run) or encoder_of(run)
    teachers, generated = teachers_of(run, len(transformers)), generated_of(run, settings.generator)
    stages: dict[str, Any] = {}
    for folder, one in zip(teachers, transformers, strict=False):
        inputs = {"data": csv_sha256} | transformer_input(one)
        stages[folder.name] = {"settings": asdict(settings.teacher), "inputs": inputs}
    if generated:
        stages["generator"] = {"settings": asdict(settings.generator), "inputs": generator_inputs(csv_sha256, encoder)}
    inputs = inputs_of(csv_sha256, encoder, teachers, generated, settings.classifier)
    stages["classifier"] = {"settings": asdict(settings.classifier), "inputs": inputs}
    for name, expected in stages.items():
        if finished_stage(run / name) and (changes := differences(record_of(run / name), expected)):
            raise TrainingError(
                f"The run's {name} was trained differently: {changes}. Give the same options, or a --name for this "
                f"recipe."
            )
    return stages


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
    write_json(path, figures)
