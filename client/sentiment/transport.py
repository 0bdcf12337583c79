"""HTTP requests to one of TorchServe's addresses, with pooled connections, timeouts and retries."""

import json
import math
import random
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, IncompleteRead, RemoteDisconnected
from itertools import count
from reprlib import Repr
from threading import Event, Lock
from types import TracebackType
from typing import Any, TypeVar

import requests
from urllib3.exceptions import ConnectTimeoutError, HTTPError, InvalidChunkLength, LocationValueError, ReadTimeoutError
from urllib3.util import Retry

from sentiment import address
from sentiment.bounds import MAX_ANSWER_BYTES, BoundedAdapter, Bounds, TooLargeError
from sentiment.errors import (
    ClientError,
    InputError,
    NotAuthorizedError,
    OverloadedError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)

CONNECTIONS = 8
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 65.0
"""Timeout for a request with its whole reply. The server may take 60 s, because HAProxy retries a request once: 10 s
until the request has arrived, and in each of two attempts 5 s in the queue and 20 s for the answer. A shorter timeout
would lose an answer that the server still computes."""
RETRIES = 6
BACKOFF_S = 0.1
"""Maximum pause before the first retry; the minimum is half of it. Both double with each retry, up to 6.3 s in all."""
LONGEST_PAUSE_S = 30.0
"""Maximum pause before a retry, without the random part. If the server asks for a longer one (`Retry-After`), the
request fails."""

VERSION_HEADER = "X-Model-Version"
INVALID_KEY = "InvalidKeyException"
"""TorchServe's error type, with status 400, for a token that is missing, wrong or expired."""

MAX_WORDS_CHARACTERS = 1_000
"""Maximum length of an error's message, of its type, and of a version's name; the rest is cut off."""

_BLOCK_BYTES = 65_536
_FAILURES = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError, TooLargeError)
"""Exceptions of requests, urllib3 and the layers below for a request without a valid reply. Some invalid replies raise
ValueError, such as a chunk of negative length."""
_NO_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError, UnicodeError)


@dataclass(frozen=True)
class Answer:
    """A successful reply."""

    value: Any
    """The body's JSON. All its numbers are finite."""

    model_version: str | None
    """The version of the model that answered; None if the reply does not name it."""


@dataclass(frozen=True)
class _Reply:
    """A complete HTTP reply."""

    request: str
    """`GET http://127.0.0.1:8080/ping`"""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def start(self) -> str:
        """The start of the body as one line, for messages."""
        return " ".join(self.body[:500].decode(errors="replace").split())[:200]

    def json(self) -> Any:
        """The body's JSON.

        Raises:
            ValueError: the body is not JSON, or contains a number that is not finite.
            RecursionError: the JSON is nested too deeply.
        """
        return json.loads(self.body, parse_float=_finite, parse_constant=_finite)


