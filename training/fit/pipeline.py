"""The command `fit`: from a user's labelled texts to an exported model.

The order: checks, splits, starting weights, recipe, stages, baseline, export.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import f1_score, log_loss

from handler.exported import CARD_FILE
from training.data import Dataset, labelled, labels_of, read_dataset, sha256_of
from training.errors import TrainingError
from training.export.destination import check_apart, check_destination, check_writable
from training.export.folder import export_run
from training.export.lineage import trained_on
from training.export.precision import measure
from training.export.sample import held_out_sample
from training.files import read_json, write_json
from training.fit.recipe import FitSettings, Recipe, expected_minutes, recipe_for
from training.fit.split import DATA_FILE, SEED, leaks, train_again, with_splits, write_data
from training.fit.start import OWN, Start, describe_starts, own_words, start_entry, start_named
from training.fit.table import OTHER_LANGUAGES, Columns, Table, is_mostly_latin, read_table
from training.measure.figures import figures
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
"""File in the run's folder with the baseline's figures and the choices made on the validation split."""

BASELINE: Final = "TF-IDF with logistic regression"
TFIDF_WEIGHTS: Final = (0.0, 0.15, 0.3, 0.5, 0.7, 1.0)
"""Candidates for the share of TF-IDF in the teachers' predictions."""

BALANCED: Final = 1.5
"""Ratio of the largest to the smallest number of texts of a label up to which no class weights are used."""

MIN_GAIN: Final = 0.02
"""Gain in the baseline's macro-F1 on the validation split from which class weights are used."""


@dataclass(frozen=True)
class Order:
    """Arguments of `fit`, as the command line has them."""

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
    """Train, evaluate and export a classifier; return the folder of the exported model.

    Raises:
        TrainingError: the data, the start or a setting is invalid, which is checked before training; or the run's
            folder contains other data or settings.
    """
    to = order.to or Path("model_store", _name_of(order.data))
    run = order.run or Path("runs", to.resolve().name)
    check_destination(to, own=True)
    check_writable(run, "--run")
    check_apart(to, run)
    table = read_table(order.data, order.columns)
    rows = with_splits(table.rows)
    labels_of(rows)
    start = start_named(order.start)
    for path in order.texts:
        next(read_lines(path))
    train = rows[rows["split"] == "train"]
    if (count := int(train["text"].str.contains(r"\w\w").sum())) < FOLDS:
        raise TrainingError(
            f"--data {order.data}: {count} texts of the train split have a word of at least two letters or digits; "
            f"expected {FOLDS} or more. Without words there is no baseline. Replace emoji by their names, or add texts."
        )
    words = sum(len(text.split()) for text in train["text"])
    recipe = recipe_for(len(train), words, order.tiny)
    settings = with_changes(recipe.settings, list(order.changes))
    recipe = Recipe(recipe.name, recipe.what, recipe.fine_tunes_teacher, settings)
    _check_changes(order.changes, recipe, start)
    _check_destination(to, order, run)
    data_file = write_data(rows, order.data, asdict(order.columns), run, to)
    _check_start(run, start, to)
    for line in [*_describe_data(order.data, rows, table), *describe_starts(start)]:
        print(line)
    ratio = 6.0 if start.name == WT103 else 1.0
    minutes = expected_minutes(recipe, len(train), words, rows["label"].nunique(), ratio)
    print(f"Recipe for {recipe.name}: {recipe.what}.")
    print(
        f"Expected time on two cores: about {_duration(minutes)}. If the command is interrupted, run it again to "
        "continue."
    )
    data = read_dataset(data_file)
    encoder = _train(order, start, recipe, data, run)
    measured = _read_measured(run)
    print(f"6 of 6: export to {to}")
    export_run(
        run,
        to,
        notes=order.notes,
        data=data,
        entries={
            "start": start_entry(start, encoder),
            "recipe": {"name": recipe.name, "what": recipe.what},
            "baseline": {"name": BASELINE, "metrics": measured["baseline"]},
        },
    )
    sample = held_out_sample(data, order.data.name)
    precision = measure(to, sample) if sample else []
    for line in [*precision, *describe_results(to, data_file, is_mostly_latin(rows["text"]))]:
        print(line)
    return to


