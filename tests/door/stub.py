"""What the door has before and behind it in these tests: raw clients, and a server in TorchServe's place."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Self

TIMEOUT_S = 60
"""After it a test fails. The door's own limits are shorter."""


LARGEST = 2_500_000
"""The largest body, in bytes."""


@dataclass(frozen=True)
class Request:
    """A request that came through the door."""

    method: str
    path: str
    headers: dict[str, str]
    """Their names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    """Their names in lower case."""
    body: bytes = b""


Answer = Callable[[Request], Reply | None]


def echo(request: Request) -> Reply:
    return Reply(200, {"content-type": "application/json"}, request.body)


class Stub(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """An HTTP server on a Unix socket. A test sets `answer`; None ends the connection without a reply.

    To a body that is too large it answers as TorchServe: at once, and then it reads on.
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
        """Until so many requests have come: on a busy machine they come some time after the door has sent them."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, TIMEOUT_S), len(self.requests)

    def handle_error(self, *_: object) -> None:
        """A door that closes a connection is no error."""


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
    """A connection that sends what it is told to."""

    def __init__(
        self, port: int, sent: bytes = b"", receive_bytes: int | None = None, source: str = "127.0.0.1"
    ) -> None:
        """
        Args:
            receive_bytes: how much the kernel keeps of what is not read.
            source: the client's own address.
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
        """The next reply of a kept connection.

        Args:
            head: whether it is the reply to HEAD, without a body.
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
        """Whether the door ends the connection, and says nothing more."""
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
    """A request as it is sent.

    Args:
        headers: lines, beside Host and Content-Length, each with its end.
    """
    length = f"Content-Length: {len(body)}\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: door\r\n{length}{headers}\r\n".encode("latin-1") + body
