"""The reply to a request: predictions, a description or an error, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

import numpy as np

from handler import open_inference
from handler.body import SCORE_DIGITS, rounded_value, to_json
from handler.errors import RequestError
from handler.open_inference import Outputs
from handler.prediction import Explanation, Prediction
from handler.request import Form, Request
from handler.spans import Span
from handler.task import Task

JSON_TYPE = {"content-type": "application/json"}
_LONGEST_SCORE = -0.123456
_LONGEST_VALUE = float(np.finfo(np.float32).min)
_LONGEST_CHARACTER_BYTES = 6
"""Length of a control character in JSON, such as `\\u0000`."""
_LONGEST_SPECIAL_TOKEN = "xxwrep"
_TOKENS_PER_CHARACTER = 2
"""Upper bound. A capital and a symbol, such as `A…`, are `xxmaj` and two tokens: 1.5 for each character."""
_SEPARATOR_BYTES = len(", ")
_FORM_BYTES = len(to_json({"predictions": []}))


@dataclass(frozen=True)
class Model:
    """The model that a reply describes."""

    name: str
    """Name of the model in TorchServe."""

    version: str
    """Version of the model in TorchServe."""

    task: Task
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """The HTTP response to a request."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str]


def reply(predictions: Sequence[Prediction], form: Form | Outputs, model: Model) -> Reply:
    """Write predictions in the form of the request.

    Args:
        predictions: the predictions for the texts of the request.
        form: the form of the request.
        model: the model that made the predictions.
    """
    if isinstance(form, Outputs):
        body, headers = open_inference.reply(predictions, form, model.task, model.name, model.version)
        return Reply(HTTPStatus.OK, body, headers)
    results = [prediction_json(prediction, model.task) for prediction in predictions]
    match form:
        case Form.SINGLE:
            return _ok(results[0])
        case Form.LIST:
            return _ok(results)
        case Form.INSTANCES:
            return _ok({"predictions": results})


def description(model: Model) -> Reply:
    """Write the model's card, as the reply to TorchServe's request for a description."""
    return _ok(model.card)


def metadata(model: Model) -> Reply:
    """Write the model's metadata for the Open Inference Protocol."""
    notes = str(model.card.get("notes") or "")
    return Reply(HTTPStatus.OK, open_inference.metadata(model.task, notes, model.name, model.version), JSON_TYPE)


def error(problem: RequestError, is_open_inference: bool) -> Reply:
    """Write an error in TorchServe's form, or in the form of the Open Inference Protocol."""
    if is_open_inference:
        return Reply(problem.status, open_inference.error(problem), JSON_TYPE)
    body = {"code": problem.status.value, "type": type(problem).__name__, "message": str(problem)}
    return Reply(problem.status, to_json(body), JSON_TYPE)


def prediction_json(prediction: Prediction, task: Task) -> dict[str, Any]:
    """Return a prediction as a JSON object.

    The object of a single-label model has `label`, `score` and `scores`; the object of a multi-label model has `labels`
    and `scores`; the object of a regression has `value`. With an explanation, it also has `tokens`.
    """
    result: dict[str, Any]
    if task.name == "regression":
        result = {"value": rounded_value(prediction.outputs[0])}
    else:
        rows = zip(task.labels, prediction.outputs, strict=True)
        scores = {label: round(probability, SCORE_DIGITS) for label, probability in rows}
        if task.name == "multi-label":
            result = {"labels": list(prediction.labels), "scores": scores}
        else:
            [label] = prediction.labels
            result = {"label": label, "score": scores[label], "scores": scores}
    return result | {"tokens": _tokens(prediction.explanation, task)} if prediction.explanation else result


def max_bytes(request: Request, task: Task, is_explained: bool) -> int:
    """Return an upper bound of a reply's length in bytes, before any prediction.

    Args:
        request: the request with its texts and the form of its reply.
        task: the model's task. The reply has the score of each label for each text.
        is_explained: whether the reply has the tokens of each text with their weights.
    """
    if isinstance(request.form, Outputs):
        return open_inference.max_bytes(len(request.texts), task, request.form)
    size = _FORM_BYTES + len(request.texts) * _max_prediction_bytes(task)
    if is_explained:
        tokens = _TOKENS_PER_CHARACTER * request.characters + len(request.texts)
        longest = max(map(len, request.texts), default=0)
        size += tokens * _max_token_bytes(longest, task) + request.characters * _LONGEST_CHARACTER_BYTES
    return size


def _tokens(explanation: Explanation, task: Task) -> list[dict[str, Any]]:
    rows = zip(explanation.tokens, explanation.weights, explanation.spans, strict=True)
    labels = [task.labels[index] for index in explanation.outputs] if task.name == "multi-label" else []
    return [_token(token, weights, span, labels, task) for token, weights, span in rows]


def _token(token: str, weights: Sequence[float], span: Span, labels: Sequence[str], task: Task) -> dict[str, Any]:
    """Return a token of an explanation as a JSON object.

    For a multi-label model, `weight` is the sum of the weights, and `weights` has the weight for each label.
    """
    total = rounded_value(weights[0]) if task.name == "regression" else round(sum(weights), SCORE_DIGITS)
    result: dict[str, Any] = {"token": token, "weight": total}
    if labels:
        rows = zip(labels, weights, strict=True)
        result["weights"] = {label: round(weight, SCORE_DIGITS) for label, weight in rows}
    return result | {"start": span[0], "end": span[1]}


@cache
def _max_prediction_bytes(task: Task) -> int:
    scores = dict.fromkeys(task.labels, _LONGEST_SCORE)
    longest: dict[str, Any]
    match task.name:
        case "single-label":
            label = max(task.labels, key=lambda label: len(to_json(label)))
            longest = {"label": label, "score": _LONGEST_SCORE, "scores": scores}
        case "multi-label":
            longest = {"labels": task.labels, "scores": scores}
        case "regression":
            longest = {"value": _LONGEST_VALUE}
    return len(to_json(longest | {"tokens": []})) + _SEPARATOR_BYTES


def _max_token_bytes(characters: int, task: Task) -> int:
    """Return an upper bound of the bytes of a token in the explanation of a text with a number of characters.

    The bound excludes the characters of the text that the token contains.
    """
    labels = task.labels if task.name == "multi-label" else ()
    weights = [_LONGEST_SCORE] * (len(labels) or 1)
    token = _token(_LONGEST_SPECIAL_TOKEN, weights, (characters, characters), labels, task)
    if task.name != "single-label":  # the weight is a sum of weights, or a difference of values
        token["weight"] = _LONGEST_VALUE
    return len(to_json(token)) + _SEPARATOR_BYTES


def _ok(value: object) -> Reply:
    return Reply(HTTPStatus.OK, to_json(value), JSON_TYPE)
