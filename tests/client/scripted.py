"""A small HTTP server in a thread that sends scripted replies and stores its requests."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_TEXT_CHARACTERS = 200


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0
    """Delay before the reply, in seconds."""

    body_delay_s: float = 0
    """Delay between the headers and the body, in seconds."""

    drop: bool = False
    """Whether to close the connection instead of replying."""


Answer = Callable[[Request], Reply]


class Scripted(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Scripted

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client has gone
            self.close_connection = True
            return
        request = Request(self.command, self.path, dict(self.headers), body)
        self.server.requests.append(request)
        reply = self.server.answer(request)
        time.sleep(reply.delay_s)
        if reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.flush()
        time.sleep(reply.body_delay_s)
        with suppress(OSError):  # an interrupted client has closed the connection
            self.wfile.write(reply.body)

    do_GET = do_POST = do_PUT = do_DELETE = _any  # noqa: N815  # http.server's names

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def scripted(answer: Answer) -> Iterator[Scripted]:
    server = Scripted(answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def in_turn(*replies: Reply) -> Answer:
    """The replies in turn; after the last reply, it is repeated."""
    remaining = list(replies)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def error(status: int, kind: str, message: str = "So it is.", **headers: str) -> Reply:
    body = json.dumps({"code": status, "type": kind, "message": message}).encode()
    return Reply(status, body, headers)


def prediction(text: str) -> dict[str, Any]:
    """A synthetic prediction that depends on the whole text."""
    score = 0.5 + sum(map(ord, text)) % 49 / 100
    label = "negative" if len(text) % 2 else "positive"
    return {"label": label, "score": score, "scores": {label: score, "other": round(1 - score, 2)}}


def model(request: Request) -> Reply:
    """Answer like the real server: a blank, too long or invalid text fails the whole request."""
    if request.method == "GET":
        return error(404, "ResourceNotFoundException")
    content = request.json
    texts = content if isinstance(content, list) else [content["text"]]
    for text in texts:
        if not text.strip():
            return error(400, "BlankTextError", "The text is empty or blank.")
        if len(text) > MAX_TEXT_CHARACTERS:
            return error(413, "TooLargeError", f"The text has {len(text)} characters.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            return error(400, "NotUtf8Error", "The text has half of a surrogate pair.")
    predictions = [prediction(text) for text in texts]
    body = json.dumps(predictions if isinstance(content, list) else predictions[0]).encode()
    return Reply(200, body, {"X-Model-Version": "1.0"})
