"""Labelled texts to an exported model: checks, split, start, recipe, stages, baseline, card."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import f1_score, log_loss

from handler.exported import CARD_FILE
from training.data import held_out, labelled, labels_of, read_tweets, sha256_of
from training.errors import TrainingError
from training.export.archive import NAME
from training.export.card import trained_on
from training.export.learner import export_file
from training.export.precision import measure
from training.fit.recipe import FitSettings, Recipe, expected_minutes, recipe_for
from training.fit.split import SEED, leaks, with_splits, write_data
from training.fit.start import OWN, Start, describe_starts, own_words, start_entry, start_named
from training.fit.table import Columns, Table, read_table
from training.measure.evaluate import figures
from training.settings import WT103, with_changes
from training.splits import SPLITS
from training.stages.classifier import train_classifier
from training.stages.distil import distil_with_labels
from training.stages.language_model import general_model, read_lines, train_on_texts
from training.stages.products import TEACHER_FILE
from training.stages.targets import to_targets
from training.stages.teacher import load_teacher, train_frozen_teacher, train_teacher
from training.stages.tfidf import FOLDS, fitted
from training.stages.warm_start import unpack

MEASURED_FILE: Final = "measured.json"
"""Of a run: the baseline's figures, and what was chosen on the validation split."""

BASELINE: Final = "TF-IDF with logistic regression"
TFIDF_WEIGHTS: Final = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
"""The shares of TF-IDF in the teachers' answers that are tried."""

EVEN: Final = 1.5
"""Labels whose numbers differ by no more than this factor are given no weights."""
LEAST_GAIN: Final = 0.02
"""In macro-F1 on the validation split, below which the labels are given no weights."""


@dataclass(frozen=True)
class Order:
    """What the command line asks `fit` for."""

    data: Path
    columns: Columns
    start: str
    texts: tuple[Path, ...]
    to: Path | None
    run: Path | None
    notes: str
    tiny: bool
    changes: tuple[str, ...]


def fit(order: Order) -> Path:
    """Train, measure and export a classifier; returns the exported model's folder.

    Raises:
        TrainingError: a problem with the data, the start or a setting, told before anything is trained; or the run's
            folder holds other data or settings.
    """
    to = order.to or Path("model_store", _name_of(order.data))
    if not NAME.fullmatch(to.resolve().name):
        raise TrainingError(
            f"--to {to}: the folder's name becomes the model's; expected letters, digits, points, hyphens and "
            f"underscores."
        )
    run = order.run or Path("runs", to.resolve().name)
    table = read_table(order.data, order.columns)
    rows = with_splits(table.rows)
    labels_of(rows)
    start = start_named(order.start)
    for path in order.texts:
        next(read_lines(path))
    train = rows[rows["split"] == "train"]
    words = sum(len(text.split()) for text in train["text"])
    recipe = recipe_for(len(train), words, order.tiny)
    settings = with_changes(recipe.settings, list(order.changes))
    recipe = Recipe(recipe.name, recipe.what, recipe.fine_tunes_teacher, settings)
    _check_destination(to, order, run)
    csv = write_data(rows, order.data, asdict(order.columns), run)
    _check_start(run, start)
    for line in [*_described_data(order.data, rows, table), *describe_starts(start)]:
        print(line)
    ratio = 6.0 if start.name == WT103 else 1.0
    minutes = expected_minutes(recipe, len(train), words, rows["label"].nunique(), ratio)
    print(f"Recipe for {recipe.name}: {recipe.what}.")
    print(f"Expected time on two cores: about {_rounded_up(minutes)}. The same command goes on where it was stopped.")
    model_folder = _train(order, start, recipe, csv, run)
    measured = json.loads((run / MEASURED_FILE).read_text(encoding="utf-8"))
    print(f"6 of 6: export to {to}")
    export_file(
        None,
        run,
        csv,
        order.notes,
        to,
        more={
            "start": start_entry(start, model_folder),
            "recipe": {"name": recipe.name, "what": recipe.what},
            "baseline": {"name": BASELINE, "metrics": measured["baseline"]},
        },
    )
    for line in [*measure(to, held_out(rows, order.data)), *_results(to, csv)]:
        print(line)
    return to


def _name_of(data: Path) -> str:
    """The model's name, of the data's file."""
    stem = data.name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "model"


def _check_destination(to: Path, order: Order, run: Path) -> None:
    if to.exists() and not to.is_dir():
        raise TrainingError(f"--to {to}: expected a folder; there is a file of this name.")
    card = to / CARD_FILE
    if order.to is None and card.is_file():
        kept = run / "data.csv"
        made_of = trained_on(json.loads(card.read_text(encoding="utf-8")))
        if not kept.is_file() or made_of != sha256_of(kept):
            raise TrainingError(f"{to} holds another model. Name a folder with --to model_store/NAME.")