def _name_of(data: Path) -> str:
    """Derive the model's name from the name of the data's file."""
    stem = data.name.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_") or "model"


def _check_destination(to: Path, order: Order, run: Path) -> None:
    card = to / CARD_FILE
    if order.to is None and card.is_file():
        data_file = run / DATA_FILE
        digest = trained_on(read_json(card, {}, f"remove {to}, or choose another folder with --to"))
        if not data_file.is_file() or digest != sha256_of(data_file):
            raise TrainingError(
                f"{to} contains another model. To replace it, add --to {shlex.quote(str(to))}; to keep it, choose "
                f"another folder: --to model_store/NAME."
            )


def _check_changes(changes: Sequence[str], recipe: Recipe, start: Start) -> None:
    """Check that each setting of `--set` is of a stage that will run.

    Raises:
        TrainingError: the recipe or the start does not have the stage.
    """
    absent = {"teacher" if not recipe.fine_tunes_teacher else "frozen_teacher"}
    absent |= {"start"} if start.kind != OWN else set()
    absent |= {"language_model"} if start.kind != "language model" else set()
    for change in changes:
        if (stage := change.partition(".")[0]) in absent:
            raise TrainingError(
                f"--set {change}: the recipe for {recipe.name} with --start {start.name} has no stage {stage}."
            )


def _check_start(run: Path, start: Start, to: Path) -> None:
    """Check that the run has this start, and store the start in the run's folder.

    Raises:
        TrainingError: the run was started with another --start.
    """
    path = run / "start.json"
    entry = {"start": start.name}
    if path.is_file():
        stored = read_json(path, {"start": str}, f"remove {path}, and run the command again")
        if stored != entry:
            raise TrainingError(
                f"{run} was started with --start {stored['start']}, not {start.name}. {train_again(to, run)}"
            )
    write_json(path, entry)


def _describe_data(path: Path, rows: pd.DataFrame, table: Table) -> list[str]:
    counts = rows["split"].value_counts()
    labels = rows["label"].value_counts()
    shown = ", ".join(f"{label} {count:,}" for label, count in labels.head(10).items())
    more = f" and {len(labels) - 10} more" if len(labels) > 10 else ""
    method = "of the file" if "split" in table.rows else f"stratified, seed {SEED}, copies of a text in one split"
    sizes = ", ".join(f"{split} {counts.get(split, 0):,}" for split in SPLITS)
    lines = [
        f"{path}: {len(rows):,} texts, {len(labels)} labels ({shown}{more}).",
        f"Splits ({method}): {sizes}.",
    ]
    lines += [f"warning: {warning}." for warning in table.warnings]
    if copies := leaks(rows):
        lines.append(
            f"warning: {copies:,} rows outside the train split have nearly the same text as rows in it, so the figures "
            f"will be too good. Omit --split-column to split the file here."
        )
    return lines


def _duration(minutes: float) -> str:
    if minutes < 90:
        return f"{max(2, round(minutes))} minutes"
    return f"{minutes / 60:.0f} hours"


def _train(order: Order, start: Start, recipe: Recipe, data: Dataset, run: Path) -> Path:
    """Run the stages; return the folder of the encoder that they started with."""
    table, digest, settings = data.table(), data.sha256, recipe.settings
    train = labelled(table, "train")
    print("1 of 6: the starting weights")
    encoder = _encoder(start, settings, train, table, digest, run)
    print(f"2 of 6: the teacher, {settings.transformer}")
    teacher = run / "teacher"
    if recipe.fine_tunes_teacher:
        train_teacher(table, digest, settings.teacher, teacher, settings.transformer)
    else:
        train_frozen_teacher(table, digest, settings.frozen_teacher, teacher, settings.transformer)
    print(f"3 of 6: {BASELINE}, and the choices on the validation split")
    measured = _measure(table, digest, teacher, run)
    print(measured["told"])
    weights, share = measured["class_weights"], measured["tfidf_weight"]
    given = {change.partition("=")[0] for change in order.changes}
    names = {f"{stage}.tfidf_weight" for stage in ("distil", "classifier")}
    changed = with_changes(settings, [f"{name}={share}" for name in sorted(names - given)])
    print("4 of 6: distillation, which trains the network on the teacher's outputs")
    distil_with_labels(
        table,
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
        table,
        digest,
        encoder_folder=run / "distil",
        teachers=[teacher],
        settings=changed.classifier,
        folder=run / "classifier",
        class_weights=weights,
    )
    return encoder