class Transport:
    """Connections to one address. It can be shared by threads.

    Requests to other machines use the environment's proxy (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`) and
    `REQUESTS_CA_BUNDLE`. Requests to this machine never use a proxy. `~/.netrc` is not read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        connections: int = CONNECTIONS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        retries: int = RETRIES,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        """Check the settings. No request is sent. `InferenceClient` documents the arguments.

        Raises:
            InputError: `url` is not a valid address, or `token` contains invalid characters.
        """
        self.url = address.address(url)
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._retries = retries
        self._backoff_s = backoff_s
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", BoundedAdapter(pool_maxsize=connections, pool_block=True))
        self._session.mount("https://", BoundedAdapter(pool_maxsize=connections, pool_block=True))
        # No compression: a small compressed reply could fill the memory when it is decompressed.
        self._session.headers["Accept-Encoding"] = "identity"
        if checked := address.token(token):
            self._session.headers["Authorization"] = f"Bearer {checked}"
        self._peer = self.url
        if proxy := address.proxy(self.url):
            self._session.proxies = {"http": proxy, "https": proxy}
            self._peer = f"{self.url} (through the proxy {proxy.rpartition('@')[2]})"
        if self.url.startswith("https"):
            self._session.verify = address.certificates()
        self._closed = Event()
        self._pending: set[Bounds] = set()
        self._lock = Lock()

    def close(self) -> None:
        """Close all connections. Pending and later requests of other threads end with an error."""
        self._closed.set()
        with self._lock:
            for bounds in self._pending:
                bounds.end()
        self._session.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        parameters: Mapping[str, str | int] | None = None,
        repeat: bool = True,
    ) -> Answer:
        """Send one request, with retries.

        A request is retried after status 503, after status 502 (from a load balancer), and if the connection fails. It
        is not retried after a timeout of the reply or an error of TLS.

        Args:
            method: the HTTP method.
            path: the path and the query, appended to the address.
            body: the body, sent as JSON; None for no body.
            parameters: parameters of the query.
            repeat: False for a request that must not be retried.

        Raises:
            UnreachableError, OverloadedError, NotAuthorizedError, RefusedError, UnexpectedAnswerError: see
                `sentiment.errors`.
            InputError: the address is invalid.
        """
        for attempt in count():
            problem: ClientError
            pause_s = self._backoff_s * 2**attempt / 2
            try:
                reply = self._send_once(method, path, body, parameters)
            except _FAILURES as error:
                problem, may_pass = self._problem(error)
                if not may_pass:
                    raise problem from error
            else:
                asked_s = _retry_after_s(reply)
                if reply.status == HTTPStatus.BAD_GATEWAY:
                    problem = UnreachableError(f"{self._peer} lost the connection to its server: {_refusal(reply)}")
                elif reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    problem = OverloadedError(f"{self._peer} is overloaded: {_refusal(reply)}", asked_s)
                else:
                    return _answer(reply)
                pause_s = max(pause_s, asked_s or 0)
            if not repeat or attempt == self._retries or pause_s > LONGEST_PAUSE_S:
                raise problem
            # A random pause comes on top of what the server asks for, too: it asks all clients that it refuses for the
            # same pause, and they would return together.
            if self._closed.wait(pause_s * random.uniform(1, 2)):
                raise problem
        raise AssertionError("unreachable")

    def _send_once(self, method: str, path: str, body: object, parameters: Mapping[str, str | int] | None) -> _Reply:
        bounds = Bounds(self._timeouts_s[1])
        with self._lock:
            if self._closed.is_set():  # `close` has ended the pending requests, and would miss this one
                raise self._after_close()
            self._pending.add(bounds)
        try:
            with (
                bounds,
                self._session.request(
                    method,
                    self.url + path,
                    json=body,
                    params=parameters,
                    timeout=self._timeouts_s,
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                content = b"".join(response.raw.stream(_BLOCK_BYTES, decode_content=False))
        finally:
            with self._lock:
                self._pending.discard(bounds)
        request = f"{method} {response.url}"
        return _Reply(request, response.status_code, response.reason or "", response.headers, content)

    def _after_close(self) -> UnreachableError:
        return UnreachableError(f"Request to {self._peer} after its client was closed.")

    def _problem(self, error: Exception) -> tuple[ClientError, bool]:
        """The error to raise for a failure, and whether a retry may help."""
        causes = list(_causes(error))
        if self._closed.is_set():
            return self._after_close(), False
        if any(isinstance(cause, _NO_ADDRESS) for cause in causes):
            return InputError(f"{self._peer} is not a valid address: {_reason(error)}"), False
        if why := _broken(causes):
            return UnexpectedAnswerError(f"{self._peer} {why}"), False
        # A timeout while connecting may be retried; a timeout of the reply may not.
        connected = not any(isinstance(cause, ConnectTimeoutError) for cause in causes)
        if connected and any(isinstance(cause, TimeoutError | ReadTimeoutError) for cause in causes):
            late = f"timed out, no complete reply after {self._timeouts_s[1]:g} s"
            return UnreachableError(f"{self._peer} does not answer: {late}"), False
        may_pass = not isinstance(error, requests.exceptions.SSLError)
        return UnreachableError(f"{self._peer} does not answer: {_reason(error)}"), may_pass


ClientType = TypeVar("ClientType", bound="Client")
"""Python 3.10 has no `typing.Self`."""


class Client:
    """Base class of the clients: a context manager that closes its transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __enter__(self: ClientType) -> ClientType:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Pending requests of other threads end with an error."""
        self._transport.close()


def shown(value: object) -> str:
    """The start of any JSON value, for messages, whatever its length and depth."""
    return _REPR.repr(value)


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def server_text(value: object) -> str:
    """Text from the server, or the start of another JSON value: cut to a maximum length, and encodable as UTF-8."""
    text = value if isinstance(value, str) else shown(value)
    return text[:MAX_WORDS_CHARACTERS].encode(errors="replace").decode()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors inside it: requests and urllib3 each wrap the original error in their own."""
    candidates: list[object] = [error]
    seen: set[int] = set()
    while candidates:
        cause = candidates.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            candidates += [*cause.args, getattr(cause, "reason", None), cause.__cause__]


