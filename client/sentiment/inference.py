"""Predictions and explanations for texts, through the inference API."""

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
    server_text,
    shown,
)

Result = TypeVar("Result")
Kind = Literal["label", "labels", "value"]

URL = "http://127.0.0.1:8080"
MODEL = "sentiment"

MAX_TEXTS = 64
"""Maximum number of texts in one request. The server accepts 1,000, but smaller requests share its workers better."""
MAX_CONNECTIONS = 256
"""Maximum number of connections, each with a thread. The server's queue for a model holds fewer requests."""
MAX_CHARACTERS = 50_000
"""Maximum number of characters in one request. The server accepts 200,000, of which 20,000 in one text."""

_ABOUT_A_TEXT = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.INSUFFICIENT_STORAGE,  # TorchServe, if a worker died with the request
    HTTPStatus.GATEWAY_TIMEOUT,  # a load balancer, if a worker hangs with the request
}
"""Statuses that a single text of a request may have caused."""

NO_LABEL = "no label"
"""Text for a prediction without any label over its threshold."""

_NO_MODEL = "ModelNotFoundException"

_LOST = "InternalServerException"
"""TorchServe's error type for a request whose worker died or hung."""


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one text. The fields depend on the kind of the model; the others are None."""

    label: str | None = None
    """The most probable label; of single-label models."""

    score: float | None = None
    """Probability of the label."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Probability of every label; empty for regression models."""

    model_version: str | None = None
    """The version of the model that answered; None if the reply does not name it."""

    labels: tuple[str, ...] | None = None
    """The labels over their thresholds; of multi-label models."""

    value: float | None = None
    """The predicted number; of regression models."""

    @property
    def kind(self) -> Kind:
        """The kind of the model, named after the field that only its predictions have."""
        if self.value is not None:
            return "value"
        return "label" if self.labels is None else "labels"

    def to_json(self) -> dict[str, Any]:
        """The prediction as a JSON object: the fields of the server's reply, and the version."""
        version = self.model_version
        if self.value is not None:
            return {"value": self.value, "model_version": version}
        if self.labels is not None:
            return {"labels": list(self.labels), "scores": dict(self.scores), "model_version": version}
        return {"label": self.label, "score": self.score, "scores": dict(self.scores), "model_version": version}

    @property
    def predicted(self) -> str:
        """The label, the labels or the number, as text for users."""
        if self.value is not None:
            return f"{self.value:.6g}"
        return (self.label or "") if self.labels is None else ", ".join(self.labels) or NO_LABEL


@dataclass(frozen=True)
class Token:
    """A token of a text with its occlusion scores."""

    token: str
    weight: float
    """Occlusion score: the drop in the label's probability, or in the number of a regression, without this token. For
    multi-label models, the sum over the labels."""

    start: int
    end: int
    """Offsets of the token's start and end in the text, in characters."""

    weights: Mapping[str, float] | None = None
    """The occlusion score for each label; of multi-label models."""

    def to_json(self) -> dict[str, Any]:
        """The token as a JSON object."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Explanation:
    """A prediction and the occlusion scores of its text's tokens."""

    prediction: Prediction
    tokens: tuple[Token, ...]

    def strongest(self, count: int) -> list[Token]:
        """The `count` tokens with the largest absolute weights, in descending order."""
        return sorted(self.tokens, key=lambda token: -abs(token.weight))[:count]

    def labels(self) -> list[str]:
        """The labels for which the tokens have weights, by descending probability; empty for single-label models."""
        labels = {label: None for token in self.tokens for label in token.weights or {}}
        return sorted(labels, key=lambda label: -self.prediction.scores.get(label, 0.0))

    def to_json(self) -> dict[str, Any]:
        """The explanation as a JSON object."""
        return self.prediction.to_json() | {"tokens": [token.to_json() for token in self.tokens]}


