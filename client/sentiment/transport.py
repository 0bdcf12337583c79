"""Requests to one of TorchServe's addresses: pooled connections, time limits, and a retry where a retry can help."""

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
READ_TIMEOUT_S = 40.0
"""For a whole request and its whole answer. Longer than the server's own 30 s (`responseTimeout`), so that the server's
answer comes first."""
RETRIES = 6
BACKOFF_S = 0.1
"""Before the first retry; doubled before each further one: 6 s in all."""
LONGEST_PAUSE_S = 30.0
"""A server that asks for a longer pause (`Retry-After`) is not waited for."""

VERSION_HEADER = "X-Model-Version"
INVALID_KEY = "InvalidKeyException"
"""What TorchServe, with status 400, calls a token that is missing, wrong or expired."""

MAX_WORDS_CHARACTERS = 1_000
"""Of what is kept of an error's message, its type, or a version's name."""

_BLOCK_BYTES = 65_536
_FAILURES = (requests.RequestException, HTTPError, HTTPException, OSError, ValueError, TooLargeError)
"""What requests, urllib3 and the layers below them raise where a request has no answer. ValueError is what some broken
answers give: a chunk of negative length."""
_NO_ADDRESS = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError, UnicodeError)


@dataclass(frozen=True)
class Answer:
    value: Any
    """The body's JSON. All its numbers are finite."""

    model_version: str | None
    """Of the model that answered; None where nothing says so."""


@dataclass(frozen=True)
class _Reply:
    """A whole HTTP answer."""

    request: str
    """`GET http://127.0.0.1:8080/ping`"""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def start(self) -> str:
        """The start of the body in one line, for messages."""
        return " ".join(self.body[:500].decode(errors="replace").split())[:200]

    def json(self) -> Any:
        """
        Raises:
            ValueError: the body is not JSON, or has a number that is not finite.
            RecursionError: it is nested too deep.
        """
        return json.loads(self.body, parse_float=_finite, parse_constant=_finite)


class Transport:
    """Safe to use from several threads.

    A server on this machine is never asked through a proxy; for others the environment's proxy is used (`http_proxy`,
    `https_proxy`, `all_proxy`, `no_proxy`), and `REQUESTS_CA_BUNDLE`. `~/.netrc` is not read.
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
        """
        Raises:
            InputError: `url` is not an address, or `token` has characters that no token has.
        """
        self.url = address.address(url)
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._retries = retries
        self._backoff_s = backoff_s
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.mount("http://", BoundedAdapter(pool_maxsize=connections, pool_block=True))
        self._session.mount("https://", BoundedAdapter(pool_maxsize=connections, pool_block=True))
        # Uncompressed, so that the bytes that arrive are the bytes that are kept.
        self._session.headers["Accept-Encoding"] = "identity"
        if checked := address.token(token):
            self._session.headers["Authorization"] = f"Bearer {checked}"
        self._peer = self.url
        if proxy := address.proxy(self.url):
            self._session.proxies = {"http": proxy, "https": proxy}
            self._peer = f"{self.url}, asked through the proxy {proxy.rpartition('@')[2]},"
        if self.url.startswith("https"):
            self._session.verify = address.certificates()
        self._closed = Event()
        self._under_way: set[Bounds] = set()
        self._lock = Lock()

    def close(self) -> None:
        """Close all connections. Requests that other threads have under way, or send later, end with an error."""
        self._closed.set()
        with self._lock:
            for bounds in self._under_way:
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
        """Send one request. It is sent again on 503, and when the connection fails, a load balancer's too (502); never
        when its time is up.

        Args:
            body: sent as JSON.
            repeat: False for a request that must not happen twice.

        Raises:
            UnreachableError, OverloadedError, NotAuthorizedError, RefusedError, UnexpectedAnswerError: see
                `sentiment.errors`.
            InputError: the address cannot be asked at all.
        """
        for attempt in count():
            problem: ClientError
            pause_s = self._backoff_s * 2**attempt * random.uniform(0.5, 1)
            try:
                reply = self._send_once(method, path, body, parameters)
            except _FAILURES as error:
                problem, may_pass = self._problem(error)
                if not may_pass:
                    raise problem from error
            else:
                asked_s = _retry_after_s(reply)
                if reply.status == HTTPStatus.BAD_GATEWAY:
                    problem = UnreachableError(f"{self._peer} has lost its server: {_refusal(reply)}")
                elif reply.status == HTTPStatus.SERVICE_UNAVAILABLE:
                    problem = OverloadedError(f"{self._peer} is overloaded: {_refusal(reply)}", asked_s)
                else:
                    return _answer(reply)
                pause_s = max(pause_s, asked_s or 0)
            if not repeat or attempt == self._retries or pause_s > LONGEST_PAUSE_S or self._closed.wait(pause_s):
                raise problem
        raise AssertionError("unreachable")

    def _send_once(self, method: str, path: str, body: object, parameters: Mapping[str, str | int] | None) -> _Reply:
        bounds = Bounds(self._timeouts_s[1])
        with self._lock:
            if self._closed.is_set():  # `close` has ended the requests that were under way, and would miss this one
                raise self._after_close()
            self._under_way.add(bounds)
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
                self._under_way.discard(bounds)
        request = f"{method} {response.url}"
        return _Reply(request, response.status_code, response.reason or "", response.headers, content)

    def _after_close(self) -> UnreachableError:
        return UnreachableError(f"{self._peer} was asked over a transport that has been closed.")

    def _problem(self, error: Exception) -> tuple[ClientError, bool]:
        """What to raise for a failure, and whether asking again may help."""
        causes = list(_causes(error))
        if self._closed.is_set():
            return self._after_close(), False
        if any(isinstance(cause, _NO_ADDRESS) for cause in causes):
            return InputError(f"{self._peer} cannot be asked: {_reason(error)}"), False
        if why := _broken(causes):
            return UnexpectedAnswerError(f"{self._peer} {why}"), False
        # No connection in time is not an answer that comes too late.
        connected = not any(isinstance(cause, ConnectTimeoutError) for cause in causes)
        if connected and any(isinstance(cause, TimeoutError | ReadTimeoutError) for cause in causes):
            late = f"timed out, no whole answer after {self._timeouts_s[1]:g} s"
            return UnreachableError(f"{self._peer} does not answer: {late}"), False
        may_pass = not isinstance(error, requests.exceptions.SSLError)
        return UnreachableError(f"{self._peer} does not answer: {_reason(error)}"), may_pass


ClientType = TypeVar("ClientType", bound="Client")
"""Python 3.10 has no `typing.Self`."""


class Client:
    """What asks over a transport, and closes it at the end of a `with`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __enter__(self: ClientType) -> ClientType:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()


