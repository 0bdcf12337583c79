"""What clients can take of the door: time, places and memory. Who takes too much is refused; others are answered."""

import contextlib
import selectors
import threading
from collections.abc import Iterator

import psutil

from tests.door.conftest import Door
from tests.door.stub import TIMEOUT_S, Client, Reply, Request, request
from tests.door.test_http import error

LARGEST = 2_500_000
SMALL = 16_384
"""The largest body of a small request, in bytes."""
PLACES, QUEUE, LARGE_PLACES = 64, 1_000, 32
OVERLOADED = (503, "OverloadedError", "1")
MEGABYTE = 2**20


def head(size: int, path: str = "/predictions/sentiment") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: door\r\nContent-Length: {size}\r\n\r\n".encode()


CHUNKED = head(4).replace(b"Content-Length: 4", b"Transfer-Encoding: chunked")


def refusal(reply: Reply) -> tuple[int, str, str | None]:
    return reply.status, error(reply), reply.headers.get("retry-after")


@contextlib.contextmanager
def connected(door: Door, count: int, sent: bytes, receive_bytes: int | None = None) -> Iterator[list[Client]]:
    """As many clients, each of which has sent this."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(door.connect(sent, receive_bytes)) for _ in range(count)]


def answered(door: Door, count: int = 20) -> bool:
    """Whether small requests are answered meanwhile."""
    with door.connect() as client:
        for number in range(count):
            client.send(request(str(number).encode()))
            if client.reply().body != str(number).encode():
                return False
    return True


def resident(process: psutil.Process) -> float:
    """In MB."""
    return float(process.memory_info().rss) / MEGABYTE


def test_bodies_that_never_arrive_are_refused_and_others_are_answered(door: Door) -> None:
    """1,000 small ones, as many as may be large ones, chunks, and some without all of their headers."""
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
        for client in (*small, *large, *chunks):
            assert refusal(client.reply()) == (408, "RequestTimeoutException", None)
            assert client.is_closed()
        assert error(protocol[0].reply(), "/v2") == ""
        assert {client.reply().status for client in headers} == {408}
    assert len(door.stub.requests) == 20
    assert answered(door)


def test_large_bodies_take_no_place_of_small_ones(door: Door) -> None:
    """One too many is refused before its body arrives."""
    with connected(door, LARGE_PLACES, head(LARGEST)) as waiting:
        for sent in (
            head(LARGEST),
            head(SMALL + 1),
            CHUNKED,
        ):
            with door.connect(sent) as one_more:
                assert refusal(one_more.reply()) == OVERLOADED
        assert answered(door)
        waiting[0].send(b"x" * LARGEST)
        assert waiting[0].reply().status == 200
    assert door.stub.requests[-1].body == b"x" * LARGEST


def first_answered(clients: list[Client], count: int) -> list[Client]:
    """So many of the clients, those whose replies come first."""
    answered: list[Client] = []
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        while len(answered) < count:
            for key, _ in selector.select(TIMEOUT_S):
                selector.unregister(key.fileobj)
                answered.append(key.data)
    return answered


def test_the_queue_is_bounded_in_length_and_time_and_forgets_who_leaves(door: Door) -> None:
    """As many clients as there are places, as many as may wait, and 50 more; of those that wait, 200 leave."""
    answer = threading.Event()

    def wait(seen: Request) -> Reply:
        answer.wait()
        return Reply(200, {}, seen.body)

    door.stub.answer = wait
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(door.connect(request(str(number).encode()))) for number in range(PLACES + QUEUE + 50)
        ]
        refused = first_answered(clients, 50)
        assert {refusal(client.reply()) for client in refused} == {OVERLOADED}
        served = [clients[int(seen.body)] for seen in door.stub.requests]
        assert len(served) == PLACES
        waiting = [client for client in clients if client not in refused and client not in served]
        for client in waiting[:200]:
            client.close()
        assert {refusal(client.reply()) for client in waiting[200:]} == {OVERLOADED}
        answer.set()
        assert {client.reply().status for client in served} == {200}
    assert answered(door)
    assert len(door.stub.requests) == PLACES + 20
    assert door.stub.most_at_once == PLACES
