"""The time and the bytes that one request may take, whatever the server sends.

A socket's timeout starts again with every byte that arrives, and `http.client` reads interim replies and trailers
without an end. So the limits are applied where bytes leave the socket: status line, headers and body count alike.
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
"""Of a whole answer with its headers. TorchServe's own limit, `max_response_size`, is 6.5 MB."""


class TooSlowError(TimeoutError):
    """The request's time is up, or it has been ended."""


class TooLargeError(Exception):
    """The answer has more than `MAX_ANSWER_BYTES`."""


class Bounds:
    """The limits of one request. The thread that sends it enters them by `with`; any thread may `end` it."""

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
        """Give the socket the time that is left, and let `end` reach it.

        Raises:
            TooSlowError: no time is left, or the request has been ended.
        """
        with self._lock:
            if self._ended:  # before there was a connection
                raise TooSlowError
            self._socket = connected
        connected.settimeout(self._seconds_left())

    def take(self, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            TooLargeError: they are too many.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise TooLargeError

    def end(self) -> None:
        """End the request, from another thread: whoever waits for its answer gets an error."""
        with self._lock:
            self._ended = True
            if self._socket is not None:
                with suppress(OSError):  # the server may have closed it
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _seconds_left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TooSlowError
        return left


_BOUNDS: ContextVar[Bounds] = ContextVar("bounds")


class _Reader(io.RawIOBase):
    """The bytes of a socket, within the bounds of the request that reads them."""

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
    def __init__(self, sock: socket.socket, *arguments: Any, **settings: Any) -> None:
        super().__init__(sock, *arguments, **settings)
        self.fp = io.BufferedReader(_Reader(self.fp.detach(), sock))


class _Bounded:
    """What both kinds of connection have."""

    response_class = _Response
    sock: socket.socket | None

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        assert self.sock is not None
        _BOUNDS.get().watch(self.sock)

    def request(self, *arguments: Any, **settings: Any) -> None:
        if self.sock is not None:  # kept from an earlier request, with the time that this one had left
            _BOUNDS.get().watch(self.sock)
        super().request(*arguments, **settings)  # type: ignore[misc]


class _Connection(_Bounded, HTTPConnection):  # type: ignore[misc]
    pass


class _SecureConnection(_Bounded, HTTPSConnection):  # type: ignore[misc]
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class BoundedAdapter(HTTPAdapter):
    """Connections, directly or through an HTTP proxy, whose requests are sent within `Bounds`."""

    def init_poolmanager(self, *arguments: Any, **settings: Any) -> None:
        super().init_poolmanager(*arguments, **settings)
        _bound(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **settings: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **settings)
        if not proxy.lower().startswith("socks"):  # those have pools of their own
            _bound(manager)
        return manager


def _bound(manager: PoolManager) -> None:
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
