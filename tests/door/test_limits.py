"""Tests of the limits for time, connections and memory: clients over a limit are refused, others are answered."""

import contextlib
import json
import re
import selectors
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.door.conftest import Door
from tests.door.stub import LARGEST, TIMEOUT_S, Client, Reply, Request, request
from tests.door.test_http import error

SMALL = 16_384
"""The largest body of a small request, in bytes."""
PLACES, QUEUE, LARGE_PLACES = 64, 1_000, 32
CONNECTIONS_OF_A_CLIENT, KEPT_CONNECTIONS = 1_500, 1_400
OVERLOADED = (503, "OverloadedError", "1")
MEGABYTE = 2**20


def head(size: int, path: str = "/predictions/sentiment") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: door\r\nContent-Length: {size}\r\n\r\n".encode()


PATH = b"/predictions/sentiment"
CHUNKED = head(4).replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")


def refusal(reply: Reply) -> tuple[int, str, str | None]:
    return reply.status, error(reply), reply.headers.get("retry-after")


@contextlib.contextmanager
def connected(door: Door, count: int, sent: bytes, receive_bytes: int | None = None) -> Iterator[list[Client]]:
    """`count` clients, each of which has sent the same bytes."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(door.connect(sent, receive_bytes)) for _ in range(count)]


def answered(door: Door, count: int = 20) -> bool:
    """Whether the door answers small requests."""
    with door.connect() as client:
        for number in range(count):
            client.send(request(str(number).encode()))
            if client.reply().body != str(number).encode():
                return False
    return True


def resident(process: psutil.Process) -> float:
    """The resident memory of a process in MB."""
    return float(process.memory_info().rss) / MEGABYTE


def test_unfinished_bodies_are_refused_and_other_requests_answered(door: Door) -> None:
    """There are 1,000 small bodies, as many large ones as permitted, chunks, and requests with unfinished headers."""
    idle = resident(door.front), resident(door.large)
    half = b"x" * 8_000
    with (
        connected(door, 1_000, head(SMALL) + half) as small,
        connected(door, LARGE_PLACES - 1, head(2_400_000) + b"x" * 2_300_000) as large,
        connected(door, 1, CHUNKED + b"2\r\nhi\r\n") as chunks,
        connected(door, 1, head(4, "/v2/models/sentiment/infer") + b"hi") as protocol,
        connected(door, 100, head(4)[:-4] + b"\r\nA: " + half) as headers,
    ):
        assert answered(door)
        used = resident(door.front) - idle[0], resident(door.large) - idle[1]
        assert used[0] < 1_200 * 32_768 / MEGABYTE + 10, used
        assert used[1] < LARGE_PLACES * 2_520_000 / MEGABYTE + 10, used
        # Bytes that arrive slowly do not extend the timeout.
        with selectors.DefaultSelector() as selector:
            for client in (small[0], large[0]):
                selector.register(client.socket, selectors.EVENT_READ)
            while not selector.select(0.2):
                small[0].send(b"x")
                large[0].send(b"x")
        for client in (*small, *large, *chunks):
            assert refusal(client.reply()) == (408, "RequestTimeoutException", None)
            assert client.is_closed()
        assert error(protocol[0].reply(), "/v2") == ""
        assert {client.reply().status for client in headers} == {408}
    assert len(door.stub.requests) == 20
    assert answered(door)


def test_large_bodies_do_not_delay_small_ones(door: Door) -> None:
    """A large body over the limit is refused before it arrives. The log has no line for it."""
    logged = len(door.output)
    with connected(door, LARGE_PLACES + 3, head(LARGEST)) as clients:
        refused = first_answered(clients, 3)
        assert {refusal(client.reply()) for client in refused} == {OVERLOADED}
        for sent in (head(SMALL + 1), CHUNKED):
            with door.connect(sent) as excess:
                assert refusal(excess.reply()) == OVERLOADED
        assert answered(door)
        [last] = [client for client in clients if client not in refused][-1:]
        last.send(b"x" * LARGEST)
        assert last.reply().status == 200
    assert door.stub.requests[-1].body == b"x" * LARGEST
    door.wait_until_idle()
    assert refused_by_a_rule(door.output[logged:]) == []


def refused_by_a_rule(log: str) -> list[str]:
    """The lines of requests that the door itself answered with 503 before they were in a queue."""
    return re.findall(r".* 503 .* L\S{3} .*", log)


def first_answered(clients: list[Client], count: int) -> list[Client]:
    """The `count` clients whose responses arrive first."""
    answered: list[Client] = []
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while len(answered) < count:
            ready = selector.select(TIMEOUT_S)
            assert ready, f"{len(answered)} of {count} were answered"
            for key, _ in ready:
                selector.unregister(key.fileobj)
                answered.append(key.data)
    return answered


def test_the_queue_is_bounded_and_drops_disconnected_clients(door: Door) -> None:
    """The clients fill all slots and the queue, and 50 more are refused; then 200 of the queued clients disconnect.

    The log has no line for the refused requests.
    """
    logged = len(door.output)
    answer = threading.Event()

    def wait(seen: Request) -> Reply:
        answer.wait()
        return Reply(200, {}, seen.body)

    door.stub.answer = wait
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(door.connect(request(str(number).encode()))) for number in range(PLACES + QUEUE + 50)
        ]
        stack.callback(answer.set)
        refused = first_answered(clients, 50)
        assert not set(refused) & set(clients[:-150]), "the last clients are refused, not those in the queue"
        assert {refusal(client.reply()) for client in refused} == {OVERLOADED}
        door.stub.wait_for(PLACES)
        served = [clients[int(seen.body)] for seen in door.stub.requests]
        assert len(served) == PLACES
        waiting = [client for client in clients if client not in refused and client not in served]
        for client in waiting[:200]:
            client.close()
        assert {refusal(client.reply()) for client in waiting[200:]} == {OVERLOADED}
        answer.set()
        assert {client.reply().status for client in served} == {200}
    door.wait_until_idle()
    assert " small 503 " in door.output[logged:], "those that have waited too long"
    assert refused_by_a_rule(door.output[logged:]) == []
    assert answered(door)
    assert len(door.stub.requests) == PLACES + 20
    assert door.stub.most_at_once == PLACES


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/models/sentiment/versions/1.0/ready"])
def test_requests_for_the_servers_state_do_not_delay_the_readiness_probe(door: Door, path: str) -> None:
    answer = threading.Event()

    def wait(seen: Request) -> Reply:
        assert seen.path in {"/ready", "/ping"} or answer.wait(TIMEOUT_S)
        return Reply(200)

    door.stub.answer = wait
    with contextlib.ExitStack() as stack:
        stack.callback(answer.set)
        clients = stack.enter_context(connected(door, 4 + 64 + 10, request(b"", "GET", path)))
        refused = first_answered(clients, 10)
        assert {(reply.status, reply.headers["retry-after"]) for reply in map(Client.reply, refused)} == {(503, "1")}
        for url in (f"http://127.0.0.1:{door.port}/ready", f"http://127.0.0.1:{door.metrics_port}/ping"):
            assert requests.get(url, timeout=1).status_code == 200
        waiting = [client for client in clients if client not in refused]
        assert {client.reply().status for client in first_answered(waiting, 64)} == {503}, "they wait for a second"
        assert door.stub.most_at_once <= 5


def is_turned_away(door: Door) -> bool:
    """Whether a new connection is closed at once."""
    try:
        with door.connect() as client:
            return client.is_closed()
    except ConnectionResetError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_no_client_takes_all_connections(door: Door) -> None:
    with connected(door, CONNECTIONS_OF_A_CLIENT, b"") as clients:
        assert is_turned_away(door)
        with door.connect(request(), source="127.0.0.2") as other:
            assert other.reply().status == 200
        clients[0].send(request())
        assert clients[0].reply().status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8")
def test_persistent_connections_end_under_many_connections(door: Door) -> None:
    with connected(door, KEPT_CONNECTIONS, b"") as clients:
        clients[-1].send(request())
        assert clients[-1].reply().headers.get("connection") is None
        with door.connect(request()) as excess:
            assert excess.reply().headers["connection"] == "close"
            assert excess.is_closed()


@pytest.mark.parametrize(
    ("address", "limit", "path"),
    [("management_port", 80, "/models"), ("metrics_port", 80, "/metrics"), ("large_address", 104, "/openapi.yaml")],
)
def test_the_number_of_connections_per_address_is_limited(door: Door, address: str, limit: int, path: str) -> None:
    """Excess connections to an address wait until others are closed. Other addresses are not affected."""
    target = getattr(door, address)
    sent = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> list[socket.socket]:
            kind, where = (
                (socket.AF_UNIX, str(target)) if isinstance(target, Path) else (socket.AF_INET, ("127.0.0.1", target))
            )
            connections = [stack.enter_context(socket.socket(kind)) for _ in range(count)]
            for connection in connections:
                connection.settimeout(TIMEOUT_S)
                connection.connect(where)
            connections[-1].sendall(sent)
            return connections

        # The front process may have some connections to the process for large requests, too.
        fewer = connect(limit - 10)
        assert fewer[-1].recv(12) == b"HTTP/1.1 200"
        more = connect(20)
        with selectors.DefaultSelector() as selector:
            selector.register(more[-1], selectors.EVENT_READ)
            assert not selector.select(0.3)
        assert answered(door)
        for connection in fewer[:30]:
            connection.close()
        assert more[-1].recv(12) == b"HTTP/1.1 200"


def send_all(client: Client, body: bytes) -> None:
    """Send as much of a body as the door accepts."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        client.send(body)


