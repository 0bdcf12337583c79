"""The last step: probabilities, or an error, to the reply's JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

import numpy as np
import numpy.typing as npt

from handler import open_inference
from handler.body import to_json
from handler.classifier import Explanation
from handler.errors import RequestError
from handler.open_inference import Outputs
from handler.request import Form, Request
from handler.spans import Span
from handler.task import Task

SCORE_DIGITS = 6
JSON_TYPE = {"content-type": "application/json"}
_LONGEST_SCORE = -0.123456
_LONGEST_VALUE = float(np.finfo(np.float32).min)
_LONGEST_CHARACTER_BYTES = 6
"""A control character in JSON: `\\u0000`."""
_LONGEST_SPECIAL_TOKEN = "xxwrep"
_TOKENS_PER_CHARACTER = 2
"""A capital with one sign behind it, such as `A…`, is `xxmaj` and two tokens: 1.5 for each character."""
_SEPARATOR_BYTES = len(", ")


@dataclass(frozen=True)
class Model:
    """The model that replies speak of."""

    name: str
    """In TorchServe."""

    version: str
    """In TorchServe."""

    task: Task
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """The HTTP response to a request."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str]


def prediction(outputs: npt.NDArray[np.float32], task: Task) -> dict[str, Any]:
    """One text's prediction: the most probable label, its score, and all scores; the predicted labels and all scores;
    or a value.

    Args:
        outputs: of the network, (C,).
    """
    if task.name == "regression":
        return {"value": _value(float(outputs[0]))}
    scores = {label: round(float(p), SCORE_DIGITS) for label, p in zip(task.labels, outputs, strict=True)}
    labels = [task.labels[index] for index in task.predicted(outputs)]
    if task.name == "multi-label":
        return {"labels": labels, "scores": scores}
    return {"label": labels[0], "score": scores[labels[0]], "scores": scores}


def _value(value: float) -> float:
    """With six significant digits: 3.14, not 3.140000104904175. Where float32 ends, a text's neighbours in a batch may
    change a digit."""
    return float(f"{value:.{SCORE_DIGITS}g}")


def explained(prediction: dict[str, Any], explanation: Explanation, task: Task) -> dict[str, Any]:
    """A prediction with what speaks for it, token by token."""
    rows = zip(explanation.tokens, explanation.weights, explanation.spans, strict=True)
    labels = [task.labels[index] for index in explanation.outputs] if task.name == "multi-label" else []
    return prediction | {"tokens": [_token(token, weights, span, labels, task) for token, weights, span in rows]}


def _token(token: str, weights: Sequence[float], span: Span, labels: Sequence[str], task: Task) -> dict[str, Any]:
    """Of several labels, the weight is the sum, and `weights` has each."""
    total = _value(weights[0]) if task.name == "regression" else round(sum(weights), SCORE_DIGITS)
    described = {"token": token, "weight": total}
    if labels:
        rows = zip(labels, weights, strict=True)
        described["weights"] = {label: round(weight, SCORE_DIGITS) for label, weight in rows}
    return described | {"start": span[0], "end": span[1]}


def max_bytes(request: Request, task: Task, is_explained: bool) -> int:
    """Upper bound of a reply's length in bytes, known before anything is computed.

    Args:
        request: its texts, and the form of its reply.
        task: of the model. A reply has the score of each label for each text.
        is_explained: whether the reply has the tokens of each text with their weights.
    """
    if isinstance(request.form, Outputs):
        return open_inference.max_bytes(len(request.texts), task, request.form)
    size = len(to_json({"predictions": []})) + len(request.texts) * _prediction_bytes(task)
    if is_explained:
        tokens = _TOKENS_PER_CHARACTER * request.characters + len(request.texts)
        longest = max(map(len, request.texts), default=0)
        size += tokens * _token_bytes(longest, task) + request.characters * _LONGEST_CHARACTER_BYTES
    return size


@cache
def _prediction_bytes(task: Task) -> int:
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


def _token_bytes(characters: int, task: Task) -> int:
    """Upper bound of the bytes of a token in an explanation of a text with so many characters, without those of the
    text's own characters."""
    labels = task.labels if task.name == "multi-label" else ()
    weights = [_LONGEST_SCORE] * (len(labels) or 1)
    token = _token(_LONGEST_SPECIAL_TOKEN, weights, (characters, characters), labels, task)
    if task.name != "single-label":  # a sum of several, or a difference of values
        token["weight"] = _LONGEST_VALUE
    return len(to_json(token)) + _SEPARATOR_BYTES


def reply(results: list[dict[str, Any]], form: Form | Outputs, model: Model) -> Reply:
    """The reply with the results of a request, in the form that goes with the request's."""
    match form:
        case Form.SINGLE:
            return _ok(results[0])
        case Form.LIST:
            return _ok(results)
        case Form.INSTANCES:
            return _ok({"predictions": results})
        case Outputs():
            return Reply(HTTPStatus.OK, *open_inference.reply(results, form, model.task, model.name, model.version))


def description(model: Model) -> Reply:
    """The model's card, as TorchServe asks for it."""
    return _ok(model.card)


def metadata(model: Model) -> Reply:
    """The model's metadata for the Open Inference Protocol."""
    notes = str(model.card.get("notes") or "")
    return Reply(HTTPStatus.OK, open_inference.metadata(model.task, notes, model.name, model.version), JSON_TYPE)


def error(problem: RequestError, is_open_inference: bool) -> Reply:
    """The reply with an error, in TorchServe's own form or in that of the Open Inference Protocol."""
    if is_open_inference:
        return Reply(problem.status, open_inference.error(problem), JSON_TYPE)
    body = {"code": problem.status.value, "type": type(problem).__name__, "message": str(problem)}
    return Reply(problem.status, to_json(body), JSON_TYPE)


def _ok(value: object) -> Reply:
    return Reply(HTTPStatus.OK, to_json(value), JSON_TYPE)
