"""Answers a batch: the requests that TorchServe hands to a worker together.

Call `read`, `infer` and `write` in this order. Each step takes what the previous step returned, in the order of the
requests, and changes none of it. If one request fails, it becomes a `Failure`; the other requests are unaffected.

    fields and headers ── read ──> TextRequest ── infer ──> PredictedRequest ── write ──> Reply
                              └──> DescriptionRequest ───────────────────────────┤
                              └──> Failure ──────────────────────────────────────┘
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from handler import open_inference, reply
from handler.classifier import TextClassifier
from handler.errors import InternalError, OverloadedError, RequestError, TooLargeError
from handler.headers import has_form
from handler.limits import Limits
from handler.open_inference import Operation, Outputs
from handler.padding import cost
from handler.prediction import Prediction
from handler.reply import Model, Reply
from handler.request import Form, Request, read_request
from handler.task import TaskName
from handler.tokens import TokenizedText

logger = logging.getLogger(__name__)


class Kind(Enum):
    """The operation that a request asks for. TorchServe puts requests of all kinds into one batch."""

    PREDICT = "predict"
    EXPLAIN = "explain"
    DESCRIBE = "describe"
    INFER = "infer"
    """A prediction by the Open Inference Protocol."""

    METADATA = "metadata"
    """A description of the model by the Open Inference Protocol."""


OPEN_INFERENCE = {Kind.INFER, Kind.METADATA}
DESCRIPTIONS = {Kind.DESCRIBE, Kind.METADATA}
"""Kinds of requests that have no text."""


@dataclass(frozen=True)
class DescriptionRequest:
    """A request for a description of the model."""

    kind: Kind


@dataclass(frozen=True)
class Failure:
    """A request that ended with an error."""

    kind: Kind
    error: RequestError


@dataclass(frozen=True)
class TextRequest:
    """A request for predictions, after `read`."""

    kind: Kind
    request: Request


@dataclass(frozen=True)
class TokenizedRequest:
    """A request for predictions, after the tokenizer."""

    kind: Kind
    form: Form | Outputs
    ids: tuple[list[int], ...]
    """Token ids of each text, in the order in which the network reads them."""

    explained_texts: tuple[TokenizedText, ...]
    """The texts to explain: all texts of a request of the kind `EXPLAIN`, none of other requests."""


@dataclass(frozen=True)
class PredictedRequest:
    """A request with its predictions, after `infer`."""

    kind: Kind
    form: Form | Outputs
    ids: tuple[list[int], ...]
    """Token ids of each text, in the order in which the network reads them."""

    predictions: tuple[Prediction, ...]
    """The prediction for each text."""


@dataclass(frozen=True)
class Measurements:
    """Measurements of one batch."""

    texts: int
    """Number of texts that the network read."""

    tokens: int
    """Number of tokens that the tokenizer produced, including the tokens of refused requests."""

    tokenizer_s: float
    """Duration of the tokenizer."""

    engine_s: float
    """Duration of all predictions, without explanations."""

    explanations_s: float = 0.0
    """Duration of all explanations."""


Row = tuple[Mapping[str, object], Mapping[str, object]]
"""A request as TorchServe hands it over: its fields and its HTTP headers, see `handler.request.read_request`."""

ReadRequest = TextRequest | DescriptionRequest | Failure
Result = PredictedRequest | DescriptionRequest | Failure

TOKENIZER_COST = 0.4
"""Upper bound of the tokenizer's cost for a token, relative to the network's cost for a token of a short text."""

_TOO_MANY_TOKENS = (
    "The texts of the request have too many tokens: their predictions take more than {:,} token reads. Send the texts "
    "in several requests, or send shorter texts."
)
_TOO_MANY_EXPLAINED_TOKENS = (
    "To explain a text, the network reads it once more for each of its tokens. The explanations for this request take "
    "more than {:,} token reads. Send the texts one by one, or send shorter texts."
)
_TOO_LARGE_REPLY = (
    "The reply to {} texts, with the scores of {} labels for each, may have {} bytes. The server sends at most {} "
    "bytes at once, which is enough for {} such texts. Send fewer or shorter texts in one request."
)
_OVERLOADED = "The server is overloaded. Send the request again in a moment."

P = ParamSpec("P")
T = TypeVar("T")


def read(rows: Sequence[Row], limits: Limits, task: TaskName = "single-label") -> list[ReadRequest]:
    """Read the requests of a batch.

    Args:
        rows: the requests as TorchServe hands them over.
        limits: a request that exceeds a limit becomes a `Failure`.
        task: the model's task.
    """
    requests = [_read_request(fields, headers, limits, task) for fields, headers in rows]
    characters = _Budget(limits.max_batch_characters)

    def admit(request: TextRequest) -> TextRequest:
        characters.take(request.request.characters)
        return request

    return _smallest_first(requests, admit)


def infer(
    requests: Sequence[ReadRequest], classifier: TextClassifier, limits: Limits
) -> tuple[list[Result], Measurements]:
    """Predict the texts of all requests together, then explain the texts of requests that ask for it.

    Args:
        requests: the requests that `read` returned.
        classifier: the model.
        limits: a request that exceeds a limit becomes a `Failure`.
    """
    started = time.perf_counter()
    tokenization = _Tokenization(classifier, limits)
    tokenized = _smallest_first(requests, tokenization)
    tokenizer_done = time.perf_counter()
    admitted = [request for request in tokenized if isinstance(request, TokenizedRequest)]
    predicted = _predict_all(admitted, classifier)
    predictions_done = time.perf_counter()
    explained = [
        _attempt(result.kind, _explain, result, request.explained_texts, classifier)
        if isinstance(result, PredictedRequest) and request.explained_texts
        else result
        for request, result in zip(admitted, predicted, strict=True)
    ]
    explanations_s = time.perf_counter() - predictions_done
    measurements = Measurements(
        texts=sum(len(request.ids) for request in admitted),
        tokens=tokenization.tokens,
        tokenizer_s=tokenizer_done - started,
        engine_s=predictions_done - tokenizer_done,
        explanations_s=explanations_s if any(request.kind is Kind.EXPLAIN for request in admitted) else 0.0,
    )
    inferred = iter(explained)
    results = [next(inferred) if isinstance(request, TokenizedRequest) else request for request in tokenized]
    return results, measurements


def write(results: Sequence[Result], model: Model, limits: Limits) -> list[Reply]:
    """Write the reply to each request.

    All replies together have at most `limits.max_batch_reply_bytes`. `infer` has refused the requests whose estimated
    replies are larger; if a reply exceeds its estimate, it becomes an error here.
    """
    replies = []
    total_bytes = 0
    for result in results:
        written = _write(result, model)
        size = len(written.body)
        if written.status is HTTPStatus.OK and total_bytes + size > limits.max_batch_reply_bytes:
            logger.error("A reply has %d bytes after %d of the same batch.", size, total_bytes)
            error = InternalError("The reply has more bytes than the server can send.")
            written = _write(Failure(result.kind, error), model)
        total_bytes += len(written.body)
        replies.append(written)
    return replies


def _read_request(
    fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits, task: TaskName
) -> ReadRequest:
    kind = _kind(fields, headers)
    if kind in DESCRIPTIONS:
        return DescriptionRequest(kind)
    request = _attempt(kind, read_request, fields, headers, limits, task)
    return request if isinstance(request, Failure) else TextRequest(kind, request)


def _kind(fields: Mapping[str, object], headers: Mapping[str, object]) -> Kind:
    """Determine the kind of a request.

    TorchServe sets the header `explain` or `describe` to `True` for requests of these kinds. It also forwards a
    client's own headers with these names. TorchServe's request for a description has neither fields nor a header
    `explain`. An empty form has no fields either, but it is not a request for a description.
    """
    explain = headers.get(Kind.EXPLAIN.value)
    if headers.get(Kind.DESCRIBE.value) == "True" and explain is None and not fields and not has_form(headers):
        return Kind.DESCRIBE
    match open_inference.operation(headers):
        case Operation.INFER:
            return Kind.INFER
        case Operation.METADATA:
            return Kind.METADATA
    return Kind.EXPLAIN if explain == "True" else Kind.PREDICT


class _Budget:
    """An amount that the requests of a batch share."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._taken = 0.0

    def take(self, amount: float) -> None:
        """Take an amount for a request. The first request always gets its amount.

        Raises:
            OverloadedError: the other requests of the batch have left too little.
        """
        if self._taken and self._taken + amount > self._limit:
            raise OverloadedError(_OVERLOADED)
        self._taken += amount