def _encoder(
    start: Start, settings: FitSettings, train: pd.DataFrame, table: pd.DataFrame, digest: str, run: Path
) -> Path:
    """Prepare the starting weights; return the folder of the encoder."""
    if start.kind == OWN:
        return own_words(train["text"], settings.start, run)
    if start.kind == "exported model":
        return unpack(Path(start.name), run)
    folder = run / "language-model"
    train_on_texts(table, digest, general_model(start.name), settings.language_model, folder)
    return folder


def _measure(table: pd.DataFrame, digest: str, teacher_folder: Path, run: Path) -> dict[str, Any]:
    """Evaluate the baseline, and choose class weights and the share of TF-IDF on the validation split.

    The result is stored in the run's folder.
    """
    labels = labels_of(table)
    inputs = {"data": digest, "teacher": sha256_of(teacher_folder / TEACHER_FILE)}
    if (run / MEASURED_FILE).is_file() and (stored := _read_measured(run))["inputs"] == inputs:
        return stored
    train, validation = labelled(table, "train"), labelled(table, "validation")
    baseline = fitted(train)
    predictions = {
        split: _probabilities(baseline, rows, labels)
        for split in SPLITS
        if len(rows := table[table["split"] == split]) and rows["label"].notna().all()
    }
    metrics = {
        split: figures(list(table.loc[table["split"] == split, "label"]), probabilities, labels)
        for split, probabilities in predictions.items()
        if split != "train"  # TF-IDF knows its train split by heart
    }
    weights, description = _class_weights(baseline, train, validation, predictions["validation"], labels)
    taught = load_teacher(teacher_folder, labels).predict(list(validation["text"]))[0].numpy()
    true = to_targets(validation["label"], labels).argmax(1)
    # For soft labels of the train split, each label must occur in the parts that TF-IDF is fitted on.
    candidates = TFIDF_WEIGHTS if train["label"].value_counts().max() >= FOLDS else TFIDF_WEIGHTS[:1]
    losses = [
        log_loss(true, _normalized((1 - share) * taught + share * predictions["validation"]), labels=range(len(labels)))
        for share in candidates
    ]
    share = TFIDF_WEIGHTS[int(np.argmin(losses))]
    description += f" Share of TF-IDF in the teachers' predictions: {share:.0%}."
    result = {
        "inputs": inputs,
        "baseline": metrics,
        "class_weights": weights,
        "tfidf_weight": share,
        "told": description,
    }
    write_json(run / MEASURED_FILE, result)
    return result


def _read_measured(run: Path) -> dict[str, Any]:
    """Read the result that `_measure` stored.

    Raises:
        TrainingError: the file is damaged.
    """
    form = {"inputs": dict, "baseline": dict, "class_weights": dict | None, "tfidf_weight": int | float, "told": str}
    return read_json(run / MEASURED_FILE, form, f"remove {run / MEASURED_FILE}, and run the command again")


def _normalized(probabilities: NDArray[Any]) -> NDArray[Any]:
    exact = probabilities.astype(np.float64)
    normalized: NDArray[Any] = exact / exact.sum(1, keepdims=True)
    return normalized


def _probabilities(model: Any, rows: pd.DataFrame, labels: Sequence[str]) -> NDArray[np.float64]:
    probabilities = np.zeros((len(rows), len(labels)))
    probabilities[:, [labels.index(label) for label in model.classes_]] = model.predict_proba(rows["text"])
    return probabilities


