"""Tests of the load generator: it counts exactly the responses of a real server."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle

import pytest

from benchmarks.client import load, to_request
from tests.e2e.server_process import Server


@pytest.fixture(scope="module")
def requests(server: Server) -> Iterator[bytes]:
    return cycle([to_request(server.project.predictions, f"flight {n}".encode(), "text/plain") for n in range(7)])


@pytest.mark.parametrize("connections", [1, 5])
def test_each_request_is_answered_once(server: Server, requests: Iterator[bytes], connections: int) -> None:
    result = load(server.project.predictions, requests, connections, limit=20)
    assert result.statuses == {200: 20}
    assert len(result.latencies) == 20
    assert 0 < min(result.latencies) <= result.percentile(50) / 1000 <= max(result.latencies) <= result.seconds
    assert result.throughput == pytest.approx(20 / result.seconds)


def test_requests_are_sent_at_the_given_rate(server: Server, requests: Iterator[bytes]) -> None:
    """A request is due 50 times per second, however fast the server responds."""
    result = load(server.project.predictions, requests, 8, seconds=1, rate=50)
    assert 49 <= result.statuses[200] <= 51


def test_errors_are_counted_by_status(server: Server) -> None:
    blank = to_request(server.project.predictions, b" ", "text/plain")
    unknown = to_request(f"{server.project.inference}/predictions/unknown", b"hello", "text/plain")
    result = load(server.project.predictions, cycle([blank, unknown]), 1, limit=4)
    assert result.statuses == {400: 2, 404: 2}


def test_a_refused_connection_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        load("http://127.0.0.1:9/", cycle([b""]), 1, seconds=1)


@contextmanager
def slow_server(answer: bytes, promised_bytes: int) -> Iterator[str]:
    """A server that answers 50 requests per second, one at a time, and closes the connection after each."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with one_at_a_time:
                time.sleep(0.02)
            self.send_response(200)
            self.send_header("Content-Length", str(promised_bytes))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_latency_includes_the_delay_of_a_slow_server() -> None:
    """All requests due within the second are sent, and the time until a connection is free counts as latency."""
    with slow_server(b"ok", promised_bytes=2) as url:
        result = load(url, cycle([to_request(url, b"", "text/plain")]), 2, seconds=1, rate=100)
    assert result.statuses == {200: 100}
    assert max(result.latencies) > 0.9


def test_a_truncated_response_is_an_error() -> None:
    with slow_server(b"ok", promised_bytes=9) as url, pytest.raises(ConnectionError, match="a complete response"):
        load(url, cycle([to_request(url, b"", "text/plain")]), 1, seconds=1)


def test_too_few_requests_are_an_error(server: Server, requests: Iterator[bytes]) -> None:
    with pytest.raises(ValueError, match="All 1 requests are sent"):
        load(server.project.predictions, iter([next(requests)]), 1, seconds=1)
