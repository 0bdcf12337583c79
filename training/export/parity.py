"""Parity test of an export: the exported model must predict each text as fastai predicts it."""

import torch
from fastai.text.all import Learner

from handler.classifier import TextClassifier
from handler.exported import ExportedModel
from handler.network import TextNetwork
from handler.task import TaskName
from training.errors import TrainingError
from training.export.probes import probes

TOLERANCE = 1e-5
"""Maximum difference of a probability or of a regression's value; relative for values over 1."""


def check_parity(learner: Learner, model: ExportedModel) -> None:
    """Compare the predictions of a learner and its exported model on the texts of `training.export.probes`.

    The texts have no token of several white-space characters. For such tokens, `Learner.predict` omits a rule
    (`replace_space`) that fastai applies in training; the exported model has the rule.

    Raises:
        TrainingError: a prediction differs by more than `TOLERANCE`.
    """
    classifier = TextClassifier(model, TextNetwork.of(model))
    task = model.config.task
    for text in probes(model):
        expected = _fastai_prediction(learner, text, task)
        actual = torch.from_numpy(classifier.predict([text])[0])
        difference = float((expected - actual).abs().max()) if expected.shape == actual.shape else float("nan")
        tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= tolerance:
            raise TrainingError(
                f"The exported model does not predict as the learner does: for {text[:60]!r}, it differs by "
                f"{difference:.2g}. A part of the learner is not fastai's or is of a later version: a subclass, a "
                f"changed layer, a transform, a callback, or the loss's activation. The learner is not exported."
            )


def _fastai_prediction(learner: Learner, text: str, task: TaskName) -> torch.Tensor:
    # As in `Learner.predict`, but without decoding the label, which needs one of fastai's losses.
    try:
        with learner.no_bar(), learner.no_logging():
            outputs, _ = learner.get_preds(dl=learner.dls.test_dl([text], num_workers=0))
    except Exception as error:  # a learner's own code can raise any error
        raise TrainingError(
            f"fastai's prediction for {text[:60]!r} fails ({type(error).__name__}: {error}), so the export cannot be "
            f"compared with it. Does `learner.predict` work?"
        ) from error
    output: torch.Tensor = outputs[0].as_subclass(torch.Tensor).float()
    if hasattr(learner.loss_func, "activation") or task == "regression":
        return output
    # Unlike fastai's losses, torch's losses do not define how their inputs become probabilities.
    return output.softmax(-1) if task == "single-label" else output.sigmoid()
