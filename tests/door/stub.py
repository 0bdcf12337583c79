"""Raw HTTP clients in front of the door, and a stub server in place of TorchServe behind it."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Self

TIMEOUT_S = 60
"""The time after which a test fails. The door's own timeouts are shorter."""


LARGEST = 2_500_000
"""The largest body, in bytes."""


@dataclass(frozen=True)
class Request:
    """A request that the stub received from the door."""

    method: str
    path: str
    headers: dict[str, str]
    """The values by name, in lower case."""
    body: bytes


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """The values by name, in lower case."""
    body: bytes = b""


Answer = Callable[[Request], Reply | None]


def echo(request: Request) -> Reply:
    return Reply(200, {"content-type": "application/json"}, request.body)


class Stub(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An HTTP server on a Unix socket. A test sets `answer`; if it returns None, the connection ends without a reply.

    If a body is too large, the stub responds at once and reads on, as TorchServe does.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1_024

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.answer: Answer = echo
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._at_once = 0
        self._changed = threading.Condition()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        self.answer = echo
        self.requests, self.most_at_once = [], 0

    def reply(self, request: Request) -> Reply | None:
        with self._changed:
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self._changed.notify_all()
        try:
            return self.answer(request)
        finally:
            with self._changed:
                self._at_once -= 1

    def wait_for(self, count: int) -> None:
        """Wait until `count` requests have arrived; on a busy machine, they arrive late."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, TIMEOUT_S), len(self.requests)

    def handle_error(self, *_: object) -> None:
        """Ignore errors: the door may close a connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            for chunk in self._chunks():
                if len(body) <= LARGEST < len(body) + len(chunk):
                    self.wfile.write(b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n")
                body += chunk
            if len(body) > LARGEST:
                return
        else:
            body = self.rfile.read(int(headers.get("content-length", "0")))
        reply = self.server.reply(Request(self.command, self.path, headers, body))
        if reply is None:
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        for name, value in ({"content-length": str(len(reply.body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_HEAD = do_TRACE = do_OPTIONS = do_CONNECT = do_DELETE = _handle  # noqa: N815

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


class Client:
    """A connection that sends raw bytes."""

    def __init__(
        self, port: int, sent: bytes = b"", receive_bytes: int | None = None, source: str = "127.0.0.1"
    ) -> None:
        """Connect and send.

        Args:
            port: the port on this machine.
            sent: the bytes to send.
            receive_bytes: the size of the kernel's buffer for unread bytes.
            source: the client's address.
        """
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT_S)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            self.socket.bind((source, 0))
            self.socket.connect(("127.0.0.1", port))
            self.send(sent)
        except OSError:
            self.socket.close()
            raise
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self, *, head: bool = False) -> Reply:
        """The next response on the connection.

        Args:
            head: whether it is the response to a HEAD request, without a body.
        """
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self._file.readline().strip()) != b"":
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if head else int(headers.get("content-length", "0"))
        return Reply(int(line.split()[1]), headers, self._file.read(length))

    def is_closed(self) -> bool:
        """Whether the door closes the connection without further bytes."""
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def request(
    body: bytes = b"late", method: str = "POST", path: str = "/predictions/sentiment", headers: str = ""
) -> bytes:
    """The bytes of a request.

    Args:
        body: the body.
        method: the method.
        path: the path with the query.
        headers: header lines besides Host and Content-Length, each with its line end.
    """
    length = f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: door\r\n{length}{headers}\r\n".encode("latin-1") + body
