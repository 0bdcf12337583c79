"""Evaluation of a model on one split of labelled texts, and by the behavioural tests.

The model is a function (`Predictor`): a running server (`training.measure.server`) or an exported model
(`training.measure.model`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from sentiment import inference
from sentiment.errors import UnexpectedAnswerError
from sentiment.fields import field
from sentiment.inference import Prediction
from sentiment.transport import shown
from training.data import Dataset
from training.errors import TrainingError
from training.measure import behaviour
from training.measure.figures import figures, rounded
from training.splits import Split
from training.templates import LABELS

TEXTS_PER_REQUEST: Final = 50
CHARACTERS_PER_REQUEST: Final = 15_000
"""Limits of a request; a longer text has a request of its own.

A symbol can be a token, and a request has a limit of token reads (`handler.limits`), of which a model of two networks
needs twice as many.
"""

Predictor = Callable[[bytes], bytes]
"""Function that returns the JSON body of the reply to the JSON body of a request."""


def evaluate(data: Dataset, split: Split, predictor: Predictor) -> dict[str, Any]:
    """Compute the figures of one split.

    Returns:
        See `training.measure.figures.figures`. Also, each with number of texts and accuracy: `per_agreement`, if the
        data has the agreement of the annotators, for the texts on whose label all of them agreed (`unanimous`) and for
        the others (`divided`); and `per_airline`, if the data has airlines.

    Raises:
        TrainingError: a label in the split is blank or unknown to the model, the model is not single-label, or
            `predict` raises it.
    """
    rows = data.labelled(split)
    labels = labels_of(predictor)
    if not labels:
        raise TrainingError(
            "The model is not single-label: it predicts several labels or a number. Only models that predict one label "
            "can be evaluated. `sentiment score FILE` adds any model's predictions to the columns of a file."
        )
    true = [str(row.label) for row in rows]
    unknown = sorted(set(true) - set(labels))
    if unknown:
        raise TrainingError(f"The model's labels are {', '.join(labels)}; the split also has {', '.join(unknown)}.")
    predictions = list(predict([row.text for row in rows], predictor, labels))
    scores = np.array([[prediction.scores[label] for label in labels] for prediction in predictions])
    result = figures(true, scores, labels)
    hits = [prediction.label == label for prediction, label in zip(predictions, true, strict=True)]
    if any(row.confidence < 1 for row in rows):
        result["per_agreement"] = _accuracy_by(["divided" if row.confidence < 1 else "unanimous" for row in rows], hits)
    if all(row.airline for row in rows):
        result["per_airline"] = _accuracy_by([str(row.airline) for row in rows], hits)
    return result


def _accuracy_by(groups: Sequence[str], hits: Sequence[bool]) -> dict[str, dict[str, Any]]:
    """Compute the number of texts and the accuracy of each group."""
    by_group: dict[str, list[bool]] = {name: [] for name in sorted(set(groups))}
    for group, hit in zip(groups, hits, strict=True):
        by_group[group].append(hit)
    return {name: {"n": len(part), "accuracy": rounded(sum(part) / len(part))} for name, part in by_group.items()}


def labels_of(predictor: Predictor) -> list[str]:
    """Return the labels of a single-label model; an empty list for a model of another task.

    Raises:
        TrainingError: the reply is no prediction.
    """
    [prediction] = _ask(["Hello"], predictor)
    return _labels(prediction)


def behaviour_of(predictor: Predictor) -> list[dict[str, Any]]:
    """Run the behavioural tests; return an empty list for a model with other labels than those of the tests.

    Raises:
        TrainingError: see `predict`.
    """
    labels = labels_of(predictor)
    if set(labels) != set(LABELS):
        return []

    def scores_of(texts: list[str]) -> list[behaviour.Scores]:
        return [dict(prediction.scores) for prediction in predict(texts, predictor, labels)]

    return [asdict(result) for result in behaviour.run(behaviour.suite(), scores_of)]


def predict(texts: Sequence[str], predictor: Predictor, labels: Sequence[str]) -> Iterator[Prediction]:
    """Yield the prediction of each text, requested in batches, with a progress bar on a terminal.

    Args:
        texts: the texts.
        predictor: the predictor of a single-label model.
        labels: the model's labels.

    Raises:
        TrainingError: a reply has no prediction for each text, or has other labels.
    """
    with tqdm(total=len(texts), unit="text", disable=None) as progress:
        for instances in inference.split(texts, TEXTS_PER_REQUEST, CHARACTERS_PER_REQUEST):
            predictions = _ask(instances, predictor)
            for prediction in predictions:
                if set(_labels(prediction)) != set(labels):
                    now = ", ".join(_labels(prediction)) or "none, as it predicts several labels or a number"
                    raise TrainingError(
                        f"The model changed during the run. Its labels were {', '.join(labels)}; now they are {now}. "
                        f"Run the command again when the rollout is complete."
                    )
            progress.update(len(instances))
            yield from predictions


def _ask(texts: Sequence[str], predictor: Predictor) -> list[Prediction]:
    reply = json.loads(predictor(json.dumps({"instances": texts}).encode()))
    try:
        predictions = inference.predictions(field(reply, "predictions", list), len(texts))
        for prediction in predictions:
            if prediction.label is not None and prediction.label not in prediction.scores:
                raise UnexpectedAnswerError(f"Expected the label among the scores, not {shown(prediction.to_json())}.")
    except UnexpectedAnswerError as error:  # an exported model always replies with predictions
        raise TrainingError(
            f"{error} Check --url: expected the address of a server, such as http://127.0.0.1:8080, or of a model's "
            f"predictions, such as http://127.0.0.1:8080/predictions/sentiment."
        ) from error
    return predictions


def _labels(prediction: Prediction) -> list[str]:
    """Return the labels of a single-label prediction; an empty list for a prediction of another task."""
    return [] if prediction.label is None else list(prediction.scores)


def to_json(result: Mapping[str, Any]) -> str:
    """Format the result of `evaluate` as JSON with one figure per line and one class per line."""
    lines = {name: json.dumps(value) for name, value in result.items()}
    classes = [f"  {json.dumps(label)}: {json.dumps(scores)}" for label, scores in result["per_class"].items()]
    lines["per_class"] = "{\n" + ",\n".join(classes) + "\n }"
    return "{\n" + ",\n".join(f" {json.dumps(name)}: {line}" for name, line in lines.items()) + "\n}"
