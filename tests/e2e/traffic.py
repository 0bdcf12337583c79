"""Clients that send requests continuously and record the outcome of each one: a correct prediction, or an error."""

import itertools
import json
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import cast

import requests
from urllib3.exceptions import NewConnectionError

from benchmarks.client import load, to_request
from handler.classifier import TextClassifier

TEXTS = ("Thank you for the great flight!", "Two hours late, no word from anyone", "Which gate is flight 12?")
CLIENTS = 8
PATIENCE_S = 30
TEXT = {"content-type": "text/plain"}

NO_ANSWER = 0
"""The status of a request without a response: no or a lost connection, no JSON, or a timeout of `PATIENCE_S`."""
CONNECTION_REFUSED = (NO_ANSWER, "NewConnectionError")
"""The outcome of a request that was never sent, because no connection could be made."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a request."""

    status: int
    result: str
    """The predicted label, or the type of the error."""

    version: str | None
    """The version of the model that answered."""

    seconds: float
    """The time from when the request was due to its response."""


def labels_of(texts: tuple[str, ...], classifier: TextClassifier) -> dict[str, str]:
    """The label that the model predicts for each text."""
    rows = classifier.predict(list(texts))
    return {text: classifier.labels[int(row.argmax())] for text, row in zip(texts, rows, strict=True)}


class Traffic:
    """Clients that send one request after the other, optionally at a rate.

    A client waits as long as `Retry-After` says, and ends if its connection is refused.
    """

    def __init__(self, url: str, labels: Mapping[str, str], clients: int = CLIENTS, rate: float | None = None) -> None:
        """Prepare the clients.

        Args:
            url: the URL for predictions.
            labels: the texts to send, and the correct label of each.
            clients: the number of clients.
            rate: the requests per second of all clients together; None to send without pauses. If the clients are too
                few for the rate, requests are sent late, and the delay counts as latency.
        """
        self._url = url
        self._labels = labels
        self._texts = tuple(labels)
        self._clients = clients
        self._rate = rate
        self._stop = threading.Event()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self.sent = 0
        self.outcomes: list[Outcome] = []
        self.wrong: list[str] = []

    @contextmanager
    def going(self) -> Iterator[None]:
        """Send requests while the block runs, and check that none is lost or wrong."""
        self._started = time.monotonic()
        with ThreadPoolExecutor(self._clients) as pool:
            clients = [pool.submit(self._ask) for _ in range(self._clients)]
            try:
                yield
            finally:
                self._stop.set()
            for client in clients:
                client.result()
        self.seconds = time.monotonic() - self._started
        assert len(self.outcomes) == self.sent, "every request is accounted for"
        assert self.wrong == []

    def wait_for_answers(self, count: int) -> None:
        """Wait for `count` further correct predictions."""
        start = len(self.right())
        wait_until(lambda: len(self.right()) >= start + count, "predictions")

    def right(self) -> list[Outcome]:
        """The outcomes with a prediction."""
        return [outcome for outcome in list(self.outcomes) if outcome.status == 200]

    def refusals(self) -> Counter[tuple[int, str]]:
        """The number of each error, by status and type."""
        return Counter((outcome.status, outcome.result) for outcome in list(self.outcomes) if outcome.status != 200)

    def slowest_s(self) -> float:
        """The longest time to a response."""
        return max(outcome.seconds for outcome in self.outcomes)

    def _ask(self) -> None:
        with requests.Session() as session:
            while not self._stop.is_set():
                number = next(self._numbers)
                due = time.monotonic()
                if self._rate:
                    due = self._started + number / self._rate
                    if self._stop.wait(max(due - time.monotonic(), 0)):
                        return
                text = self._texts[number % len(self._texts)]
                with self._lock:
                    self.sent += 1
                outcome, pause_s = self._outcome(session, text, due)
                with self._lock:
                    self.outcomes.append(outcome)
                    if outcome.status == 200 and outcome.result != self._labels[text]:
                        self.wrong.append(f"{text[:80]}: {outcome}")
                if (outcome.status, outcome.result) == CONNECTION_REFUSED:
                    return
                self._stop.wait(pause_s)

    def _outcome(self, session: requests.Session, text: str, due: float) -> tuple[Outcome, float]:
        """The outcome of a request, and the seconds to wait before the next one."""
        try:
            reply = session.post(self._url, data=text.encode(), headers=TEXT, timeout=PATIENCE_S)
            result = reply.json()["label" if reply.ok else "type"]
        except requests.RequestException as error:
            reason = getattr(error.args[0], "reason", error) if error.args else error
            result = type(reason if isinstance(reason, NewConnectionError) else error).__name__
            return Outcome(NO_ANSWER, result, None, time.monotonic() - due), 0
        outcome = Outcome(reply.status_code, result, reply.headers.get("X-Model-Version"), time.monotonic() - due)
        return outcome, float(reply.headers.get("Retry-After", 0))


