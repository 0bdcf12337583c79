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

from handler import open_inference, reply
from handler.classifier import TextClassifier
from handler.errors import InternalError, OverloadedError, RequestError, TooLargeError
from handler.headers import has_form
from handler.limits import Limits
from handler.open_inference import Ask
from handler.padding import cost
from handler.reply import Model, Reply
from handler.request import Request, read_request
from handler.task import Task, TaskName

logger = logging.getLogger(__name__)


class Kind(Enum):
    """What is asked of the model. TorchServe puts requests of all kinds into one batch."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"
    INFER = "infer"
    """A prediction, by the Open Inference Protocol."""

    METADATA = "metadata"
    """A description of the model, by the Open Inference Protocol."""


OPEN_INFERENCE = {Kind.INFER, Kind.METADATA}
DESCRIPTIONS = {Kind.DESCRIBE, Kind.METADATA}
"""What is answered without a text."""

_TOO_MANY_TOKENS = {  # by whether explanations are asked for
    False: "The texts of the request have too many tokens: to read them takes more than {:,} token reads. Send its "
    "texts in several requests, or shorter texts.",
    True: "To explain a text, the network reads it once more for each of its tokens; for this request, that "
    "takes more than {:,} token reads. Send its texts one by one, or shorter texts.",
}
_TOO_LARGE_A_REPLY = (
    "The reply to {} texts, with the scores of {} labels for each, may have {} bytes; the server sends at most {} at "
    "once, which is enough for {} such texts. Send fewer or shorter texts in one request."
)
TOKENIZER_COST = 0.4
"""Cost of a token for the tokenizer at most, as a share of what it costs the network in a batch of short texts."""

_TOO_MUCH_AT_ONCE = "The server has too much work at once. Send the request again in a moment."


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

    explanations_s: float = 0.0


def read(
    rows: Sequence[tuple[Mapping[str, object], Mapping[str, object]]],
    limits: Limits,
    task: TaskName = "single-label",
) -> list[Job]:
    """Read a batch's requests.

    Args:
        rows: for each request its fields and its HTTP headers, see `handler.request.read_request`.
        task: of the model.
    """
    jobs = [Job(_kind(fields, headers)) for fields, headers in rows]
    for job, (fields, headers) in zip(jobs, rows, strict=True):
        if job.kind not in DESCRIPTIONS:
            with _guard(job):
                job.request = read_request(fields, headers, limits, task)
    admitted_characters = 0
    for job, request in _smallest_first(jobs):
        if admitted_characters and admitted_characters + request.characters > limits.max_batch_characters:
            job.request, job.error = None, OverloadedError(_TOO_MUCH_AT_ONCE)
        else:
            admitted_characters += request.characters
    return jobs


def infer(jobs: Sequence[Job], classifier: TextClassifier, limits: Limits) -> Durations:
    """Fill in the results: all predictions in one pass through the network, explanations text by text."""
    started = time.perf_counter()
    jobs = _with_small_replies(jobs, classifier.task, limits.max_batch_reply_bytes)
    _tokenize(jobs, classifier, limits.max_token_reads)
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
                pairs = zip(job.results, explanations, strict=True)
                job.results = [reply.explained(*pair, classifier.task) for pair in pairs]
    texts = sum(len(job.ids) for job in going)
    explanations_s = time.perf_counter() - predicted if any(job.kind is Kind.EXPLAIN for job in going) else 0.0
    return Durations(texts, tokenized - started, predicted - tokenized, explanations_s)


def write(jobs: Sequence[Job], model: Model, limits: Limits) -> list[Reply]:
    """The reply to each request, in the requests' order.

    The replies together have at most `limits.max_batch_reply_bytes`, whatever was estimated for them; a reply over it
    becomes an error.
    """
    replies = []
    admitted_bytes = 0
    for job in jobs:
        written = _reply(job, model)
        size = len(written.body)
        if written.status is HTTPStatus.OK and admitted_bytes + size > limits.max_batch_reply_bytes:
            logger.error("A reply has %d bytes after %d of the same batch.", size, admitted_bytes)
            problem = InternalError("The reply has more bytes than the server can send.")
            written = reply.error(problem, job.kind in OPEN_INFERENCE)
        admitted_bytes += len(written.body)
        replies.append(written)
    return replies


def _reply(job: Job, model: Model) -> Reply:
    if job.error is not None:
        return reply.error(job.error, job.kind in OPEN_INFERENCE)
    if job.kind is Kind.METADATA:
        return reply.metadata(model)
    if job.request is None:
        return reply.description(model)
    return reply.reply(job.results, job.request.form, model)


def _kind(fields: Mapping[str, object], headers: Mapping[str, object]) -> Kind:
    """TorchServe marks explanations and descriptions by a header of that name with the value `True`.

    It also passes on a client's headers of these names. But its own request for a description has no fields and no
    header `explain`. A form without fields is not a request for a description.
    """
    explain = headers.get(Kind.EXPLAIN.value)
    if headers.get(Kind.DESCRIBE.value) == "True" and explain is None and not fields and not has_form(headers):
        return Kind.DESCRIBE
    match open_inference.ask(headers):
        case Ask.INFER:
            return Kind.INFER
        case Ask.METADATA:
            return Kind.METADATA
    return Kind.EXPLAIN if explain == "True" else Kind.PREDICT


def _smallest_first(jobs: Sequence[Job]) -> list[tuple[Job, Request]]:
    """The jobs with a request, in the order in which they are admitted: if a batch is too much, the large requests are
    refused and their small neighbours are not."""
    read = [(job, job.request) for job in jobs if job.request is not None]
    return sorted(read, key=lambda pair: pair[1].characters)


def _with_small_replies(jobs: Sequence[Job], task: Task, max_bytes: int) -> list[Job]:
    """The jobs whose replies fit into `max_bytes` together. The other jobs get an error before anything is computed."""
    fitting = []
    admitted = 0
    for job, request in _smallest_first(jobs):
        with _guard(job):
            size = reply.max_bytes(request, task, job.kind is Kind.EXPLAIN)
            if size > max_bytes:
                count = len(request.texts)
                raise TooLargeError(
                    _TOO_LARGE_A_REPLY.format(count, len(task.labels), size, max_bytes, count * max_bytes // size)
                )
            if admitted + size > max_bytes:
                raise OverloadedError(_TOO_MUCH_AT_ONCE)
            admitted += size
            fitting.append(job)
    return fitting


def _tokenize(jobs: Sequence[Job], classifier: TextClassifier, max_token_reads: int) -> None:
    """Fill in the token ids of as many requests as the limit allows."""
    tokenized, admitted = 0, 0.0
    for job, request in _smallest_first(jobs):
        with _guard(job):
            least = 0.0
            for text in request.texts:
                # One request that is refused for its tokens leaves time for its neighbours, many would not.
                if tokenized > 2 * max_token_reads:
                    raise OverloadedError(_TOO_MUCH_AT_ONCE)
                job.ids.append(classifier.ids(text))
                length = len(job.ids[-1])
                tokenized += length
                reads = 1 + (length + 1 if job.kind is Kind.EXPLAIN else 0)
                least += length * (TOKENIZER_COST + classifier.networks * reads)
                if least > max_token_reads:
                    raise TooLargeError(_TOO_MANY_TOKENS[job.kind is Kind.EXPLAIN].format(max_token_reads))
            token_reads = _token_reads([len(ids) for ids in job.ids], job.kind, classifier.networks)
            if token_reads > max_token_reads:
                raise TooLargeError(_TOO_MANY_TOKENS[job.kind is Kind.EXPLAIN].format(max_token_reads))
            if admitted + token_reads > max_token_reads:
                raise OverloadedError(_TOO_MUCH_AT_ONCE)
            admitted += token_reads


def _token_reads(lengths: Sequence[int], kind: Kind, networks: int) -> float:
    """Work for texts of these lengths, in token reads; see `handler.padding.cost` and `TextClassifier.explain`."""
    token_reads = cost(lengths)
    if kind is Kind.EXPLAIN:
        token_reads += sum(cost([length] * (length + 1)) for length in lengths)
    return networks * token_reads + TOKENIZER_COST * sum(lengths)


def _predict(jobs: Sequence[Job], classifier: TextClassifier) -> None:
    probabilities = iter(classifier.probabilities([ids for job in jobs for ids in job.ids]))
    for job in jobs:
        job.results = [reply.prediction(next(probabilities), classifier.task) for _ in job.ids]


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
