"""The last step: probabilities, or an error, to the reply's JSON."""

import json
from collections.abc import Sequence
from typing import Any

from handler.classifier import Explanation
from handler.errors import RequestError
from handler.exported import Probabilities
from handler.request import Form

SCORE_DIGITS = 6


def prediction(probabilities: Sequence[float], labels: Sequence[str]) -> dict[str, Any]:
    """One text's prediction: the most probable label, its score, and all scores."""
    scores = {label: round(float(p), SCORE_DIGITS) for label, p in zip(labels, probabilities, strict=True)}
    best = max(range(len(labels)), key=lambda index: probabilities[index])
    return {"label": labels[best], "score": scores[labels[best]], "scores": scores}


def explained(prediction: dict[str, Any], explanation: Explanation) -> dict[str, Any]:
    """A prediction with what speaks for its label, token by token."""
    weights = [round(weight, SCORE_DIGITS) for weight in explanation.weights]
    return prediction | {
        "tokens": [
            {"token": token, "weight": weight} for token, weight in zip(explanation.tokens, weights, strict=True)
        ]
    }


def predictions(probabilities: Probabilities, labels: Sequence[str]) -> list[dict[str, Any]]:
    return [prediction(row, labels) for row in probabilities]


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