def _class_weights(
    baseline: Any, train: pd.DataFrame, validation: pd.DataFrame, unweighted: NDArray[np.float64], labels: list[str]
) -> tuple[dict[str, float] | None, str]:
    """Choose class weights, inversely proportional to the labels' numbers, if they improve the baseline's macro-F1.

    Returns:
        The weight of each label, or None; and a description of the choice.
    """
    counts = train["label"].value_counts()
    if counts.max() <= BALANCED * counts.min():
        return None, f"Class weights: none, the labels have {counts.min():,} to {counts.max():,} texts."
    vectors, regression = baseline[:-1], clone(baseline[-1]).set_params(class_weight="balanced")
    weighted = regression.fit(vectors.transform(train["text"]), train["label"])
    true = validation["label"]
    scores = [
        float(f1_score(true, predicted, labels=labels, average="macro", zero_division=0))
        for predicted in (
            [labels[best] for best in unweighted.argmax(1)],
            weighted.predict(vectors.transform(validation["text"])),
        )
    ]
    use = scores[1] >= scores[0] + MIN_GAIN
    description = (
        f"Class weights: {'yes' if use else 'none'} (the baseline's macro-F1 on the validation split is "
        f"{scores[0]:.3f} without and {scores[1]:.3f} with them)."
    )
    weights = {label: len(train) / (len(labels) * int(counts[label])) for label in labels}
    return (weights if use else None), description


def describe_results(to: Path, data_file: Path, is_latin: bool) -> list[str]:
    """Format the figures of the model and of the baseline, and the commands to serve the model, as lines.

    Args:
        to: folder of the exported model.
        data_file: the file of the run's data.
        is_latin: see `training.fit.table.is_mostly_latin`.
    """
    card = read_json(to / CARD_FILE, {"metrics": dict, "baseline": dict})
    baseline = card["baseline"]["metrics"]
    lines = ["", f"{'':<46}{'accuracy':>10}{'macro-F1':>10}{'calibration error':>19}"]
    for split in ("validation", "test"):
        for name, metrics in ((to.name, card["metrics"]), (BASELINE, baseline)):
            if scores := metrics.get(split):
                lines.append(
                    f"{f'{split}, {name}':<46.45}{scores['accuracy']:>10.3f}{scores['macro_f1']:>10.3f}"
                    f"{scores['expected_calibration_error']:>19.3f}"
                )
    split = "test" if "test" in card["metrics"] else "validation"
    scores = card["metrics"][split]
    if 0 < scores["accuracy"] < 1:  # otherwise the estimate of the standard error is 0
        error = float(np.sqrt(scores["accuracy"] * (1 - scores["accuracy"]) / scores["n"]))
        lines += [
            "",
            f"The standard error of the accuracy on the {scores['n']:,} texts of the {split} split is {error:.3f}.",
        ]
    if scores["accuracy"] < baseline[split]["accuracy"]:
        more = "More labelled texts, or texts of the same kind without labels (--texts), may change that"
        lines.append(f"warning: {BASELINE} is better here. {more if is_latin else OTHER_LANGUAGES}.")
    python, texts = _python(), shlex.quote(str(data_file))
    model, archive = shlex.quote(str(to)), shlex.quote(str(Path("model_store", f"{to.resolve().name}.mar")))
    lines += [
        "",
        f"The card: {to / 'README.md'}. To serve it:",
        f"    {python} -m training archive --model {model} --to {archive}",
        f"    {python} -m server --model {to.resolve().name}",
        "To evaluate it again:",
        f"    {python} -m training evaluate --data {texts} --split {split} --model {model}",
    ]
    return lines


def _python() -> str:
    """Return the path of this process's Python for a shell command, relative to the current folder if it is in it."""
    executable, folder = Path(sys.executable), Path.cwd()
    return shlex.quote(str(executable.relative_to(folder) if executable.is_relative_to(folder) else executable))