@pytest.mark.parametrize("path", ["/predictions/sentiment", "/v2/models/sentiment/infer"])
def test_a_body_over_the_limit_is_413_for_a_client_that_still_sends(door: Door, path: str) -> None:
    """The length is in a header, or the body comes in chunks."""
    chunk = b"%x\r\n" % LARGEST + b"x" * LARGEST + b"\r\n"
    for start, body in ((head(20_000_000, path), b"x" * 20_000_000), (CHUNKED.replace(PATH, path.encode()), chunk * 8)):
        with door.connect(start) as client:
            send_all(client, body)
            reply = client.reply()
            assert (reply.status, error(reply, path)) in {(413, "TooLargeError"), (413, "")}
            assert b"2,500,000 bytes" in reply.body
    assert not door.stub.requests
    assert answered(door)


@pytest.mark.parametrize("size", [LARGEST + 1, 20_000_000])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
def test_requests_sees_the_413(door: Door, size: int, chunked: bool) -> None:
    body = b"x" * size
    data = (body[start : start + 65_536] for start in range(0, size, 65_536)) if chunked else body
    response = requests.post(f"http://127.0.0.1:{door.port}/predictions/sentiment", data=data, timeout=TIMEOUT_S)
    assert (response.status_code, response.json()["type"]) == (413, "TooLargeError")


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("headers", [[], ["Transfer-Encoding: chunked", "Expect: 100-continue"]])
def test_curl_sees_the_413(door: Door, tmp_path: Path, headers: list[str]) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"x" * 10_000_000)
    options = [option for header in headers for option in ("-H", header)]
    url = f"http://127.0.0.1:{door.port}/predictions/sentiment"
    command = ["curl", "--silent", "--data-binary", f"@{file}", *options, url]
    result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert json.loads(result.stdout)["type"] == "TooLargeError", result.stderr