def _broken(causes: Sequence[BaseException]) -> str | None:
    """Why the reply cannot be read; None if the request failed for another reason."""
    for cause in causes:
        if isinstance(cause, TooLargeError):
            return f"sent more than {MAX_ANSWER_BYTES // 2**20} MiB, more than any reply of TorchServe."
        if isinstance(cause, ssl.SSLError):  # an untrusted certificate is a ValueError, too
            return None
        dropped = isinstance(cause, RemoteDisconnected | IncompleteRead) and not isinstance(cause, InvalidChunkLength)
        if isinstance(cause, HTTPException | ValueError) and not dropped:
            return f"does not speak HTTP: {type(cause).__name__}: {shown(str(cause))}"
    return None


def _reason(error: Exception) -> str:
    """The reason in an error of urllib3, without the pool and the path that it quotes."""
    for inner in _causes(error):
        if isinstance(inner, ssl.SSLError):
            return str(inner)
    cause: object = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause
    text = str(cause).rpartition(": ")[2] if isinstance(cause, Exception) else str(cause)
    return text or type(error).__name__


def _answer(reply: _Reply) -> Answer:
    if reply.status >= HTTPStatus.BAD_REQUEST:
        refusal = _refusal(reply)
        if refusal.type == INVALID_KEY or refusal.status == HTTPStatus.UNAUTHORIZED:
            raise NotAuthorizedError(
                f"{reply.request} requires a valid token (SENTIMENT_TOKEN, SENTIMENT_MANAGEMENT_TOKEN): {refusal}"
            )
        raise refusal
    try:
        value = reply.json()
    except (ValueError, RecursionError):
        value = None
    if value is None or reply.status >= HTTPStatus.MULTIPLE_CHOICES:
        encoding = reply.headers.get("Content-Encoding")
        start = f"{encoding} data, which was not requested" if encoding else repr(reply.start[:100])
        raise UnexpectedAnswerError(
            f"{reply.request}: expected JSON, got status {reply.status} with {start}. "
            "Check that this is TorchServe's address."
        )
    version = reply.headers.get(VERSION_HEADER)
    return Answer(value, None if version is None else server_text(version))


def _refusal(reply: _Reply) -> RefusedError:
    try:
        error = reply.json()
        return RefusedError(reply.status, server_text(error["type"]), server_text(error["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        # TorchServe refuses a body over `max_request_size` with an empty reply.
        return RefusedError(reply.status, server_text(reply.reason or str(reply.status)), reply.start)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def _retry_after_s(reply: _Reply) -> float | None:
    value = reply.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except (HTTPError, ValueError, OverflowError):
        return None
