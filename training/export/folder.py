"""Write an exported model's folder: weights, `card.json`, `README.md` and the picture of the validation split."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from handler import exported
from handler.classifier import TextClassifier
from handler.exported import ExportedModel
from training.data import Dataset, existing, sha256_of
from training.errors import TrainingError
from training.export.card import card_of_run, new_card
from training.export.destination import WORKSPACE_PREFIX
from training.export.ensemble import joined
from training.export.learner import export_learner
from training.export.learner_file import read_learner
from training.export.lineage import trained_on
from training.export.page import to_markdown
from training.export.parity import check_parity
from training.export.picture import PICTURE_FILE, plot
from training.measure.evaluate import behaviour_of, evaluate
from training.measure.model import model_predictor
from training.measure.reference import reference_of
from training.splits import SPLITS
from training.stages.products import LEARNER_FILE


def export_run(
    run: Path,
    folder: Path,
    *,
    notes: str = "",
    stage: str = "classifier",
    data: Dataset | None = None,
    entries: Mapping[str, Any] | None = None,
) -> None:
    """Export the learner of a run's stage.

    Args:
        run: folder of the run.
        folder: folder of the exported model.
        notes: see `training.export.card.card_of_run`.
        stage: `classifier` or `distil`. The learner of `distil` has seen no label of the data, except in a run of
            `fit`.
        data: the run's labelled texts, to evaluate the model for the card and to measure drift against; see `_write`.
        entries: additional entries of the card.

    Raises:
        TrainingError: the stage is not finished, or `data` is not the data of the run.
    """
    card = card_of_run(run, notes, stage)
    if data and trained_on(card) != data.sha256:
        raise TrainingError(
            f"{data.file} is not the file that {run} was trained on. Rows that it holds out may have been trained on, "
            f"so the figures would be too good. Omit --data, or name the file of the run."
        )
    _write([run / stage / LEARNER_FILE], card | dict(entries or {}), folder, data)


def export_files(files: Sequence[Path], folder: Path, *, notes: str = "", data: Dataset | None = None) -> None:
    """Export learners from the files that fastai's `Learner.export` wrote.

    Args:
        files: one file, or several for an ensemble (`training.export.ensemble`). They are pickles, which can run any
            code: export only files that you trust.
        folder: folder of the exported model.
        notes: see `training.export.card.card_of_run`.
        data: labelled texts, to evaluate the model for the card and to measure drift against; see `_write`.

    Raises:
        TrainingError: a file is missing, or a learner cannot be exported.
    """
    _write(files, new_card(notes), folder, data)


def _write(files: Sequence[Path], card: dict[str, Any], folder: Path, data: Dataset | None) -> None:
    """Write the exported model of learners' files.

    With `data`, the splits without blank labels are evaluated for the card, and the reference distributions of the
    train split are added.
    """
    model = _model_of(files, card)
    if data is not None and model.config.task != "single-label":
        raise TrainingError(
            f"--data evaluates single-label models; the task of this model is {model.config.task}. Omit --data."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # The evaluation takes minutes. Until it is finished, the previous model in the folder stays complete.
    with tempfile.TemporaryDirectory(dir=folder, prefix=WORKSPACE_PREFIX) as workspace:
        new = Path(workspace)
        exported.write(model, new)
        if data is not None:
            _evaluate(new, card, data)
        exported.write_description(replace(model, card=card), new)
        parameters = sum(value.size for value in model.weights.values())
        if "validation" in card["metrics"]:
            plot(card["metrics"]["validation"], new / PICTURE_FILE)
        names = [*exported.FILES, *([exported.PIECES_FILE] if model.pieces else [])]
        size = sum((new / name).stat().st_size for name in names)
        page = to_markdown(card, folder.resolve().name, parameters, size)
        (new / "README.md").write_text(page, encoding="utf-8")
        for optional in (PICTURE_FILE, exported.PIECES_FILE):  # files of the previous model
            (folder / optional).unlink(missing_ok=True)
        for file in sorted(new.iterdir()):
            os.replace(file, folder / file.name)


def _evaluate(model: Path, card: dict[str, Any], data: Dataset) -> None:
    """Add the figures, the behavioural tests and the reference distributions to the card."""
    classifier = TextClassifier.load(model)
    predictor = model_predictor(classifier, model.name)
    card["behaviour"] = behaviour_of(predictor)
    splits = [split for split in SPLITS if data.is_labelled(split)]
    card["metrics"] = {split: evaluate(data, split, predictor) for split in splits}
    if "train" in splits:
        card["reference"] = reference_of(classifier, data)


def _model_of(files: Sequence[Path], card: dict[str, Any]) -> ExportedModel:
    """Export one learner, or an ensemble of several learners, and add the files' SHA-256 to the card."""
    for file in files:
        existing(file, "; expected a file that fastai's `Learner.export` wrote.")
    first, *others = map(sha256_of, files)
    card["exported"]["learner_sha256"] = first
    if others:
        card["exported"]["other_learners_sha256"] = others
    learners = list(map(read_learner, files))
    model = joined([export_learner(learner, card) for learner in learners], list(map(str, files)))
    if others:  # the members of an ensemble have a merged vocabulary
        for learner, member in zip(learners, model.members, strict=True):
            check_parity(learner, member)
    return model
