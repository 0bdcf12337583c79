"""The last step: probabilities, or an error, to the reply's JSON."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from handler.classifier import Explanation
from handler.errors import RequestError
from handler.request import Form
from handler.spans import Span

SCORE_DIGITS = 6
_LONGEST_SCORE = -0.123456
_LONGEST_CHARACTER_BYTES = 6
"""A control character in JSON: `\\u0000`."""
_LONGEST_SPECIAL_TOKEN = "xxwrep"
_TOKENS_PER_CHARACTER = 2
"""A capital with one sign behind it, such as `A…`, is `xxmaj` and two tokens: 1.5 for each character."""
_SEPARATOR_BYTES = len(", ")


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


def max_bytes(texts: Sequence[str], labels: tuple[str, ...], is_explained: bool) -> int:
    """Upper bound of a reply's length in bytes, known before anything is computed.

    Args:
        texts: the texts of the request.
        labels: the labels of the model. A reply has the score of each label for each text.
        is_explained: whether the reply has the tokens of each text with their weights.
    """
    size = len(reply([], Form.INSTANCES)) + len(texts) * _prediction_bytes(labels)
    if is_explained:
        characters = sum(map(len, texts))
        tokens = _TOKENS_PER_CHARACTER * characters + len(texts)
        size += tokens * _token_bytes(max(map(len, texts), default=0)) + characters * _LONGEST_CHARACTER_BYTES
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


def reply(results: list[dict[str, Any]], form: Form) -> bytes:
    """The body of a reply, in the form that goes with the request's."""
    match form:
        case Form.SINGLE:
            return to_json(results[0])
        case Form.LIST:
            return to_json(results)
        case Form.INSTANCES:
            return to_json({"predictions": results})


def error(problem: RequestError) -> bytes:
    """The body of an error, in TorchServe's own shape."""
    return to_json({"code": problem.status.value, "type": type(problem).__name__, "message": str(problem)})


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
