"""Predictions of an exported model through the handler's steps, without a server."""

from http import HTTPStatus
from typing import Final

from handler import batch
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.reply import Model
from training.errors import TrainingError
from training.measure.evaluate import Predictor

JSON_HEADERS: Final = {"content-type": "application/json"}


def model_predictor(classifier: TextClassifier, name: str) -> Predictor:
    """Make a predictor of a loaded model.

    Args:
        classifier: the loaded model.
        name: the model's name in replies.
    """
    limits, model = Limits(), Model(name, "", classifier.task, classifier.card)

    def predict(body: bytes) -> bytes:
        results, _ = batch.infer(batch.read([({"body": body}, JSON_HEADERS)], limits), classifier, limits)
        [reply] = batch.write(results, model, limits)
        if reply.status is not HTTPStatus.OK:
            raise TrainingError(f"The model cannot read a text of the split: {reply.body.decode()}")
        return reply.body

    return predict