def _smallest_first(
    requests: Sequence[ReadRequest], step: Callable[[TextRequest], T]
) -> list[T | DescriptionRequest | Failure]:
    """Apply a step to the text requests of a batch, in ascending order of their characters.

    If the batch exceeds a limit, the step therefore refuses the large requests and admits the small ones.

    Returns:
        the results in the order of `requests`.
    """
    texts = [(index, request) for index, request in enumerate(requests) if isinstance(request, TextRequest)]
    texts.sort(key=lambda pair: pair[1].request.characters)
    results = {index: _attempt(request.kind, step, request) for index, request in texts}
    return [results[index] if isinstance(request, TextRequest) else request for index, request in enumerate(requests)]


class _Tokenization:
    """Tokenizes the requests of a batch, one by one, as long as they are within the limits."""

    def __init__(self, classifier: TextClassifier, limits: Limits) -> None:
        self._classifier = classifier
        self._max_token_reads = limits.max_token_reads
        self._max_reply_bytes = limits.max_batch_reply_bytes
        self._reply_bytes = _Budget(limits.max_batch_reply_bytes)
        self._token_reads = _Budget(limits.max_token_reads)
        self.tokens = 0
        """Number of tokens until now, including those of refused requests."""

    def __call__(self, request: TextRequest) -> TokenizedRequest:
        """Tokenize a request.

        Raises:
            TooLargeError: the request exceeds a limit by itself.
            OverloadedError: the request exceeds a limit together with earlier requests of the batch.
        """
        kind, texts = request.kind, request.request.texts
        self._check_reply_size(request)
        ids: list[list[int]] = []
        explained_texts: list[TokenizedText] = []
        least_token_reads = 0.0
        for text in texts:
            # The tokens of refused requests take time, too. With one refused request, the time still suffices for the
            # other requests of the batch; with many, it would not.
            if self.tokens > 2 * self._max_token_reads:
                raise OverloadedError(_OVERLOADED)
            if kind is Kind.EXPLAIN:
                explained_texts.append(self._classifier.tokenize(text))
                ids.append(self._classifier.network_order(explained_texts[-1].ids))
            else:
                ids.append(self._classifier.ids(text))
            length = len(ids[-1])
            self.tokens += length
            reads = 1 + (length + 1 if kind is Kind.EXPLAIN else 0)
            least_token_reads += length * (TOKENIZER_COST + self._classifier.network_cost * reads)
            self._check_token_reads(least_token_reads, kind)
        token_reads = _token_reads([len(row) for row in ids], kind, self._classifier.network_cost)
        self._check_token_reads(token_reads, kind)
        self._token_reads.take(token_reads)
        return TokenizedRequest(kind, request.request.form, tuple(ids), tuple(explained_texts))

    def _check_reply_size(self, request: TextRequest) -> None:
        task, count = self._classifier.task, len(request.request.texts)
        size = reply.max_bytes(request.request, task, request.kind is Kind.EXPLAIN)
        if size > self._max_reply_bytes:
            fitting = count * self._max_reply_bytes // size
            raise TooLargeError(_TOO_LARGE_REPLY.format(count, len(task.labels), size, self._max_reply_bytes, fitting))
        self._reply_bytes.take(size)

    def _check_token_reads(self, token_reads: float, kind: Kind) -> None:
        if token_reads > self._max_token_reads:
            message = _TOO_MANY_EXPLAINED_TOKENS if kind is Kind.EXPLAIN else _TOO_MANY_TOKENS
            raise TooLargeError(message.format(self._max_token_reads))