def shown(value: object) -> str:
    """The start of any JSON, for messages: neither its length nor its depth matters."""
    return _REPR.repr(value)


_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 100


def words(value: object) -> str:
    """What a server says, as Unicode that every file and every terminal's encoding can hold, and not too much of it."""
    text = value if isinstance(value, str) else shown(value)
    return text[:MAX_WORDS_CHARACTERS].encode(errors="replace").decode()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and the errors within it: requests and urllib3 each put their own around the first."""
    left: list[object] = [error]
    seen: set[int] = set()
    while left:
        cause = left.pop()
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            left += [*cause.args, getattr(cause, "reason", None), cause.__cause__]


def _broken(causes: Sequence[BaseException]) -> str | None:
    """Why what the server sends is no answer to be read; None if that is not what failed."""
    for cause in causes:
        if isinstance(cause, TooLargeError):
            return f"sent more than {MAX_ANSWER_BYTES // 2**20} MiB, which no answer of TorchServe has."
        if isinstance(cause, ssl.SSLError):  # a certificate that is not trusted is a ValueError, too
            return None
        dropped = isinstance(cause, RemoteDisconnected | IncompleteRead) and not isinstance(cause, InvalidChunkLength)
        if isinstance(cause, HTTPException | ValueError) and not dropped:
            return f"does not speak HTTP: {type(cause).__name__}: {shown(str(cause))}"
    return None


def _reason(error: Exception) -> str:
    """urllib3's own words, without the pool and the path around them."""
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
            raise NotAuthorizedError(f"{reply.request} wants another token: {refusal}")
        raise refusal
    try:
        value = reply.json()
    except (ValueError, RecursionError):
        value = None
    if value is None or reply.status >= HTTPStatus.MULTIPLE_CHOICES:
        encoding = reply.headers.get("Content-Encoding")
        start = f"{encoding} data, which was not asked for" if encoding else repr(reply.start[:100])
        raise UnexpectedAnswerError(
            f"{reply.request} was answered {reply.status} without the JSON that was expected: {start}. "
            "Is this a TorchServe's address?"
        )
    version = reply.headers.get(VERSION_HEADER)
    return Answer(value, None if version is None else words(version))


def _refusal(reply: _Reply) -> RefusedError:
    try:
        error = reply.json()
        return RefusedError(reply.status, words(error["type"]), words(error["message"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        # TorchServe itself refuses a body over `max_request_size` without a body of its own.
        return RefusedError(reply.status, words(reply.reason or str(reply.status)), reply.start)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number that JSON has")
    return value


def _retry_after_s(reply: _Reply) -> float | None:
    value = reply.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except (HTTPError, ValueError, OverflowError):
        return None
