"""The load generator: it counts what a real server answers, no more and no less."""

from collections.abc import Iterator
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


def test_a_rate_is_kept(server: Server, requests: Iterator[bytes]) -> None:
    """Requests are due 50 times a second, however soon the server answers."""
    result = load(server.project.predictions, requests, 8, seconds=1, rate=50)
    assert 49 <= result.statuses[200] <= 51


def test_errors_are_counted_by_status(server: Server) -> None:
    blank = to_request(server.project.predictions, b" ", "text/plain")
    nobody = to_request(f"{server.project.inference}/predictions/nobody", b"hello", "text/plain")
    result = load(server.project.predictions, cycle([blank, nobody]), 1, limit=4)
    assert result.statuses == {400: 2, 404: 2}


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConnectionError):
        load("http://127.0.0.1:9/", cycle([b""]), 1, seconds=1)
