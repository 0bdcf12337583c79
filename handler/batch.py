"""A batch of requests through all the steps. What goes wrong with one request stays with it.

`read`, `infer` and `write` are called in this order, on the same jobs.
"""

import logging
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any

from handler import reply
from handler.classifier import TextClassifier
from handler.errors import InternalError, OverloadedError, RequestError, TooLargeError
from handler.limits import Limits
from handler.request import Request, read_request

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What is asked of the model. TorchServe puts requests of all kinds into one batch."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"


@dataclass
class Job:
    """One request on its way through the steps. An error ends its way."""

    kind: Kind
    request: Request | None = None
    ids: list[list[int]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    error: RequestError | None = None


@dataclass(frozen=True)
class Durations:
    """What a batch took."""

    texts: int
    """That went through the network together."""

    tokenizer_s: float
    engine_s: float
    """Without what explanations compute."""


def read(rows: Sequence[tuple[Mapping[str, object], Mapping[str, str]]], limits: Limits) -> list[Job]:
    """Read a batch's requests.

    Args:
        rows: for each request its fields and its HTTP headers, see `handler.request.read_request`.
    """
    jobs = []
    admitted_characters = explained_characters = 0
    for fields, headers in rows:
        job = Job(_kind(headers))
        jobs.append(job)
        if job.kind is Kind.DESCRIBE:
            continue
        with _guard(job):
            request = read_request(fields, headers, limits)
            if job.kind is Kind.EXPLAIN and request.characters > limits.max_explained_characters:
                raise TooLargeError(
                    f"The request has {request.characters} characters; "
                    f"at most {limits.max_explained_characters} are explained at once."
                )
            explained = request.characters if job.kind is Kind.EXPLAIN else 0
            if (admitted_characters and admitted_characters + request.characters > limits.max_batch_characters) or (
                explained_characters and explained_characters + explained > limits.max_explained_characters
            ):
                raise OverloadedError("The server has too much text at once. Send the request again in a moment.")
            admitted_characters += request.characters
            explained_characters += explained
            job.request = request
    return jobs


def infer(jobs: Sequence[Job], classifier: TextClassifier) -> Durations:
    """Fill in the results: all predictions in one pass through the network, explanations text by text."""
    started = time.perf_counter()
    for job in jobs:
        if job.request is not None:
            with _guard(job):
                job.ids = [classifier.ids(text) for text in job.request.texts]
    tokenized = time.perf_counter()
    going = [job for job in jobs if job.request is not None and job.error is None]
    try:
        _predict(going, classifier)
    except Exception as problem:
        _log(problem)
        for job in going:  # one by one, so that only the request at fault fails
            with _guard(job):
                _predict([job], classifier)
    predicted = time.perf_counter()
    for job in going:
        if job.kind is Kind.EXPLAIN and job.request is not None:
            with _guard(job):
                explanations = [classifier.explain(text) for text in job.request.texts]
                job.results = list(map(reply.explained, job.results, explanations))
    texts = sum(len(job.ids) for job in going)
    return Durations(texts, tokenizer_s=tokenized - started, engine_s=predicted - tokenized)


def write(jobs: Sequence[Job], description: Mapping[str, Any]) -> list[tuple[HTTPStatus, bytes]]:
    """The status and the JSON body of each request's reply, in the requests' order."""
    replies = []
    for job in jobs:
        if job.error is not None:
            replies.append((job.error.status, reply.error(job.error)))
        elif job.request is None:
            replies.append((HTTPStatus.OK, reply.to_json(description)))
        else:
            replies.append((HTTPStatus.OK, reply.reply(job.results, job.request.form)))
    return replies


def _kind(headers: Mapping[str, str]) -> Kind:
    """TorchServe marks explanations and descriptions by a header of that name with the value `True`."""
    for kind in (Kind.DESCRIBE, Kind.EXPLAIN):
        if headers.get(kind.value) == "True":
            return kind
    return Kind.PREDICT


def _predict(jobs: Sequence[Job], classifier: TextClassifier) -> None:
    probabilities = iter(classifier.probabilities([ids for job in jobs for ids in job.ids]))
    for job in jobs:
        job.results = [reply.prediction(next(probabilities), classifier.labels) for _ in job.ids]


@contextmanager
def _guard(job: Job) -> Iterator[None]:
    """Turn an exception into the job's error."""
    try:
        yield
    except RequestError as problem:
        job.error = problem
    except Exception as problem:
        _log(problem)
        job.error = InternalError("The request met a defect in the server. Others are not affected.")


def _log(problem: Exception) -> None:
    """Log an unexpected exception's type and place. Its message may quote the user's text, so it is left out."""
    frames = "".join(traceback.format_tb(problem.__traceback__))
    logger.error("%s in a request\n%s", type(problem).__name__, frames)
