"""What goes wrong in operation, with traffic going on. Every request is accounted for: it got the right answer, or an
error that the README names; and in the end everything is as before."""

import http.client
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from handler.classifier import TextClassifier
from tests.e2e.server_process import Project, Server, serving

CLIENTS = 8
RESPONSE_TIMEOUT_S = 4
RECOVERY_S = 60
TEXT = {"content-type": "text/plain"}
TEXTS = ("Thank you for the great flight!", "Two hours late, no word from anyone", "Which gate is flight 12?")

HUNG_WITH_ITS_WORKER = (500, "InternalServerException")
DIED_WITH_ITS_WORKER = (507, "InternalServerException")
NO_PLACE = (503, "ServiceUnavailableException")

Answer = tuple[int, str]
"""A status, and the label or the error's type."""


class Traffic:
    """Clients that ask one thing after the other, until they are stopped."""

    def __init__(self, url: str, labels: dict[str, str]) -> None:
        self._url = url
        self._labels = labels
        self._stop = threading.Event()
        self._sent = 0
        self._lock = threading.Lock()
        self.answers: Counter[Answer] = Counter()
        self.wrong: list[str] = []
        self.slowest_s = 0.0

    @contextmanager
    def going(self) -> Iterator[None]:
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._ask) for _ in range(CLIENTS)]
            try:
                yield
            finally:
                self._stop.set()
            for client in clients:
                client.result()
        assert sum(self.answers.values()) == self._sent, "every request got an answer"
        assert self.wrong == []

    def wait_for_answers(self, count: int) -> None:
        """So many more right answers."""
        deadline = time.monotonic() + RECOVERY_S
        start = self._right()
        while self._right() < start + count:
            assert time.monotonic() < deadline, self.answers
            time.sleep(0.05)

    def _right(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status == 200)

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                text = random.choice(TEXTS)
                started = time.monotonic()
                with self._lock:
                    self._sent += 1
                reply = session.post(self._url, data=text.encode(), headers=TEXT, timeout=120)
                body = reply.json()
                with self._lock:
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                    self.answers[reply.status_code, body["label" if reply.ok else "type"]] += 1
                    if reply.ok and body["label"] != self._labels[text]:
                        self.wrong.append(f"{text}: {body}")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """Two workers, which count as hung after a few seconds."""
    batches = {"marName": "sentiment.mar", "batchSize": 16, "maxBatchDelay": 1, "responseTimeout": RESPONSE_TIMEOUT_S}
    sentiment = batches | {"defaultVersion": True, "minWorkers": 2, "maxWorkers": 2}
    project = Project(tmp_path_factory.mktemp("faults"), mar, models=json.dumps({"sentiment": {"1.0": sentiment}}))
    with serving(project) as server:
        yield server


@pytest.fixture
def traffic(faulty: Server, served: TextClassifier) -> Traffic:
    rows = served.predict(list(TEXTS))
    labels = {text: served.labels[int(row.argmax())] for text, row in zip(TEXTS, rows, strict=True)}
    return Traffic(faulty.project.predictions, labels)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_or_hung_worker_costs_what_it_held_alone(
    faulty: Server, traffic: Traffic, number: signal.Signals, workers: int
) -> None:
    with traffic.going():
        traffic.wait_for_answers(100)
        before = faulty.workers()
        for worker in before[:workers]:
            worker.send_signal(number)
        traffic.wait_for_answers(100)
        _wait_until(lambda: len(set(faulty.workers()) - set(before[:workers])) == 2, "two workers again")
        traffic.wait_for_answers(100)
    # What the workers held, and what came while there was none.
    lost = {HUNG_WITH_ITS_WORKER, DIED_WITH_ITS_WORKER}
    assert {answer for answer in traffic.answers if answer[0] != 200} <= lost | {NO_PLACE}, traffic.answers
    assert sum(traffic.answers[answer] for answer in lost) <= CLIENTS * workers, traffic.answers
    assert traffic.slowest_s < RECOVERY_S
    assert all(not worker.is_running() for worker in before[:workers])


def test_clients_that_send_rubbish_or_hang_up_hurt_nobody(faulty: Server, traffic: Traffic) -> None:
    generator = random.Random(1)
    parts = urlsplit(faulty.project.predictions)
    assert parts.hostname is not None
    address = (parts.hostname, parts.port)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 1000\r\n\r\n".encode()
    with traffic.going():
        slow = [socket.create_connection(address) for _ in range(20)]
        for connection in slow:
            connection.sendall(head[:40])
        for _ in range(200):
            for sent in (generator.randbytes(500), head + b"half a body", head[:50]):
                with socket.create_connection(address) as connection:
                    connection.sendall(sent)
        for _ in range(100):  # gone before the answer comes
            client = http.client.HTTPConnection(*address)
            client.request("POST", parts.path, body=b"late again " * 200, headers=TEXT)
            client.close()
        traffic.wait_for_answers(100)
        for connection in slow:
            connection.close()
    assert {status for status, _ in traffic.answers} == {200}, traffic.answers


def _wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)