class InferenceClient(Client):
    """Client of TorchServe's inference API, for one model. It can be shared by threads.

    Its methods raise a `ClientError` if a request fails; `Transport.send` lists the subclasses.
    """

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
        """Check the settings. No request is sent.

        Args:
            url: the inference address.
            model: the model's name.
            version: the model's version; None for the server's default.
            token: sent as `Authorization: Bearer`.
            connections: maximum number of concurrent requests, from 1 to `MAX_CONNECTIONS`.
            connect_timeout_s: timeout for opening a connection, in seconds.
            read_timeout_s: timeout for a request with its whole reply, in seconds.
            retries: maximum number of retries after a 502, a 503 or a failed connection.
            backoff_s: maximum pause before the first retry, in seconds; doubled before each further one.

        Raises:
            InputError: the address, the model's name, the version, the token or the number of connections is invalid.
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
        """The status that TorchServe reports: `Healthy`, or the problem.

        Raises:
            ClientError: see `Transport.send`.
        """
        answer = self._transport.send("GET", "/ping")
        return server_text(answer.value.get("status") if isinstance(answer.value, dict) else answer.value)

    def models(self) -> list[str]:
        """Names of the server's models.

        Raises:
            ClientError: see `Transport.send`. A server without HAProxy lacks this path: status 404.
        """
        names = fields.field(self._transport.send("GET", "/v2/models").value, "models", list)
        if not all(isinstance(name, str) and is_unicode(name) for name in names):
            raise UnexpectedAnswerError(f"Expected the models' names, not {shown(names)}.")
        return names

    def _ask(self, verb: str, body: object) -> Answer:
        """Send a request about texts to the model.

        Raises:
            RefusedError: the server refused the request. If the model is missing, the error names the server's models.
        """
        try:
            return self._transport.send("POST", f"/{verb}/{self._path}", body=body)
        except RefusedError as error:
            if error.type != _NO_MODEL:
                raise
            hint = "Choose the server's model with --model."  # without the door, the models' names are unknown
            with suppress(ClientError):
                hint = f"The server has {', '.join(self.models()) or 'none'}. Choose one with --model."
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {hint}") from None

    def explain(self, text: str) -> Explanation:
        """Predict a text, and compute the occlusion score of each token.

        Raises:
            ClientError: see `Transport.send`.
        """
        answer = self._ask("explanations", {"text": text})
        tokens = fields.field(answer.value, "tokens", list)
        return Explanation(_prediction(answer.value, answer.model_version), tuple(map(_token, tokens)))

    def explain_or_error(self, text: str) -> Explanation | RefusedError:
        """`explain`, but an error that the text caused is returned, not raised."""
        return _or_refusal(lambda: self.explain(text))

    def predict(self, text: str) -> Prediction:
        """Predict one text.

        Raises:
            ClientError: see `Transport.send`.
        """
        return self._predict([text])[0]

    def predict_many(self, texts: Iterable[str]) -> list[Prediction]:
        """Predict many texts; returns the predictions in the texts' order.

        Long lists are split into several concurrent requests. If the call is interrupted (`KeyboardInterrupt`), the
        client is closed.

        Raises:
            RefusedError: the server refused a text; `predict_each` shows which one.
            ClientError: see `Transport.send`.
        """
        with ThreadPoolExecutor(self.connections) as pool:
            try:
                return [prediction for part in pool.map(self._predict, split(texts)) for prediction in part]
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()  # otherwise the interruption waits for all pending requests
                raise

    def predict_each(self, texts: Sequence[str]) -> list[Prediction | RefusedError]:
        """Predict texts in one request. If the server refuses the request because of a text, bisect it.

        Args:
            texts: a part of the texts, as `split` returns it.

        Returns:
            For each text, its prediction, or the error with which the server refused it.

        Raises:
            ClientError: the request failed, and not because of its texts; see `Transport.send`.
        """
        result = self._attempt(texts)
        if isinstance(result, RefusedError) and len(texts) > 1:
            middle = len(texts) // 2
            return self.predict_each(texts[:middle]) + self.predict_each(texts[middle:])
        if isinstance(result, RefusedError) and (result.type == _LOST or result.status == HTTPStatus.GATEWAY_TIMEOUT):
            # The worker that was lost with this text may have died for another reason.
            result = self._attempt(texts)
        return [result] if isinstance(result, RefusedError) else list(result)

    def _attempt(self, texts: Sequence[str]) -> list[Prediction] | RefusedError:
        """Send one request. A refusal that one of the texts may have caused is returned, not raised."""
        return _or_refusal(lambda: self._predict(texts))

    def _predict(self, texts: Sequence[str]) -> list[Prediction]:
        # A single text is sent as an object: an error then names "the text", not "item 0".
        body = {"text": texts[0]} if len(texts) == 1 else list(texts)
        answer = self._ask("predictions", body)
        values = [answer.value] if len(texts) == 1 else answer.value
        return predictions(values, len(texts), answer.model_version)


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
    """Divide texts into requests, in order.

    A text with more than `max_characters` gets a request of its own.

    Args:
        texts: the texts.
        max_texts: maximum number of texts in one request.
        max_characters: maximum number of characters in one request.
    """
    part: list[str] = []
    characters = 0
    for text in texts:
        if part and characters + len(text) > max_characters:
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
        # A full part is yielded before the next text is read: a user may be typing it.
        if len(part) == max_texts:
            yield part
            part, characters = [], 0
    if part:
        yield part


def predictions(value: object, texts: int, model_version: str | None = None) -> list[Prediction]:
    """The predictions in a reply's JSON.

    Args:
        value: the JSON, a list of one prediction for each text.
        texts: number of texts in the request.
        model_version: the version of the model that answered; None if the reply does not name it.

    Raises:
        UnexpectedAnswerError: `value` is no such list.
    """
    if not isinstance(value, list) or len(value) != texts:
        raise UnexpectedAnswerError(f"Expected {texts} predictions, not {shown(value)}.")
    return [_prediction(item, model_version) for item in value]


def _prediction(value: Any, model_version: str | None) -> Prediction:
    if isinstance(value, dict) and "value" in value:
        return Prediction(value=number(value["value"], "the value"), model_version=model_version)
    scores = {}
    for name, score in fields.field(value, "scores", dict).items():
        if not is_unicode(name):
            raise UnexpectedAnswerError(f"A label is not Unicode: {shown(name)}.")
        scores[name] = probability(score, "a label's score")
    prediction = Prediction(scores=scores, model_version=model_version)
    if "labels" in value:
        labels = fields.field(value, "labels", list)
        return replace(prediction, labels=tuple(unicode(label, "a label") for label in labels))
    label = unicode(fields.field(value, "label", str), "'label'")
    return replace(prediction, label=label, score=probability(value.get("score"), "the score"))


def _token(value: Any) -> Token:
    token = unicode(fields.field(value, "token", str), "'token'")
    weight = number(value.get("weight"), "a token's weight")
    start, end = fields.field(value, "start", int), fields.field(value, "end", int)
    if "weights" not in value:
        return Token(token, weight, start, end)
    weights = fields.field(value, "weights", dict)
    by_label = {unicode(label, "a label"): number(score, "a label's weight") for label, score in weights.items()}
    return Token(token, weight, start, end, by_label)
