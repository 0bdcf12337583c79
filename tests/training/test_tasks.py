"""Tests of multi-label classifiers and regressions: they are exported exactly, and served with their task."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastai.text.all import (
    BCELossFlat,
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    L1LossFlat,
    MSELossFlat,
    MultiCategoryBlock,
    RegressionBlock,
    accuracy_multi,
)
from torch import nn

from handler import exported
from handler.classifier import TextClassifier
from handler.prediction import Prediction
from handler.reply import prediction_json
from handler.service import MODEL_FOLDER
from handler.task import Task
from tests.paths import TOY_TWEETS
from tests.training.test_export import NEAR, TOLERANCE, make_learner, texts_of_lengths, toy_texts
from training.data import read_dataset
from training.errors import TrainingError
from training.export.archive import archive
from training.export.folder import export_files
from training.export.learner import export_learner
from training.measure.evaluate import evaluate
from training.measure.model import model_predictor
from training.settings import Precision

TAGS = [["late"], ["crew", "food"], [], ["late", "crew"]]
VALUES = [0.5, 3.0, -2.0, 4.5, 1.0]
MULTI_LABEL = {"labels": TAGS, "target": MultiCategoryBlock}
REGRESSION = {"labels": VALUES, "target": RegressionBlock}
TEXTS = [*toy_texts()[:8], *texts_of_lengths([1, 2, 72, 73, 145])]


def fastais_answer(learner: Any, text: str) -> tuple[torch.Tensor, Any]:
    """Return the outputs and the decision of `learner.predict` for one text."""
    with learner.no_bar(), learner.no_logging():
        outputs, _, decided = learner.get_preds(dl=learner.dls.test_dl([text], num_workers=0), with_decoded=True)
    return outputs[0].as_subclass(torch.Tensor), decided[0]


@pytest.mark.parametrize(
    ("options", "task"),
    [
        (MULTI_LABEL, Task(("crew", "food", "late"), "multi-label", (0.5, 0.5, 0.5))),
        (
            MULTI_LABEL | {"loss_func": BCEWithLogitsLossFlat(thresh=0.7)},
            Task(("crew", "food", "late"), "multi-label", (0.7, 0.7, 0.7)),
        ),
        (
            MULTI_LABEL | {"loss_func": BCEWithLogitsLossFlat(thresh=torch.tensor([0.25, 0.5, 0.75]))},
            Task(("crew", "food", "late"), "multi-label", (0.25, 0.5, 0.75)),
        ),
        (REGRESSION, Task((), "regression")),
        (REGRESSION | {"y_range": (-3, 5)}, Task((), "regression", value_range=(-3.0, 5.0))),
    ],
    ids=["multi-label", "threshold", "threshold by label", "regression", "range"],
)
def test_any_task_is_exported_exactly(options: dict[str, Any], task: Task, tmp_path: Path) -> None:
    learner = make_learner(**options)
    exported.write(export_learner(learner, {}), tmp_path)
    classifier = TextClassifier.load(tmp_path)
    assert classifier.task == task
    result = classifier.predict(TEXTS)
    for text, row in zip(TEXTS, result, strict=True):
        outputs, decided = fastais_answer(learner, text)
        np.testing.assert_allclose(row, outputs, rtol=0, atol=TOLERANCE, err_msg=text)
        if task.name == "multi-label":
            names = [label for label, is_over in zip(task.labels, decided.tolist(), strict=True) if is_over]
            assert prediction_json(Prediction.from_outputs(row, task), task)["labels"] == names, text
        else:
            assert prediction_json(Prediction.from_outputs(row, task), task)["value"] == pytest.approx(
                decided.item(), abs=TOLERANCE
            )


@pytest.mark.parametrize("options", [MULTI_LABEL, REGRESSION | {"y_range": (-3, 5)}], ids=["multi-label", "range"])
def test_the_archive_of_any_task_predicts_as_the_exported_model(options: dict[str, Any], tmp_path: Path) -> None:
    exported.write(export_learner(make_learner(**options), {}), tmp_path)
    expected = TextClassifier.load(tmp_path)
    spread = 1 if expected.task.value_range is None else 5 - -3
    tolerances: dict[Precision, float] = {"float32": TOLERANCE, "int8": NEAR * spread}
    for precision, tolerance in tolerances.items():
        archive(tmp_path, tmp_path / "it.mar", "1.0", precision)
        shutil.unpack_archive(tmp_path / "it.mar", tmp_path / precision, "zip")
        archived = TextClassifier.load_archived(tmp_path / precision / MODEL_FOLDER, threads=1)
        assert archived.task == expected.task
        np.testing.assert_allclose(archived.predict(TEXTS), expected.predict(TEXTS), rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", [L1LossFlat(), nn.MSELoss(), nn.SmoothL1Loss(), nn.HuberLoss()], ids=repr)
def test_the_losses_of_a_regression_predict_the_value_itself(loss: Any) -> None:
    assert export_learner(make_learner(**REGRESSION, loss_func=loss), {}).config.task == "regression"


def test_torchs_loss_has_the_threshold_of_the_metric() -> None:
    metrics = partial(accuracy_multi, thresh=0.2)
    learner = make_learner(**MULTI_LABEL, loss_func=nn.BCEWithLogitsLoss(), metrics=metrics)
    assert export_learner(learner, {}).config.thresholds == (0.2, 0.2, 0.2)


def test_the_default_threshold_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    learner = make_learner(**MULTI_LABEL, loss_func=nn.BCEWithLogitsLoss())
    assert export_learner(learner, {}).config.thresholds == (0.5, 0.5, 0.5)
    assert "neither the loss nor a metric of the learner has a threshold" in capfd.readouterr().err


def test_a_metric_with_another_threshold_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    learner = make_learner(**MULTI_LABEL, metrics=[partial(accuracy_multi, thresh=0.2)])
    assert export_learner(learner, {}).config.thresholds == (0.5, 0.5, 0.5)
    assert "a metric of the learner has the threshold 0.2; the exported model has 0.5" in capfd.readouterr().err


class OwnLoss(nn.Module):
    def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MULTI_LABEL | {"loss_func": CrossEntropyLossFlat()}, "for single-label, but .* MultiCategoryBlock"),
        (MULTI_LABEL | {"loss_func": MSELossFlat()}, "for regression, but .* MultiCategoryBlock"),
        (REGRESSION | {"loss_func": CrossEntropyLossFlat()}, "for single-label, but .* RegressionBlock"),
        ({"loss_func": nn.BCEWithLogitsLoss()}, "for multi-label, but .* CategoryBlock"),
        ({"loss_func": OwnLoss()}, r"takes a softmax .* `learner.loss_func = CrossEntropyLossFlat\(\)`"),
        (MULTI_LABEL | {"loss_func": OwnLoss()}, r"a sigmoid .* `learner.loss_func = BCEWithLogitsLossFlat\(\)`"),
        (REGRESSION | {"loss_func": BCELossFlat()}, r"The loss is BCELoss, .* `learner.loss_func = MSELossFlat\(\)`"),
        (MULTI_LABEL | {"y_range": (0, 1)}, "The head has SigmoidRange"),
        ({"target": RegressionBlock(n_out=2), "labels": [[1.0, 2.0]]}, "predicts 2 numbers; .* Train a model for each"),
    ],
)
def test_a_loss_that_does_not_fit_the_target_is_refused(options: dict[str, Any], message: str) -> None:
    """The loss and the target's block must have the same task. The remedy fits the target."""
    with pytest.raises(TrainingError, match=message):
        export_learner(make_learner(**options), {})


def test_evaluation_refuses_other_tasks(tmp_path: Path) -> None:
    learner = make_learner(**REGRESSION)
    learner.export(tmp_path / "learner.pkl")
    with pytest.raises(
        TrainingError, match="--data evaluates single-label models; the task of this model is regression"
    ):
        export_files([tmp_path / "learner.pkl"], tmp_path / "model", data=read_dataset(TOY_TWEETS))
    export_files([tmp_path / "learner.pkl"], tmp_path / "model")
    predictor = model_predictor(TextClassifier.load(tmp_path / "model"), "model")
    with pytest.raises(TrainingError, match="The model is not single-label"):
        evaluate(read_dataset(TOY_TWEETS), "test", predictor)
