"""The last step: probabilities, or an error, to the reply's JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import Any

from handler import open_inference
from handler.body import to_json
from handler.classifier import Explanation
from handler.errors import RequestError
from handler.open_inference import Outputs
from handler.request import Form, Request
from handler.spans import Span

SCORE_DIGITS = 6
JSON_TYPE = {"content-type": "application/json"}
_LONGEST_SCORE = -0.123456
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

    labels: tuple[str, ...]
    card: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """The HTTP response to a request."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str]


def prediction(probabilities: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    """One text's prediction: the most probable label, its score, and all scores."""
    scores = {label: round(float(p), SCORE_DIGITS) for label, p in zip(labels, probabilities, strict=True)}
    best = max(range(len(labels)), key=lambda index: probabilities[index])
    return {"label": labels[best], "score": scores[labels[best]], "scores": scores}


def explained(prediction: dict[str, Any], explanation: Explanation) -> dict[str, Any]:
    """A prediction with what speaks for its label, token by token."""
    rows = zip(explanation.tokens, explanation.weights, explanation.spans, strict=True)
    return prediction | {"tokens": [_token(token, weight, span) for token, weight, span in rows]}


def _token(token: str, weight: float, span: Span) -> dict[str, Any]:
    return {"token": token, "weight": round(weight, SCORE_DIGITS), "start": span[0], "end": span[1]}


def max_bytes(request: Request, labels: tuple[str, ...], is_explained: bool) -> int:
    """Upper bound of a reply's length in bytes, known before anything is computed.

    Args:
        request: its texts, and the form of its reply.
        labels: the labels of the model. A reply has the score of each label for each text.
        is_explained: whether the reply has the tokens of each text with their weights.
    """
    if isinstance(request.form, Outputs):
        return open_inference.max_bytes(len(request.texts), labels, request.form)
    size = len(to_json({"predictions": []})) + len(request.texts) * _prediction_bytes(labels)
    if is_explained:
        tokens = _TOKENS_PER_CHARACTER * request.characters + len(request.texts)
        longest = max(map(len, request.texts), default=0)
        size += tokens * _token_bytes(longest) + request.characters * _LONGEST_CHARACTER_BYTES
    return size


@cache
def _prediction_bytes(labels: tuple[str, ...]) -> int:
    longest = max(labels, key=lambda label: len(to_json(label)))
    scores = dict.fromkeys(labels, _LONGEST_SCORE)
    return len(to_json({"label": longest, "score": _LONGEST_SCORE, "scores": scores, "tokens": []})) + _SEPARATOR_BYTES


def _token_bytes(characters: int) -> int:
    """Upper bound of the bytes of a token in an explanation of a text with so many characters, without those of the
    text's own characters."""
    token = _token(_LONGEST_SPECIAL_TOKEN, _LONGEST_SCORE, (characters, characters))
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
            return Reply(HTTPStatus.OK, *open_inference.reply(results, form, model.labels, model.name, model.version))


def description(model: Model) -> Reply:
    """The model's card, as TorchServe asks for it."""
    return _ok(model.card)


def metadata(model: Model) -> Reply:
    """The model's metadata for the Open Inference Protocol."""
    notes = str(model.card.get("notes") or "")
    return Reply(HTTPStatus.OK, open_inference.metadata(model.labels, notes, model.name, model.version), JSON_TYPE)


def error(problem: RequestError, is_open_inference: bool) -> Reply:
    """The reply with an error, in TorchServe's own form or in that of the Open Inference Protocol."""
    if is_open_inference:
        return Reply(problem.status, open_inference.error(problem), JSON_TYPE)
    body = {"code": problem.status.value, "type": type(problem).__name__, "message": str(problem)}
    return Reply(problem.status, to_json(body), JSON_TYPE)


def _ok(value: object) -> Reply:
    return Reply(HTTPStatus.OK, to_json(value), JSON_TYPE)