def _token_reads(lengths: Sequence[int], kind: Kind, network_cost: float) -> float:
    """Compute the work for texts of these lengths in token reads, see `cost` and `network_cost` in `handler.padding`.

    An explained text counts `length + 2` times, although the network reads it only `length + 1` times: once for the
    prediction and once for each token. The count errs on the safe side.
    """
    token_reads = cost(lengths)
    if kind is Kind.EXPLAIN:
        token_reads += sum(cost([length] * (length + 1)) for length in lengths)
    return network_cost * token_reads + TOKENIZER_COST * sum(lengths)


def _predict_all(requests: Sequence[TokenizedRequest], classifier: TextClassifier) -> list[PredictedRequest | Failure]:
    """Predict all requests together. If that fails, predict them one by one, so that only the faulty request fails."""
    try:
        return [*_predict(requests, classifier)]
    except Exception as error:
        _log(error)
        return [_attempt(request.kind, _predict_one, request, classifier) for request in requests]


def _predict_one(request: TokenizedRequest, classifier: TextClassifier) -> PredictedRequest:
    [predicted] = _predict([request], classifier)
    return predicted


def _predict(requests: Sequence[TokenizedRequest], classifier: TextClassifier) -> list[PredictedRequest]:
    outputs = iter(classifier.probabilities([row for request in requests for row in request.ids]))
    return [
        PredictedRequest(
            request.kind,
            request.form,
            request.ids,
            tuple(Prediction.from_outputs(next(outputs), classifier.task) for _ in request.ids),
        )
        for request in requests
    ]


def _explain(
    predicted: PredictedRequest, texts: Sequence[TokenizedText], classifier: TextClassifier
) -> PredictedRequest:
    pairs = zip(predicted.predictions, texts, strict=True)
    explained = (replace(prediction, explanation=classifier.explain(text, prediction)) for prediction, text in pairs)
    return replace(predicted, predictions=tuple(explained))


def _write(result: Result, model: Model) -> Reply:
    match result:
        case Failure(kind, error):
            return reply.error(error, kind in OPEN_INFERENCE)
        case DescriptionRequest(Kind.METADATA):
            return reply.metadata(model)
        case DescriptionRequest():
            return reply.description(model)
        case PredictedRequest():
            return reply.reply(result.predictions, result.form, model)


def _attempt(kind: Kind, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Failure:
    """Apply a step to a request of this kind, and turn an exception into the request's failure."""
    try:
        return step(*args, **kwargs)
    except RequestError as error:
        return Failure(kind, error.with_traceback(None))  # the frames of a traceback would keep texts in memory
    except Exception as error:
        _log(error)
        return Failure(
            kind, InternalError("An unexpected error occurred in the server. Other requests are not affected.")
        )


def _log(error: Exception) -> None:
    """Log the type and the place of an unexpected exception, without its message, which may quote the user's text."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s in a request\n%s", type(error).__name__, frames)
