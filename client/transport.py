"""Requests to one of TorchServe's addresses: pooled connections, timeouts, and a repeat where a repeat can help."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from types import TracebackType
from typing import Any, Self

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import InvalidHeader, ReadTimeoutError
from urllib3.util import Retry

from client.errors import (
    ClientError,
    NotAuthorizedError,
    OverloadedError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)

CONNECTIONS = 8
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 40.0
"""Longer than the server's own 30 s (`responseTimeout`), so that the server's answer comes first."""
RETRIES = 6
BACKOFF_S = 0.1
"""Before the first retry; doubled before each further one: 6 s in all."""
LONGEST_PAUSE_S = 30.0
"""A server that asks for a longer pause (`Retry-After`) is not waited for."""

VERSION_HEADER = "X-Model-Version"
INVALID_KEY = "InvalidKeyException"
"""What TorchServe, with status 400, calls a token that is missing, wrong or expired."""


@dataclass(frozen=True)
class Answer:
    value: Any
    """The body's JSON."""

    model_version: str | None
    """Of the model that answered; None where nothing says so."""


class Transport:
    """Safe to use from several threads."""

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
        self.url = url.rstrip("/")
        self._timeouts_s = (connect_timeout_s, read_timeout_s)
        self._retries = retries
        self._backoff_s = backoff_s
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=connections, pool_block=True))
        if token:
            self._session.auth = Bearer(token)

    def close(self) -> None:
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
        """One request, repeated on 503 and when the connection fails, a load balancer's too (502); never after a read
        timeout.

        Args:
            body: sent as JSON.
            repeat: False for a request that must not happen twice.

        Raises:
            UnreachableError, OverloadedError, NotAuthorizedError, RefusedError, UnexpectedAnswerError: see
                `client.errors`.
        """
        for attempt in count():
            problem: ClientError
            pause_s = self._backoff_s * 2**attempt * random.uniform(0.5, 1)
            try:
                response = self._session.request(
                    method,
                    self.url + path,
                    json=body,
                    params=parameters,
                    timeout=self._timeouts_s,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                problem = UnreachableError(f"{self.url} does not answer: {_reason(error)}")
                if not _connection_failed(error):
                    raise problem from error
            else:
                asked_s = _retry_after_s(response)
                if response.status_code == HTTPStatus.BAD_GATEWAY:
                    problem = UnreachableError(f"{self.url} has lost its server: {_refusal(response)}")
                elif response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
                    problem = OverloadedError(f"{self.url} is overloaded: {_refusal(response)}", asked_s)
                else:
                    return _answer(response)
                pause_s = max(pause_s, asked_s or 0)
            if not repeat or attempt == self._retries or pause_s > LONGEST_PAUSE_S:
                raise problem
            time.sleep(pause_s)
        raise AssertionError("unreachable")


class Client:
    """What asks over a transport, and closes it at the end of a `with`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()


class Bearer(AuthBase):
    """As `auth`, not as a header: requests would put an entry of ~/.netrc in a header's place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _connection_failed(error: requests.RequestException) -> bool:
    """Whether there was no connection or it was dropped: asking again may help, and asks nothing twice at once."""
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return True
    if not isinstance(error, requests.ConnectionError) or isinstance(error, requests.exceptions.SSLError):
        return False
    # A read timeout within a body comes as a ConnectionError.
    return not any(isinstance(cause, ReadTimeoutError) for cause in error.args)


def _reason(error: requests.RequestException) -> str:
    """urllib3's own words, without the pool and the path around them."""
    cause: object = error.args[0] if error.args else error
    cause = getattr(cause, "reason", None) or cause
    text = str(cause).rpartition(": ")[2] if isinstance(cause, Exception) else str(cause)
    return text or type(error).__name__


def _answer(response: requests.Response) -> Answer:
    if response.status_code >= HTTPStatus.BAD_REQUEST:
        refusal = _refusal(response)
        if refusal.type == INVALID_KEY or refusal.status == HTTPStatus.UNAUTHORIZED:
            raise NotAuthorizedError(f"{response.url} wants another token: {refusal}")
        raise refusal
    try:
        value = response.json()
    except ValueError:
        value = None
    if value is None or response.status_code >= HTTPStatus.MULTIPLE_CHOICES:
        raise UnexpectedAnswerError(
            f"{response.request.method} {response.url} was answered {response.status_code} without the JSON that was "
            f"expected: {response.text[:100]!r}. Is this a TorchServe's address?"
        )
    return Answer(value, response.headers.get(VERSION_HEADER))


def _refusal(response: requests.Response) -> RefusedError:
    try:
        error = response.json()
        return RefusedError(response.status_code, str(error["type"]), str(error["message"]))
    except (ValueError, KeyError, TypeError):
        # TorchServe itself refuses a body over `max_request_size` without a body of its own.
        return RefusedError(response.status_code, response.reason or str(response.status_code), response.text[:200])


def _retry_after_s(response: requests.Response) -> float | None:
    value = response.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except InvalidHeader:
        return None
