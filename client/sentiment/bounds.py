"""Limits on the time and the size of one request, whatever the server sends.

A socket's timeout restarts with every byte that arrives, and `http.client` reads any number of interim replies and
trailers. Therefore the limits are applied where bytes leave the socket: they cover status line, headers and body.
"""

import io
import socket
import threading
import time
from contextlib import suppress
from contextvars import ContextVar
from http.client import HTTPResponse
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection

MAX_ANSWER_BYTES = 8 * 2**20
"""Maximum size of a reply with its headers. TorchServe's own limit, `max_response_size`, is 6.5 MB."""


class TooSlowError(TimeoutError):
    """The request timed out, or it was ended."""


class TooLargeError(Exception):
    """The reply has more than `MAX_ANSWER_BYTES`."""


class Bounds:
    """The limits of one request. The thread that sends the request enters them by `with`; any thread may `end` it."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._bytes_left = MAX_ANSWER_BYTES
        self._socket: socket.socket | None = None
        self._ended = False
        self._lock = threading.Lock()

    def __enter__(self) -> "Bounds":
        self._before = _BOUNDS.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._socket = None
        _BOUNDS.reset(self._before)

    def watch(self, connected: socket.socket) -> None:
        """Set the socket's timeout to the remaining time, and let `end` close this socket.

        Raises:
            TooSlowError: no time is left, or the request was ended.
        """
        with self._lock:
            if self._ended:  # while the connection was being opened
                raise TooSlowError
            self._socket = connected
        connected.settimeout(self._seconds_left())

    def take(self, count: int) -> None:
        """Count received bytes.

        Raises:
            TooLargeError: the reply has more than `MAX_ANSWER_BYTES`.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise TooLargeError

    def end(self) -> None:
        """End the request, from another thread. The thread that waits for the reply gets an error."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                with suppress(OSError):  # the server may have closed it
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _seconds_left(self) -> float:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TooSlowError
        return seconds


_BOUNDS: ContextVar[Bounds] = ContextVar("bounds")


class _Reader(io.RawIOBase):
    """The bytes of a socket, within the limits of the request that reads them."""

    def __init__(self, raw: io.RawIOBase, connected: socket.socket) -> None:
        self._raw = raw
        self._socket = connected

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        bounds = _BOUNDS.get()
        bounds.watch(self._socket)
        count: int | None = self._raw.readinto(buffer)
        bounds.take(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """A reply that is read within the limits of its request."""

    def __init__(self, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock))


class _Bounded:
    """Mixin of both kinds of connection."""

    response_class = _Response
    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        assert self.sock is not None
        _BOUNDS.get().watch(self.sock)

    def request(self, *arguments: Any, **settings: Any) -> None:
        if self.sock is not None:  # a pooled connection, which still has the timeout of an earlier request
            _BOUNDS.get().watch(self.sock)
        super().request(*arguments, **settings)  # type: ignore[misc]


class _Connection(_Bounded, HTTPConnection):  # type: ignore[misc]
    """An HTTP connection with limits."""


class _SecureConnection(_Bounded, HTTPSConnection):  # type: ignore[misc]
    """An HTTPS connection with limits."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class BoundedAdapter(HTTPAdapter):
    """Adapter of `requests` whose connections, direct or through an HTTP proxy, apply `Bounds`."""

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        """Create the pools of direct connections."""
        super().init_poolmanager(*arguments, **settings)
        _bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
        """The pools of connections through a proxy."""
        manager = super().proxy_manager_for(proxy, **settings)
        if not proxy.lower().startswith("socks"):  # SOCKS has other pool classes
            _bound(manager)
        return manager


def _bound(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
