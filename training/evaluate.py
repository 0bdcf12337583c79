"""Figures on a split, of an exported model through the handler's own steps, or of a running server."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support
from tqdm import tqdm

from handler import batch
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.reply import Model
from sentiment import address, inference
from sentiment.errors import ClientError, InputError, RefusedError, UnreachableError
from sentiment.transport import Transport
from training import behaviour
from training.data import labelled
from training.errors import TrainingError
from training.splits import Split

TEXTS_PER_REQUEST = 50
CHARACTERS_PER_REQUEST = 15_000
"""Symbols can have a token each, and a request has a limit of token reads (`handler.limits`), of which a model of two
networks takes twice as many. A longer text has a request of its own."""

TIMEOUT_S = 120
CALIBRATION_BINS = 15
MODELS_PATH = "/v2/models"
TOKEN_VARIABLE = "SENTIMENT_TOKEN"
JSON_HEADERS = {"content-type": "application/json"}

Answer = Callable[[bytes], bytes]
"""A request's JSON body to its reply's."""


def evaluate(tweets: pd.DataFrame, split: Split, answer: Answer) -> dict[str, Any]:
    """Figures on one split's rows.

    Returns:
        see `figures`; and where the file names airlines, per_airline: tweets and accuracy of each.

    Raises:
        TrainingError: a blank label in the split, a label that the model does not have, or a model that is for another
            task than one label a text.
    """
    rows = labelled(tweets, split)
    labels = labels_of(answer)
    if not labels:
        raise TrainingError(
            "The model is not single-label: it predicts several labels or a number, and these figures are for models "
            "that predict one label. `sentiment score FILE` writes its predictions beside the file's own columns."
        )
    unknown = sorted(set(rows["label"]) - set(labels))
    if unknown:
        raise TrainingError(f"The model's labels are {', '.join(labels)}; the split also has {', '.join(unknown)}.")
    predictions = list(predict(list(rows["text"]), answer))
    scores = np.array([[prediction["scores"][label] for label in labels] for prediction in predictions])
    found = figures(list(rows["label"]), scores, labels)
    if rows["airline"].notna().all():
        hits = pd.Series([prediction["label"] for prediction in predictions], index=rows.index) == rows["label"]
        found["per_airline"] = {
            str(airline): {"n": len(of), "accuracy": _rounded(of.mean())}
            for airline, of in hits.groupby(rows["airline"])
        }
    return found


def labels_of(answer: Answer) -> list[str]:
    """The labels of a single-label model; none of a model of another task."""
    [first] = predict(["Hello"], answer)
    return list(first["scores"]) if "label" in first else []


def behaviour_of(answer: Answer) -> list[dict[str, Any]]:
    """The results of the behavioural tests; none, if the labels are not those that they are about."""
    if set(labels_of(answer)) != set(behaviour.LABELS):
        return []

    def scores_of(texts: list[str]) -> list[dict[str, float]]:
        return [prediction["scores"] for prediction in predict(texts, answer)]

    return [asdict(result) for result in behaviour.run(behaviour.suite(), scores_of)]


def figures(true: Sequence[str], probabilities: "NDArray[np.floating[Any]]", labels: Sequence[str]) -> dict[str, Any]:
    """Figures of probabilities (n, C) against true labels; a class that is never predicted has precision and F1 0.

    Returns:
        n, accuracy, macro_f1, expected_calibration_error (15 bins), labels, per_class (precision, recall, f1,
        support by label), confusion_matrix (rows: true label, columns: predicted, both in the order of `labels`), and
        reliability: for each bin of the predicted label's probability that is not empty n, mean confidence, accuracy.
    """
    best = probabilities.argmax(1)
    predicted = [labels[index] for index in best]
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    bins = reliability(probabilities.max(1), np.array(predicted) == np.array(true))
    return {
        "n": len(true),
        "accuracy": _rounded(accuracy_score(true, predicted)),
        "macro_f1": _rounded(f1_score(true, predicted, labels=labels, average="macro", zero_division=0)),
        "expected_calibration_error": _rounded(
            sum(n * abs(confidence - accuracy) for n, confidence, accuracy in bins) / len(true)
        ),
        "labels": list(labels),
        "per_class": {
            label: {
                "precision": _rounded(precision[index]),
                "recall": _rounded(recall[index]),
                "f1": _rounded(f1[index]),
                "support": int(support[index]),
            }
            for index, label in enumerate(labels)
        },
        "confusion_matrix": confusion_matrix(true, predicted, labels=labels).tolist(),
        "reliability": [[n, _rounded(confidence), _rounded(accuracy)] for n, confidence, accuracy in bins],
    }


def reliability(
    confidences: "NDArray[np.floating[Any]]", hits: "NDArray[np.bool_]", bins: int = CALIBRATION_BINS
) -> list[tuple[int, float, float]]:
    """Number, mean confidence and accuracy in each bin of equal width that is not empty.

    The mean of |confidence - accuracy|, weighted by number, is the expected calibration error (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 2).

    Args:
        confidences: the predicted label's probability, (n,).
        hits: whether it was the true one, (n,).
    """
    index = np.minimum((confidences * bins).astype(int), bins - 1)
    return [
        (int(inside.sum()), float(confidences[inside].mean()), float(hits[inside].mean()))
        for inside in (index == bin_index for bin_index in range(bins))
        if inside.any()
    ]


def predict(texts: Sequence[str], answer: Answer) -> Iterator[dict[str, Any]]:
    """The predictions of texts, asked for some at a time, with a progress bar on a terminal."""
    with tqdm(total=len(texts), unit="text", disable=None) as progress:
        for instances in inference.split(texts, TEXTS_PER_REQUEST, CHARACTERS_PER_REQUEST):
            predictions = json.loads(answer(json.dumps({"instances": instances}).encode()))["predictions"]
            progress.update(len(instances))
            yield from predictions


def model_answer(folder: Path) -> Answer:
    """Answers of an exported model, through the handler's steps."""
    classifier = TextClassifier.load(folder)
    limits, model = Limits(), Model(folder.name, "", classifier.task, classifier.card)

    def answer(body: bytes) -> bytes:
        results, _ = batch.infer(batch.read([({"body": body}, JSON_HEADERS)], limits), classifier, limits)
        [reply] = batch.write(results, model, limits)
        if reply.status is not HTTPStatus.OK:
            raise TrainingError(f"The model does not read a text of the split: {reply.body.decode()}")
        return reply.body

    return answer