def _check_start(run: Path, start: Start) -> None:
    """
    Raises:
        TrainingError: the run began with another start.
    """
    path = run / "start.json"
    wanted = {"start": start.name}
    if path.is_file() and (before := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        raise TrainingError(
            f"{run} began with --start {before['start']}, not {start.name}. Choose another folder with --run, or "
            f"remove {run}."
        )
    path.write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _described_data(path: Path, rows: pd.DataFrame, table: Table) -> list[str]:
    counts = rows["split"].value_counts()
    labels = rows["label"].value_counts()
    shown = ", ".join(f"{label} {count:,}" for label, count in labels.head(10).items())
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    how = "its own" if "split" in table.rows else f"stratified, seed {SEED}, copies of a text in one split"
    sizes = ", ".join(f"{split} {counts.get(split, 0):,}" for split in SPLITS)
    lines = [
        f"{path}: {len(rows):,} texts, {len(labels)} labels ({shown}{more}).",
        f"Splits ({how}): {sizes}.",
    ]
    lines += [f"warning: {warning}." for warning in table.warnings]
    if copies := leaks(rows):
        lines.append(
            f"warning: {copies:,} rows outside the train split are copies of one in it, so the figures will be too "
            f"good. Leave --split-column out to split the file here."
        )
    return lines


def _rounded_up(minutes: float) -> str:
    if minutes < 90:
        return f"{max(2, round(minutes))} minutes"
    return f"{minutes / 60:.0f} hours"


def _train(order: Order, start: Start, recipe: Recipe, csv: Path, run: Path) -> Path:
    """Run the stages; returns the folder of the encoder that they began with."""
    data, digest, settings = read_tweets(csv), sha256_of(csv), recipe.settings
    train = labelled(data, "train")
    print("1 of 6: the starting weights")
    encoder = began_with = _encoder(start, settings, train, data, digest, run)
    print(f"2 of 6: the teacher, {settings.transformer}")
    teacher = run / "teacher"
    if recipe.fine_tunes_teacher:
        train_teacher(data, digest, settings.teacher, teacher, settings.transformer)
    else:
        train_frozen_teacher(data, digest, settings.frozen_teacher, teacher, settings.transformer)
    print(f"3 of 6: {BASELINE}, and what is chosen on the validation split")
    measured = _measured(data, digest, teacher, run)
    print(measured["told"])
    weights, share = measured["class_weights"], measured["tfidf_weight"]
    changed = with_changes(settings, [f"{stage}.tfidf_weight={share}" for stage in ("distil", "classifier")])
    print("4 of 6: distillation, the network learns to read as the teacher does")
    distil_with_labels(
        data,
        digest,
        texts=list(order.texts),
        encoder_folder=encoder,
        teacher_folder=teacher,
        settings=changed.distil,
        folder=run / "distil",
        class_weights=weights,
    )
    print("5 of 6: the classifier")
    train_classifier(
        data,
        digest,
        encoder_folder=run / "distil",
        teacher_folder=teacher,
        settings=changed.classifier,
        folder=run / "classifier",
        class_weights=weights,
    )
    return began_with


def _encoder(
    start: Start, settings: FitSettings, train: pd.DataFrame, data: pd.DataFrame, digest: str, run: Path
) -> Path:
    """The folder of the encoder that the distillation begins with."""
    if start.kind == OWN:
        return own_words(train["text"], settings.start, run)
    if start.kind == "exported model":
        return unpack(Path(start.name), run)
    folder = run / "language-model"
    train_on_texts(data, digest, general_model(start.name), settings.language_model, folder)
    return folder


def _measured(data: pd.DataFrame, digest: str, teacher_folder: Path, run: Path) -> dict[str, Any]:
    """The baseline's figures, and the class weights and TF-IDF's share that are best on the validation split."""
    path, labels = run / MEASURED_FILE, labels_of(data)
    inputs = {"data": digest, "teacher": sha256_of(teacher_folder / TEACHER_FILE)}
    if path.is_file() and (found := json.loads(path.read_text(encoding="utf-8")))["inputs"] == inputs:
        return dict(found)
    train, validation = labelled(data, "train"), labelled(data, "validation")
    baseline = fitted(train)
    of_splits = {
        split: _probabilities(baseline, rows, labels)
        for split in SPLITS
        if len(rows := data[data["split"] == split]) and rows["label"].notna().all()
    }
    metrics = {
        split: figures(list(data.loc[data["split"] == split, "label"]), found, labels)
        for split, found in of_splits.items()
        if split != "train"  # which it knows by heart
    }
    weights, told = _class_weights(baseline, train, validation, of_splits["validation"], labels)
    taught = load_teacher(teacher_folder, labels).predict(list(validation["text"]))[0].numpy()
    true = to_targets(validation["label"], labels).argmax(1)
    # For its answers to the train split, each label must be in the folds that it is fitted on.
    weights_tried = TFIDF_WEIGHTS if train["label"].value_counts().max() >= FOLDS else TFIDF_WEIGHTS[:1]
    losses = [
        log_loss(true, _normalized((1 - share) * taught + share * of_splits["validation"]), labels=range(len(labels)))
        for share in weights_tried
    ]
    share = TFIDF_WEIGHTS[int(np.argmin(losses))]
    told += f" TF-IDF's share in the teachers' answers: {share:.0%}."
    result = {
        "inputs": inputs,
        "baseline": metrics,
        "class_weights": weights,
        "tfidf_weight": share,
        "told": told,
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
    return result


def _normalized(probabilities: NDArray[Any]) -> NDArray[Any]:
    found = probabilities.astype(np.float64)
    normalized: NDArray[Any] = found / found.sum(1, keepdims=True)
    return normalized


def _probabilities(model: Any, rows: pd.DataFrame, labels: Sequence[str]) -> NDArray[np.float64]:
    found = np.zeros((len(rows), len(labels)))
    found[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(rows["text"])
    return found


def _class_weights(
    baseline: Any, train: pd.DataFrame, validation: pd.DataFrame, without: NDArray[np.float64], labels: list[str]
) -> tuple[dict[str, float] | None, str]:
    """Weights of the labels against their numbers, if the baseline's macro-F1 is better with them."""
    counts = train["label"].value_counts()
    if counts.max() <= EVEN * counts.min():
        return None, f"Class weights: none, the labels have {counts.min():,} to {counts.max():,} texts."
    vectors, regression = baseline[:-1], clone(baseline[-1]).set_params(class_weight="balanced")
    weighted = regression.fit(vectors.transform(train["text"]), train["label"])
    true = validation["label"]
    scores = [
        float(f1_score(true, predicted, labels=labels, average="macro", zero_division=0))
        for predicted in (
            [labels[best] for best in without.argmax(1)],
            weighted.predict(vectors.transform(validation["text"])),
        )
    ]
    use = scores[1] >= scores[0] + LEAST_GAIN
    told = (
        f"Class weights: {'yes' if use else 'none'} (the baseline's macro-F1 on the validation split is "
        f"{scores[0]:.3f} without, {scores[1]:.3f} with them)."
    )
    weights = {label: len(train) / (len(labels) * int(counts[label])) for label in labels}
    return (weights if use else None), told


def _results(to: Path, csv: Path) -> list[str]:
    """The figures beside the baseline's, and the commands that serve the model."""
    card: Mapping[str, Any] = json.loads((to / CARD_FILE).read_text(encoding="utf-8"))
    baseline = card["baseline"]["metrics"]
    lines = ["", f"{'':<46}{'accuracy':>10}{'macro-F1':>10}{'calibration error':>19}"]
    for split in ("validation", "test"):
        for name, metrics in ((to.name, card["metrics"]), (BASELINE, baseline)):
            if of := metrics.get(split):
                lines.append(
                    f"{f'{split}, {name}':<46.45}{of['accuracy']:>10.3f}{of['macro_f1']:>10.3f}"
                    f"{of['expected_calibration_error']:>19.3f}"
                )
    split = "test" if "test" in card["metrics"] else "validation"
    mine, other = card["metrics"][split], baseline[split]
    error = float(np.sqrt(mine["accuracy"] * (1 - mine["accuracy"]) / mine["n"]))
    lines += [
        "",
        f"One standard error of the accuracy on the {mine['n']:,} texts of the {split} split is {error:.3f}.",
    ]
    if mine["accuracy"] < other["accuracy"]:
        lines.append(
            f"warning: {BASELINE} is better here. More labelled texts, or texts of the same kind without labels "
            f"(--texts), may change that."
        )
    texts = shlex.quote(str(csv))
    model, archive = shlex.quote(str(to)), shlex.quote(str(Path("model_store", f"{to.resolve().name}.mar")))
    lines += [
        "",
        f"The card: {to / 'README.md'}. To serve it:",
        f"    python -m training archive --model {model} --to {archive}",
        f"    python -m server --model {to.resolve().name}",
        "To measure it again:",
        f"    python -m training evaluate --data {texts} --split {split} --model {model}",
    ]
    return lines
