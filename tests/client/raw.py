"""A server of plain sockets that sends any bytes, whether they are HTTP or not."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Behave = Callable[[socket.socket], None]
"""Function that handles a connection after a complete request; an `OSError`, when the client has closed it, ends it."""

BLOCK = b"x" * 65_536


class Raw:
    def __init__(self, behave: Behave) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the test has closed the socket
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            self.requests.append(_request(connection))
            self._behave(connection)

    def close(self) -> None:
        self.stopped.set()
        self._listener.close()


def _request(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += _some(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.partition(b":")[2]):
                body += _some(connection)
    return head


def _some(connection: socket.socket) -> bytes:
    received = connection.recv(65_536)
    if not received:
        raise ConnectionResetError
    return received


@contextmanager
def raw(behave: Behave) -> Iterator[Raw]:
    server = Raw(behave)
    try:
        yield server
    finally:
        server.close()


def sending(start: bytes, again: bytes = b"", pause_s: float = 0) -> Behave:
    """Send `start`, then `again` without end; if `again` is empty, close the connection."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(start)
        while again:
            connection.sendall(again)
            threading.Event().wait(pause_s)

    return behave