class ConstantLoad:
    """Clients that send requests at a constant rate, whatever the responses are."""

    CONNECTIONS = 600

    def __init__(self, url: str, labels: Mapping[str, str]) -> None:
        """Prepare the clients.

        Args:
            url: the URL for predictions.
            labels: the texts to send, and the correct label of each.
        """
        self._url = url
        self._texts = {text.encode(): label for text, label in labels.items()}
        self._started: dict[bytes, float] = {}
        self.answers_s: list[float] = []
        """The latency of each prediction."""
        self.refusals_s: list[float] = []
        self.errors: Counter[tuple[int, str]] = Counter()
        self.wrong: list[bytes] = []

    def send(self, rate: float, seconds: float) -> None:
        """Send `rate` requests per second for some seconds, and wait for the last responses."""
        result = load(self._url, self._requests(), self.CONNECTIONS, seconds, rate, check=self._check)
        self.sent, self.seconds = result.statuses.total(), result.seconds

    def _requests(self) -> Iterator[bytes]:
        for number, text in enumerate(itertools.cycle(self._texts)):
            head, _, body = to_request(self._url, text, "text/plain").partition(b"\r\n\r\n")
            request = b"%s\r\nX-Number: %d\r\n\r\n%s" % (head, number, body)
            self._started[request] = time.monotonic()
            yield request

    def _check(self, request: bytes, body: bytes) -> None:
        seconds = time.monotonic() - self._started.pop(request)
        reply = json.loads(body)
        if "label" not in reply:
            self.errors[reply["code"], reply["type"]] += 1
            self.refusals_s.append(seconds)
            return
        self.answers_s.append(seconds)
        if reply["label"] != self._texts[request.partition(b"\r\n\r\n")[2]]:
            self.wrong.append(body)


def sent_in_part(address: tuple[str, int], part: bytes, count: int) -> Counter[int]:
    """Open `count` connections at once, send a part of a request on each, and wait for the responses.

    Returns:
        The number of each status; `NO_ANSWER` for a connection that ends without a response.
    """
    statuses: Counter[int] = Counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            client = socket.create_connection(address, timeout=PATIENCE_S)
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(part))
        while selector.get_map():
            ready = selector.select(PATIENCE_S)
            assert ready, f"{len(selector.get_map())} connections have no response"
            for key, events in ready:
                client, rest = cast(socket.socket, key.fileobj), key.data
                with suppress(BlockingIOError):
                    if events & selectors.EVENT_READ:
                        statuses[_status(client)] += 1
                        selector.unregister(client)
                        client.close()
                    elif rest:
                        with suppress(ConnectionError):  # the response gives the reason
                            rest = rest[client.send(rest[:65_536]) :]
                        selector.modify(client, selectors.EVENT_READ | (selectors.EVENT_WRITE if rest else 0), rest)
    return statuses


def _status(client: socket.socket) -> int:
    """The status of the response that has arrived on a connection."""
    try:
        head = client.recv(65_536).split()
    except ConnectionError:
        return NO_ANSWER
    return int(head[1]) if head else NO_ANSWER


def wait_until(holds: Callable[[], object], expected: str, patience_s: float = 60) -> None:
    """Wait until a condition holds; fail after `patience_s` seconds with a message that names what was expected."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"never: {expected}"
        time.sleep(0.05)