def test_the_largest_body_is_accepted_with_the_largest_headers(door: Door) -> None:
    headers = f"A: {'x' * 7_800}\r\n"
    for size in (SMALL, SMALL + 1, LARGEST):
        with door.connect(request(b"x" * size, headers=headers)) as client:
            assert client.reply().body == b"x" * size


def test_memory_is_returned_to_the_system(door: Door) -> None:
    """The memory for large bodies is freed, although small requests follow."""
    before = resident(door.front), resident(door.large)
    door.stub.answer = lambda _: Reply(200, {}, b"late")
    for _ in range(2):
        with connected(door, LARGE_PLACES, request(b"x" * LARGEST)) as clients:
            assert {client.reply().status for client in clients} == {200}
    door.stub.reset()
    assert answered(door)
    assert resident(door.large) - before[1] < 30
    assert resident(door.front) - before[0] < 30


@pytest.mark.parametrize("size", [1_000, 200_000])
def test_clients_that_do_not_read_occupy_no_slot(door: Door, size: int) -> None:
    """More clients than there are slots get a response and do not read it."""
    door.stub.answer = lambda _: Reply(200, {}, b"x" * size)
    with connected(door, 3 * PLACES, request(), receive_bytes=4_096) as clients:
        door.stub.wait_for(len(clients))
        with door.connect(request()) as client:
            assert client.reply().status == 200
        assert {client.reply().body for client in clients} == {b"x" * size}


def test_pipelined_requests_with_unread_responses_take_little_memory(door: Door) -> None:
    """Each of eight connections sends 2.5 MB of requests."""
    before = resident(door.front), resident(door.large)
    paths = ("/api-description", "/ping", "/", "/docs/swagger-ui-bundle.js")
    with contextlib.ExitStack() as stack:
        for sent in [request(b"", "GET", path) for path in paths * 2]:
            client = stack.enter_context(door.connect(receive_bytes=4_096))
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.socket.send(sent * (LARGEST // len(sent)))
        assert answered(door)
        assert resident(door.front) - before[0] < 10
        assert resident(door.large) - before[1] < 10
