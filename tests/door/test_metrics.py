"""Tests of the door's metrics, as far as Managed Prometheus keeps them."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import requests

from tests.door.conftest import Door
from tests.door.stub import Client, Reply, Request, echo, request
from tests.exposition import DOORS, documented_metrics, kept_door_samples, total

LARGE = b"a" * 100_000
SMALL_PLACES, LARGE_PLACES = 64, 32
"""The number of requests that the door sends to TorchServe at the same time."""


def metrics_of(door: Door) -> str:
    return f"http://{door.variables['PUBLIC_METRICS']}"


def counted(door: Door, act: Callable[[], None]) -> dict[str, float]:
    """The increase of each series while `act` runs, without the series that do not increase."""

    def now() -> dict[str, float]:
        return {
            " ".join([name.removeprefix(DOORS), labels["proxy"], labels.get("code", "")]).strip()
            + (" (large)" if labels["job"] == "sentiment-large-door" else ""): value
            for name, labels, value in kept_door_samples(metrics_of(door))
            if name.endswith("_total")
        }

    before = now()
    act()
    return {name: value - before[name] for name, value in now().items() if value != before[name]}


def ask(door: Door, sent: bytes) -> int:
    with door.connect(sent) as client:
        return client.reply().status


def once(reply: Reply) -> Callable[[Request], Reply]:
    """A function that answers the first request with `reply` and echoes all others."""
    left = [reply]
    return lambda request: left.pop() if left else echo(request)


def test_the_documented_metrics_are_exactly_the_doors(door: Door) -> None:
    """HAProxy's metrics differ between versions. Only few of its 800 series are kept, because each one costs money."""
    labels_by_name: dict[str, set[str]] = {}
    kept = kept_door_samples(metrics_of(door))
    assert len(kept) < 40
    for name, labels, _ in kept:
        labels_by_name.setdefault(name, set()).update(labels.keys() - {"job"})
    assert labels_by_name == {name: labels for name, labels in documented_metrics().items() if name.startswith(DOORS)}


def test_a_request_that_succeeds_on_retry_is_counted_as_such(door: Door) -> None:
    """HAProxy counts a retry twice; the alert `SentimentRetries` takes this into account."""

    def small() -> None:
        door.stub.answer = once(Reply(500))
        assert ask(door, request()) == 200

    def large() -> None:
        door.stub.answer = once(Reply(500))
        assert ask(door, request(LARGE)) == 200

    assert counted(door, small) == {
        "backend_http_responses_total small 2xx": 1,
        "frontend_http_responses_total inference 2xx": 1,
        "backend_retry_warnings_total small": 2,
    }
    assert counted(door, large) == {
        "backend_http_responses_total large 2xx": 1,
        "frontend_http_responses_total inference 2xx": 1,
        "backend_retry_warnings_total large (large)": 2,
    }


def test_a_request_that_fails_twice_is_counted_as_failed(door: Door) -> None:
    def act() -> None:
        door.stub.answer = lambda _: Reply(500)
        assert ask(door, request()) == 500

    assert counted(door, act) == {
        "backend_http_responses_total small 5xx": 1,
        "frontend_http_responses_total inference 5xx": 1,
        "backend_retry_warnings_total small": 2,
    }


def test_requests_refused_by_a_rule_are_counted(door: Door) -> None:
    def act() -> None:
        assert ask(door, request(path="/models")) == 404

    assert counted(door, act) == {
        "frontend_http_responses_total inference 4xx": 1,
        "frontend_intercepted_requests_total inference": 1,
    }


def test_large_requests_over_their_limit_are_counted_as_failed(door: Door) -> None:
    """The alert `SentimentErrors` counts these requests."""
    with ExitStack() as stack:
        for _ in range(LARGE_PLACES):
            stack.enter_context(door.connect(request(LARGE)[:-1]))

        def act() -> None:
            assert ask(door, request(LARGE)) == 503

        increases = counted(door, act)
    assert increases["backend_http_responses_total large 5xx"] == 1


def test_a_full_queue_and_a_hung_server_are_counted_apart(door: Door) -> None:
    """Liveness probes are answered at both addresses while small requests wait in the queue."""
    answered = threading.Event()

    def answer(sent: Request) -> Reply:
        if sent.path != "/ping":
            assert answered.wait(30)
        return echo(sent)

    door.stub.answer = answer
    with ExitStack() as stack:
        stack.callback(answered.set)
        clients = [stack.enter_context(door.connect(request())) for _ in range(SMALL_PLACES + 6)]
        while waiting(door) != 6:
            time.sleep(0.02)
        for address in (f"127.0.0.1:{door.port}", door.variables["PUBLIC_METRICS"]):
            assert requests.get(f"http://{address}/ping", timeout=5).status_code == 200
        assert waiting(door) == 6
        answered.set()
        assert [client.reply().status for client in clients] == [200] * len(clients)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(b"", "GET", "/metrics"), 200),
        (request(b"", "GET", "/ping"), 200),
        (request(b"", "GET", "/metrics?name[]=Requests2XX"), 200),
        (request(b"", "GET", "/models"), 404),
        (request(b"", "POST", "/metrics"), 405),
        (request(b"a", "GET", "/metrics"), 400),
        (
            request(b"a", "GET", "/metrics", "Transfer-Encoding: chunked\r\n").replace(b"Content-Length: 1\r\n", b""),
            400,
        ),
    ],
    ids=lambda value: value if isinstance(value, int) else value.decode().replace("\r\n", " "),
)
def test_the_metrics_address_serves_only_metrics(door: Door, sent: bytes, status: int) -> None:
    """A client of the metrics address cannot send a body to TorchServe."""
    with Client(int(door.variables["PUBLIC_METRICS"].rpartition(":")[2]), sent) as client:
        assert client.reply().status == status
    assert len(door.stub.requests) == (status == 200)


def waiting(door: Door) -> float:
    return total(kept_door_samples(metrics_of(door)), "haproxy_backend_current_queue", proxy="small")
