"""Predictions of one text, or of many."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from sentiment import fields
from sentiment.address import quoted
from sentiment.errors import ClientError, InputError, RefusedError, UnexpectedAnswerError
from sentiment.fields import is_unicode, number, probability, unicode
from sentiment.transport import (
    BACKOFF_S,
    CONNECT_TIMEOUT_S,
    CONNECTIONS,
    READ_TIMEOUT_S,
    RETRIES,
    Answer,
    Client,
    Transport,
    shown,
    words,
)

Result = TypeVar("Result")
Kind = Literal["label", "labels", "value"]

URL = "http://127.0.0.1:8080"
MODEL = "sentiment"

MAX_TEXTS = 64
"""Texts in one request. The server accepts 1,000; but it batches requests, and spreads them over its workers."""
MAX_CONNECTIONS = 256
"""Each has a thread here. The server's queue of a model holds fewer requests."""
MAX_CHARACTERS = 50_000
"""Characters of all texts in one request. The server accepts 200,000, and 20,000 in one text."""

_ABOUT_A_TEXT = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.INSUFFICIENT_STORAGE,  # TorchServe's answer where a worker died with the request
    HTTPStatus.GATEWAY_TIMEOUT,  # a load balancer's, where a worker hangs with the request
}
"""Statuses of a request that one of its texts alone may have caused."""

NO_LABEL = "no label"
"""What a person is shown where no label is over its threshold."""

_NO_MODEL = "ModelNotFoundException"

_LOST = "InternalServerException"
"""TorchServe's error type for a request whose worker died or hung."""


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text. The kind of the model decides which fields it has; the others are None."""

    label: str | None = None
    """The most probable label, of a model that gives each text one label."""

    score: float | None = None
    """The label's probability."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """The probability of every label; empty for a regression."""

    model_version: str | None = None
    """The version that answered; None if the reply does not name it."""

    labels: tuple[str, ...] | None = None
    """The labels over their thresholds, of a model that gives a text any number of labels."""

    value: float | None = None
    """The number that a regression predicts."""

    @property
    def kind(self) -> Kind:
        """The kind of the model, by the field that only its predictions have."""
        if self.value is not None:
            return "value"
        return "label" if self.labels is None else "labels"

    def to_json(self) -> dict[str, Any]:
        """The fields that it has, as the server's reply has them, and the version."""
        version = self.model_version
        if self.value is not None:
            return {"value": self.value, "model_version": version}
        if self.labels is not None:
            return {"labels": list(self.labels), "scores": dict(self.scores), "model_version": version}
        return {"label": self.label, "score": self.score, "scores": dict(self.scores), "model_version": version}

    @property
    def predicted(self) -> str:
        """The label, the labels or the number, for people."""
        if self.value is not None:
            return f"{self.value:.6g}"
        return (self.label or "") if self.labels is None else ", ".join(self.labels) or NO_LABEL


@dataclass(frozen=True)
class Token:
    """A token of a text, and how much it speaks for the prediction."""

    token: str
    weight: float
    """How far the label's probability, or the number of a regression, falls without the token. If there are several
    labels, the sum for all of them."""

    start: int
    end: int
    """Where it stands in the text, in characters."""

    weights: Mapping[str, float] | None = None
    """The weight for each label, if there can be several."""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Explanation:
    prediction: Prediction
    tokens: tuple[Token, ...]

    def strongest(self, most: int) -> list[Token]:
        """The tokens with the largest weights for or against the prediction, the largest first."""
        return sorted(self.tokens, key=lambda token: -abs(token.weight))[:most]

    def labels(self) -> list[str]:
        """The labels that the tokens have weights for, the most probable first; none if a token has one weight."""
        found = {label: None for token in self.tokens for label in token.weights or {}}
        return sorted(found, key=lambda label: -self.prediction.scores.get(label, 0.0))

    def to_json(self) -> dict[str, Any]:
        return self.prediction.to_json() | {"tokens": [token.to_json() for token in self.tokens]}