def server_answer(url: str, model: str | None = None) -> Answer:
    """Answers of a running server.

    Args:
        url: the server's (`http://127.0.0.1:8080`), or that of a model's predictions with its path. Where it wants a
            token, that is in the environment variable `SENTIMENT_TOKEN`.
        model: the model's name; without it, the server has one model.

    Raises:
        TrainingError: the address or the token cannot be one, or it is not clear which model is meant. The message does
            not show the token.
    """
    try:
        url = address.address(url)
    except InputError as error:
        raise TrainingError(f"--url: {error}") from error
    try:
        token = address.token(os.environ.get(TOKEN_VARIABLE))
    except InputError as error:
        raise TrainingError(f"{TOKEN_VARIABLE}: {error}") from error
    try:
        transport = Transport(url, token=token, read_timeout_s=TIMEOUT_S)
    except InputError as error:
        raise TrainingError(str(error)) from error
    has_path = bool(urlsplit(url).path)
    if has_path and model is not None:
        raise TrainingError(f"--model-name {model}: --url has a path, {urlsplit(url).path}; expected one of the two.")
    path = "" if has_path else f"/predictions/{quote(model or _only_model(transport), safe='')}"

    def answer(body: bytes) -> bytes:
        return json.dumps(_sent(transport, "POST", path, json.loads(body))).encode()

    return answer


def _only_model(transport: Transport) -> str:
    """The name of the server's model.

    Raises:
        TrainingError: the server does not say, or it has no model or several.
    """
    match _sent(transport, "GET", MODELS_PATH):
        case {"models": [str(only)]}:
            return only
        case {"models": []}:
            raise TrainingError(f"{transport.url} has no model.")
        case {"models": [str(), *_] as names}:
            listed = ", ".join(map(str, names))
            raise TrainingError(f"{transport.url} has several models, {listed}: name one with --model-name.")
    raise TrainingError(f"{transport.url}{MODELS_PATH} does not list models: name one with --model-name.")


def _sent(transport: Transport, method: str, path: str, body: Any = None) -> Any:
    """The JSON of the server's answer.

    Raises:
        TrainingError: the server does not answer, or it refuses.
    """
    try:
        return transport.send(method, path, body=body).value
    except UnreachableError as error:
        raise TrainingError(f"{error}. Is the server up (`make serve`)?") from error
    except RefusedError as error:
        raise TrainingError(f"{transport.url}{path} answered {error.status}: {error}") from error
    except ClientError as error:
        raise TrainingError(str(error)) from error


def _rounded(value: float) -> float:
    return round(float(value), 6)
