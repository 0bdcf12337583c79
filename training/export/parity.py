"""The proof of an export: fastai's own prediction for one document against the exported model's, text by text."""

import torch
from fastai.text.all import Learner

from handler.classifier import TextClassifier
from handler.exported import ExportedModel
from handler.network import TextNetwork
from handler.task import TaskName
from training.errors import TrainingError
from training.export.probes import probes

TOLERANCE = 1e-5
"""In a probability; in the value of a regression, or in its share of a value over 1."""


def prove(learner: Learner, model: ExportedModel) -> None:
    """Compare the two on sentences, and on words of the vocabulary and others in texts of many lengths.

    The texts have no token of several white-space characters. On those `Learner.predict` leaves out a rule
    (`replace_space`) that fastai applies in training; the exported model has it.

    Raises:
        TrainingError: a probability differs by more than `TOLERANCE`.
    """
    classifier = TextClassifier(model, TextNetwork.of(model))
    task = model.config.task
    for text in probes(model):
        expected = _fastais_answer(learner, text, task)
        found = torch.from_numpy(classifier.predict([text])[0])
        difference = float((expected - found).abs().max()) if expected.shape == found.shape else float("nan")
        tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= tolerance:
            raise TrainingError(
                f"The exported model does not answer as the learner does: it differs by {difference:.2g}, for "
                f"{text[:60]!r}. Something in the learner is not fastai's own, or a later version's: a subclass, a "
                f"changed layer, a transform, a callback, the loss's activation. It is not exported."
            )


def _fastais_answer(learner: Learner, text: str, task: TaskName) -> torch.Tensor:
    # What `Learner.predict` does, but for the decoding of the label, which needs one of fastai's own losses.
    try:
        with learner.no_bar(), learner.no_logging():
            answers, _ = learner.get_preds(dl=learner.dls.test_dl([text], num_workers=0))
    except Exception as error:  # whatever is in a learner that is not fastai's own
        raise TrainingError(
            f"fastai's own prediction for {text[:60]!r} fails ({type(error).__name__}: {error}), so that there is "
            f"nothing to hold the export against. Does `learner.predict` work?"
        ) from error
    output: torch.Tensor = answers[0].as_subclass(torch.Tensor).float()
    if hasattr(learner.loss_func, "activation") or task == "regression":
        return output
    # torch's own loss, unlike fastai's, does not say how its inputs become probabilities.
    return output.softmax(-1) if task == "single-label" else output.sigmoid()