class InferenceClient(Client):
    """A model behind TorchServe's inference API. Safe to use from several threads."""

    def __init__(
        self,
        url: str = URL,
        model: str = MODEL,
        version: str | None = None,
        *,
        token: str | None = None,
        connections: int = CONNECTIONS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        retries: int = RETRIES,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """
        Args:
            version: of the model; the server's default if None.
            token: sent as `Authorization: Bearer`.
            connections: at once, at most; from 1 to `MAX_CONNECTIONS`.
            read_timeout_s: for a whole request and its whole answer.
            retries: after a 502, a 503 or a failed connection.
            backoff_s: before the first of them; doubled before each further one.

        Raises:
            InputError: the address, the model's name, the version, the token or the number of connections cannot be.
        """
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise InputError(f"Expected 1 to {MAX_CONNECTIONS} connections, not {connections}.")
        self.connections = connections
        self._path = quoted(model) if version is None else f"{quoted(model)}/{quoted(version)}"
        super().__init__(
            Transport(
                url,
                token=token,
                connections=connections,
                connect_timeout_s=connect_timeout_s,
                read_timeout_s=read_timeout_s,
                retries=retries,
                backoff_s=backoff_s,
            )
        )

    def health(self) -> str:
        """TorchServe's own status: `Healthy`, or the reason why it is not.

        Raises:
            ClientError: see `Transport.send`.
        """
        answer = self._transport.send("GET", "/ping")
        return words(answer.value.get("status") if isinstance(answer.value, dict) else answer.value)

    def models(self) -> list[str]:
        """The names of the models that the server has.

        Raises:
            ClientError: see `Transport.send`. A server without the door does not have this address: 404.
        """
        names = fields.field(self._transport.send("GET", "/v2/models").value, "models", list)
        if not all(isinstance(name, str) and is_unicode(name) for name in names):
            raise UnexpectedAnswerError(f"Expected the models' names, not {shown(names)}.")
        return names

    def _ask(self, verb: str, body: object) -> Answer:
        """
        Raises:
            RefusedError: the server did not take it. If it does not have the model, the error says which it has.
        """
        try:
            return self._transport.send("POST", f"/{verb}/{self._path}", body=body)
        except RefusedError as error:
            if error.type != _NO_MODEL:
                raise
            has = "Name the server's model by --model."  # without the door, this address does not say which there are
            with suppress(ClientError):
                has = f"The server has {', '.join(self.models()) or 'none'}. Name one by --model."
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {has}") from None

    def explain(self, text: str) -> Explanation:
        """A text's prediction, and how much each of its tokens speaks for it.

        Raises:
            ClientError: see `Transport.send`.
        """
        answer = self._ask("explanations", {"text": text})
        tokens = fields.field(answer.value, "tokens", list)
        return Explanation(_prediction(answer.value, answer), tuple(map(_token, tokens)))

    def explain_or_error(self, text: str) -> Explanation | RefusedError:
        """`explain`, with a refusal that is about the text returned, not raised."""
        return _or_refusal(lambda: self.explain(text))

    def predict(self, text: str) -> Prediction:
        """
        Raises:
            ClientError: see `Transport.send`.
        """
        return self._predict([text])[0]

    def predict_many(self, texts: Iterable[str]) -> list[Prediction]:
        """Predictions in the texts' order. Long lists become several requests, sent over all connections. If it is
        interrupted (`KeyboardInterrupt`), the client is closed.

        Raises:
            RefusedError: the server did not take a text; `predict_each` tells which.
            ClientError: see `Transport.send`.
        """
        with ThreadPoolExecutor(self.connections) as pool:
            try:
                return [prediction for part in pool.map(self._predict, split(texts)) for prediction in part]
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()  # or whoever interrupts this waits for all answers that are under way
                raise

    def predict_each(self, texts: Sequence[str]) -> list[Prediction | RefusedError]:
        """Ask for the texts that `split` gave, in one request. If it is refused because of a text, ask for each half.

        Returns:
            For each text its prediction, or the error with which the server refused it.

        Raises:
            ClientError: the request failed for another reason than its texts; see `Transport.send`.
        """
        result = self._attempt(texts)
        if isinstance(result, RefusedError) and len(texts) > 1:
            middle = len(texts) // 2
            return self.predict_each(texts[:middle]) + self.predict_each(texts[middle:])
        if isinstance(result, RefusedError) and (result.type == _LOST or result.status == HTTPStatus.GATEWAY_TIMEOUT):
            # A text that was lost with its worker need not have been what ended it.
            result = self._attempt(texts)
        return [result] if isinstance(result, RefusedError) else list(result)

    def _attempt(self, texts: Sequence[str]) -> list[Prediction] | RefusedError:
        """Ask once. A refusal that one of the texts may have caused is returned, not raised."""
        return _or_refusal(lambda: self._predict(texts))

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        # A text alone is sent as one: its error then speaks of "the text", not of "item 0".
        body = {"text": texts[0]} if len(texts) == 1 else list(texts)
        answer = self._ask("predictions", body)
        values = [answer.value] if len(texts) == 1 else answer.value
        if not isinstance(values, list) or len(values) != len(texts):
            raise UnexpectedAnswerError(f"Expected {len(texts)} predictions, not {shown(answer.value)}.")
        return [_prediction(value, answer) for value in values]


def _or_refusal(ask: Callable[[], Result]) -> Result | RefusedError:
    """The result of a request. A refusal that one of its texts may have caused is returned, not raised."""
    try:
        return ask()
    except RefusedError as error:
        if error.status not in _ABOUT_A_TEXT:
            raise
        return error


def split(
    texts: Iterable[str], max_texts: int = MAX_TEXTS, max_characters: int = MAX_CHARACTERS
) -> Iterator[list[str]]:
    """Divide texts into requests, in order, with at most so many texts and characters each. A longer text has a request
    of its own."""
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > max_characters:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
        # At once, not with the next text: whoever types texts waits for the answer.
        if len(part) == max_texts:
            yield part
            part, characters = [], 0
    if part:
        yield part


def _prediction(value: Any, answer: Answer) -> Prediction:
    version = answer.model_version
    if isinstance(value, dict) and "value" in value:
        return Prediction(value=number(value["value"], "the value"), model_version=version)
    scores = {}
    for name, score in fields.field(value, "scores", dict).items():
        if not is_unicode(name):
            raise UnexpectedAnswerError(f"A label is not Unicode: {shown(name)}.")
        scores[name] = probability(score, "a label's score")
    found = Prediction(scores=scores, model_version=version)
    if "labels" in value:
        labels = fields.field(value, "labels", list)
        return replace(found, labels=tuple(unicode(label, "a label") for label in labels))
    label = unicode(fields.field(value, "label", str), "'label'")
    return replace(found, label=label, score=probability(value.get("score"), "the score"))


def _token(value: Any) -> Token:
    token = unicode(fields.field(value, "token", str), "'token'")
    weight = number(value.get("weight"), "a token's weight")
    start, end = fields.field(value, "start", int), fields.field(value, "end", int)
    if "weights" not in value:
        return Token(token, weight, start, end)
    weights = fields.field(value, "weights", dict)
    by_label = {unicode(label, "a label"): number(found, "a label's weight") for label, found in weights.items()}
    return Token(token, weight, start, end, by_label)
