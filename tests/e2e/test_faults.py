"""Fault tests: failures in operation while clients send requests.

Every request is accounted for: it gets the correct prediction or a documented error. After the fault, the server is as
before. `make fault-test` runs the long forms.
"""

import csv
import http.client
import itertools
import json
import random
import re
import signal
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock, Thread
from urllib.parse import urlsplit

import psutil
import pytest
import requests

from benchmarks.client import load, to_request
from handler.classifier import TextClassifier
from tests.e2e.report import LONG, Report, sized
from tests.e2e.server_process import Project, Server, sentiment, serving
from tests.e2e.traffic import (
    CLIENTS,
    CONNECTION_REFUSED,
    TEXT,
    TEXTS,
    ConstantLoad,
    Traffic,
    labels_of,
    sent_in_part,
    wait_until,
)

RESPONSE_TIMEOUT_S = 4

FAILED_TWICE = (500, "InternalServerException")
"""The error of a request if its worker is killed and the worker of its retry is killed too."""

TOO_LATE = (504, "GatewayTimeoutException")
OVERLOADED = (503, "OverloadedError")
NO_PLACE = (503, "ServiceUnavailableException")
"""TorchServe's own error if its queue is full."""

LONG_TEXTS = tuple(f"{text} {'the flight to Denver was what it was, ' * 40}" for text in TEXTS)
"""Texts of a few hundred tokens each."""

GROWTH_MB = 20
"""The limit for a worker's growth in the long soak test: 200 bytes per request, less than any leak of a request's data.
In the short form, the test detects leaks of file descriptors only."""


def project(folder: Path, mar: Path, **changes: str) -> Project:
    """A project with two workers; TorchServe considers a worker hung after a few seconds."""
    batches = {"marName": "sentiment.mar", "batchSize": 16, "maxBatchDelay": 1, "responseTimeout": RESPONSE_TIMEOUT_S}
    sentiment = batches | {"defaultVersion": True, "minWorkers": 2, "maxWorkers": 2}
    return Project(folder, mar, models=json.dumps({"sentiment": {"1.0": sentiment}}), **changes)


AS_FIRST_PROCESS = """
import ctypes, runpy, sys

PR_SET_CHILD_SUBREAPER = 36
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
runpy.run_module("server", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server that becomes the parent of orphaned processes, as process 1 of a container does."""
    faults = project(tmp_path_factory.mktemp("faults"), mar)
    with serving(faults, command=[sys.executable, "-c", AS_FIRST_PROCESS, "--config", str(faults.config)]) as server:
        yield server


@pytest.fixture(scope="module")
def labels(served: TextClassifier) -> dict[str, str]:
    return labels_of(TEXTS, served)


def ready(server: Server) -> set[int]:
    """The process ids of the workers that have loaded the model.

    A worker must not hang before it has loaded the model: TorchServe would kill it after two minutes only
    (`startupTimeout`).
    """
    [version] = requests.get(f"{server.project.management}/models/sentiment", timeout=10).json()
    return {worker["pid"] for worker in version["workers"] if worker["status"] == "READY"}


def retries(server: Server) -> int:
    """The number of requests that the door has retried."""
    return int(sum(server.door("haproxy_backend_retry_warnings_total")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_or_hung_worker_loses_no_request(
    faulty: Server, labels: dict[str, str], report: Report, number: signal.Signals, workers: int
) -> None:
    killed = number is signal.SIGKILL
    times = sized(1, 50 if killed else 2)
    traffic = Traffic(faulty.project.predictions, labels)
    ended = set()
    retried = retries(faulty)
    with traffic.going():
        for _ in range(times):
            traffic.wait_for_answers(50)
            for worker in faulty.workers()[:workers]:
                worker.send_signal(number)
                ended.add(worker)
            traffic.wait_for_answers(50)
            wait_until(lambda: len(ready(faulty) - {worker.pid for worker in ended}) == 2, "two workers again")
        traffic.wait_for_answers(50)
    wait_until(lambda: not any(worker.is_running() for worker in ended), "the end of the killed workers")
    for worker in ended if killed else ():
        assert f" worker {worker.pid} was ended by signal 9 (SIGKILL)" in faulty.log
    refused = traffic.refusals()
    # A retry fails if its worker is killed or hung too, or if no new worker answers in time. In the worst case, one
    # worker has the requests of all clients, and the other worker gets all retries.
    assert set(refused) <= ({FAILED_TWICE, TOO_LATE} if workers == 2 else set()), refused
    assert refused.total() <= times * CLIENTS, refused
    retried = retries(faulty) - retried
    assert retried, "no worker had a request"
    often = f", {times} times" if times > 1 else ""
    report.traffic(
        f"{workers} of 2 workers {'killed' if killed else 'hung'} ({number.name}){often}", traffic, f"{retried} retries"
    )


def test_sigterm_answers_all_requests_that_have_arrived(
    tmp_path: Path, mar: Path, labels: dict[str, str], report: Report
) -> None:
    """Clients that send requests all the time do not delay the stop."""
    with serving(project(tmp_path, mar)) as server:
        traffic = Traffic(server.project.predictions, labels)
        with traffic.going():
            traffic.wait_for_answers(100)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
        assert "Some requests were not answered." not in server.log
    assert set(traffic.refusals()) <= {CONNECTION_REFUSED}
    report.traffic("SIGTERM to the server", traffic)


def test_scoring_a_file_continues_after_the_server_stops(tmp_path: Path, mar: Path, labels: dict[str, str]) -> None:
    """The command line sends one list of texts after another; the same command continues after the stop.

    Ctrl-C stops the server without SIGTERM's grace period, in which the whole file would be scored.
    """
    texts = list(TEXTS) * 800
    source, scored = tmp_path / "texts.csv", tmp_path / "texts.scored.csv"
    source.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    served = project(tmp_path, mar)
    journal = tmp_path / "texts.scored.csv.journal"
    with serving(served) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(sentiment, server, "score", str(source))
        wait_until(lambda: journal.exists() and journal.stat().st_size > 5_000, "the first results")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert "Some requests were not answered." not in server.log
        ended = run.result()
    assert ended.returncode == 3, ended.stderr
    assert "are done and stored in" in ended.stderr
    assert not scored.exists()
    with serving(served) as server:
        continued = sentiment(server, "score", str(source))
    assert continued.returncode == 0, continued.stderr
    assert "Continuing after" in continued.stderr
    with scored.open(newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [labels[text] for text in texts]


def test_malformed_requests_and_lost_connections_do_not_affect_other_clients(
    faulty: Server, labels: dict[str, str], report: Report
) -> None:
    generator = random.Random(1)
    rounds = sized(200, 2_000)
    address = address_of(faulty)
    head = head_of(faulty, 1_000)
    traffic = Traffic(faulty.project.predictions, labels)
    with traffic.going():
        slow = [socket.create_connection(address) for _ in range(20)]
        for connection in slow:
            connection.sendall(head[:40])
        for _ in range(rounds):
            for sent in (generator.randbytes(500), head + b"half a body", head[:50]):
                with socket.create_connection(address) as connection:
                    connection.sendall(sent)
        for _ in range(rounds):  # disconnect before the response; pause, as TorchServe may compute the prediction
            time.sleep(0.002)
            client = http.client.HTTPConnection(*address)
            client.request("POST", "/predictions/sentiment", body=b"late again " * 20, headers=TEXT)
            client.close()
        traffic.wait_for_answers(100)
        for connection in slow:
            connection.close()
    # Requests of disconnected clients can fill TorchServe's queue.
    assert set(traffic.refusals()) <= {NO_PLACE}
    report.traffic(f"{3 * rounds:,} broken requests, 20 slow clients, {rounds:,} that hang up", traffic)


def address_of(server: Server) -> tuple[str, int]:
    parts = urlsplit(server.project.inference)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def head_of(server: Server, length: int, content_type: str = "text/plain") -> bytes:
    """The head of a request for a prediction with a body of `length` bytes."""
    host, port = address_of(server)
    fields = f"Host: {host}:{port}\r\nContent-Type: {content_type}\r\nContent-Length: {length}"
    return f"POST /predictions/sentiment HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def test_requests_of_disconnected_clients_are_not_computed(faulty: Server, report: Report) -> None:
    """Both workers are suspended, so the door has sent as many requests as it may and queues the rest."""
    clients = sized(200, 1_000)
    body = b"late again"
    workers = faulty.workers()

    def queued() -> int:
        return int(sum(faulty.door("haproxy_backend_current_queue")))

    def reached() -> int:
        """The number of requests that TorchServe has received."""
        metrics = requests.get(f"{faulty.project.metrics}/metrics", timeout=10).text
        values = re.findall(r'^ts_inference_requests_total{.*model_name="sentiment".*} (\S+)$', metrics, re.MULTILINE)
        return int(sum(map(float, values)))

    before = -1
    while before != (before := reached()):  # TorchServe may still compute requests of other tests
        time.sleep(0.5)
    with ExitStack() as stack:
        for worker in workers:
            worker.suspend()
            stack.callback(resume, worker)
        connections = []
        for _ in range(clients):
            connections.append(stack.enter_context(socket.create_connection(address_of(faulty))))
            connections[-1].sendall(head_of(faulty, len(body)) + body)
        wait_until(queued, "a queue in the door")
        with_torchserve = reached() - before
        # TorchServe has the first requests. If one of their clients disconnected, the door would send a queued request.
        for connection in connections[with_torchserve:]:
            connection.close()
        wait_until(lambda: not queued(), "an empty queue")
        computed = reached() - before
    assert with_torchserve <= computed < clients / 2
    report.add(
        f"{clients:,} clients that hang up while no worker answers",
        clients,
        0,
        Counter(),
        f"{computed} of the requests reached TorchServe, which had {with_torchserve} before",
    )


def resume(worker: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):  # TorchServe has killed the worker as hung
        worker.resume()


def test_half_sent_bodies_do_not_affect_other_clients(faulty: Server, labels: dict[str, str], report: Report) -> None:
    """Each client announces 2.4 MB, sends half of it, and waits."""
    count = sized(100, 1_000)
    traffic = Traffic(faulty.project.predictions, labels)
    head = head_of(faulty, 2_400_000)
    statuses: Counter[int] = Counter()
    highest = before = memory(faulty)
    with traffic.going():
        sending = Thread(
            target=lambda: statuses.update(sent_in_part(address_of(faulty), head + bytes(1_200_000), count))
        )
        sending.start()
        while sending.is_alive():
            highest = {name: max(size, highest[name]) for name, size in memory(faulty).items()}
            sending.join(0.2)
        traffic.wait_for_answers(100)
    after = memory(faulty)
    assert traffic.refusals() == {}
    assert statuses.total() == count
    assert set(statuses) <= {408, 429, 503}, statuses
    responses = " and ".join(f"{number:,} × {status}" for status, number in sorted(statuses.items()))
    megabytes = "; ".join(f"{name} {before[name]:.0f}, {highest[name]:.0f}, {after[name]:.0f} MB" for name in before)
    report.traffic(
        f"{count:,} half-sent bodies of 2.4 MB",
        traffic,
        f"their responses: {responses}; memory before, during and after: {megabytes}",
    )


def memory(server: Server) -> dict[str, float]:
    """Resident memory of Java and of the door, in MB."""
    processes = [(process.name(), process.memory_info().rss / 1e6) for process in server.processes()]
    return {title: sum(size for name, size in processes if name == program) for title, program in PROGRAMS.items()}


PROGRAMS = {"door": "haproxy", "Java": "java"}
"""The name of each program in the report, and the name of its processes."""


FORM = "application/x-www-form-urlencoded"
PART = b'--x\r\nContent-Disposition: form-data; name="text"; x\r\n\r\nlate again' + b" " * 2_399_000 + b"\r\n--x--\r\n"
HOSTILE = {
    "two forms of 1.2 million fields": (FORM, b"a&" * 1_200_000, 2, 2),
    "forms of 300,000 fields": (FORM, b"a&" * 300_000, 10, 40),
    "multipart bodies of 2.4 MB with a broken part": ("multipart/form-data; boundary=x", PART, 20, 200),
}
"""Bodies that fill TorchServe's heap, or make it leak memory, if they reach its decoder: content type, body, and the
number of requests in `make test` and in `make fault-test`."""


@pytest.mark.parametrize("bodies", HOSTILE)
def test_bodies_that_exhaust_javas_decoder_do_not_reach_it(
    faulty: Server, labels: dict[str, str], report: Report, bodies: str
) -> None:
    content_type, body, short, long = HOSTILE[bodies]
    count = sized(short, long)
    traffic = Traffic(faulty.project.predictions, labels)
    answers: Counter[tuple[int, str]] = Counter()
    before = memory(faulty)
    lock = Lock()

    def send(_: int) -> None:
        reply = requests.post(faulty.project.predictions, data=body, headers={"content-type": content_type}, timeout=60)
        with lock:
            answers[reply.status_code, reply.json()["type"]] += 1

    with traffic.going(), ThreadPoolExecutor(10) as pool:
        list(pool.map(send, range(count)))
        traffic.wait_for_answers(100)
    after = memory(faulty)
    assert traffic.refusals() == {}
    assert set(answers) <= {(400, "WrongShapeError"), (413, "TooLargeError"), OVERLOADED}, answers
    assert after["Java"] < before["Java"] + 300, "megabytes"
    responses = ", ".join(f"{number} × {status} `{kind}`" for (status, kind), number in sorted(answers.items()))
    report.traffic(
        f"{count} {bodies}" if count > 2 else bodies,
        traffic,
        f"their responses: {responses}; Java {before['Java']:.0f} to {after['Java']:.0f} MB",
    )


def test_pipelined_requests_with_unread_responses_do_not_affect_other_clients(
    faulty: Server, labels: dict[str, str], report: Report
) -> None:
    """Each of eight connections sends up to 2.5 MB of requests, as far as the door reads them."""
    request = f"GET /api-description HTTP/1.1\r\nHost: {urlsplit(faulty.project.inference).netloc}\r\n\r\n".encode()
    traffic = Traffic(faulty.project.predictions, labels)
    before = memory(faulty)
    with traffic.going(), ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(socket.create_connection(address_of(faulty)))
            client.setblocking(False)
            with suppress(BlockingIOError, ConnectionError):
                for _ in range(2_500_000 // len(request) // 100):
                    client.sendall(request * 100)
        traffic.wait_for_answers(sized(200, 5_000))
    after = memory(faulty)
    assert traffic.refusals() == {}
    assert sum(after.values()) < sum(before.values()) + 100, "megabytes"
    report.traffic("8 connections of pipelined requests with unread responses", traffic)


@pytest.mark.parametrize(
    "direct", [False, True] if LONG else [False], ids=lambda direct: "direct" if direct else "door"
)
def test_a_load_of_three_times_the_capacity_is_refused_in_part(
    tmp_path: Path, mar: Path, served: TextClassifier, report: Report, direct: bool
) -> None:
    """The texts have hundreds of tokens, so that the test's clients can send three times the server's capacity.

    The clients ignore `Retry-After`.
    """
    labels = labels_of(LONG_TEXTS, served)
    seconds = sized(4, 20)
    served_project = project(tmp_path, mar)
    command = [sys.executable, "-m", "server", "--config", str(served_project.config), *(["--direct"] * direct)]
    with serving(served_project, command=command) as server:
        url = server.project.predictions
        alone = Traffic(url, labels, clients=32)
        with alone.going():
            alone.wait_for_answers(seconds * 40)
        capacity = len(alone.right()) / alone.seconds
        load_test = ConstantLoad(url, labels)
        load_test.send(3 * capacity, seconds)
        afterwards = Traffic(url, labels)
        with afterwards.going():
            afterwards.wait_for_answers(20)
    assert alone.refusals() == afterwards.refusals() == {}
    assert load_test.wrong == []
    assert set(load_test.errors) <= {NO_PLACE if direct else OVERLOADED}
    report.add(
        f"three times its capacity ({capacity:.0f} requests/s of 400 tokens), for {seconds} s"
        + (", without the door" if direct else ""),
        load_test.sent,
        len(load_test.answers_s),
        load_test.errors,
        f"{len(load_test.answers_s) / load_test.seconds:.0f} right answers/s; median latency "
        f"{statistics.median(load_test.answers_s):.2f} s, "
        f"{1000 * statistics.median(load_test.refusals_s or [0]):.0f} ms for refusals; longest wait "
        f"{max(load_test.answers_s + load_test.refusals_s):.1f} s; the first {CLIENTS} requests afterwards within "
        f"{max(outcome.seconds for outcome in afterwards.outcomes[:CLIENTS]):.2f} s",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_for_logs_loses_no_request(
    tmp_path: Path, mar: Path, labels: dict[str, str], report: Report
) -> None:
    """All logs go to standard output, here /dev/full, a device that never has space left."""
    full = project(tmp_path, mar)
    traffic = Traffic(full.predictions, labels)
    with Path("/dev/full").open("w") as disk:
        # An empty value counts as not set, so that Python buffers its output.
        server = Server(full, output=disk, PYTHONUNBUFFERED="")
        try:
            wait_until(lambda: _answers(full), "an answer")
            with traffic.going():
                traffic.wait_for_answers(100)
                [first, *_] = server.workers()
                first.kill()  # TorchServe logs its end and the start of another worker
                wait_until(lambda: len(set(server.workers()) - {first}) == 2, "two workers again")
                traffic.wait_for_answers(100)
        finally:
            code = server.stop()
    assert code == 0
    assert traffic.refusals() == {}
    report.traffic("no space left for logs, and a worker killed", traffic)


def _answers(project: Project) -> bool:
    try:
        return requests.post(project.predictions, data=b"late again", headers=TEXT, timeout=10).ok
    except (requests.ConnectionError, requests.ReadTimeout):  # a worker that is still loading responds late
        return False


def test_memory_and_open_files_stay_constant_under_long_load(faulty: Server, report: Report) -> None:
    """Every request has a new word that is not in the vocabulary; the known words around it decide the label."""
    url, count = faulty.project.predictions, sized(5_000, 100_000)
    numbers = itertools.count()
    wrong: Counter[str] = Counter()

    def requests_of() -> Iterator[bytes]:
        for number in numbers:
            text = (
                f"Thank you for the great flight! qx{number}zv"
                if number % 2
                else f"Two hours late, qx{number}zv, awful"
            )
            yield to_request(url, text.encode(), "text/plain")

    def check(request: bytes, body: bytes) -> None:
        expected = "positive" if b"Thank you" in request else "negative"
        if json.loads(body)["label"] != expected:
            wrong[f"{request!r}: {body!r}"] += 1

    def soak(limit: int) -> int:
        return load(url, requests_of(), connections=16, limit=limit, check=check).statuses[200]

    right = soak(1_000)
    before = _state(faulty)
    right += soak(count - 1_000)
    assert (right, wrong) == (count, {})
    # Java closes a connection shortly after its client has closed it.
    wait_until(
        lambda: all(now[1] <= then[1] + 2 for then, now in zip(before, _state(faulty), strict=True)),
        "as many open files as before",
    )
    after = _state(faulty)
    if LONG:
        for (megabytes, _), (later_megabytes, _) in zip(before, after, strict=True):
            assert later_megabytes <= megabytes + GROWTH_MB
    shown = [f"{old[0]:.0f} to {new[0]:.0f} MB, {old[1]} to {new[1]}" for old, new in zip(before, after, strict=True)]
    report.add(
        f"{count:,} requests with a new word each",
        count,
        right,
        Counter(),
        f"memory and open files after 1,000 and after all: Java {shown[0]}; the door {shown[1]} and {shown[2]}; "
        f"workers {' and '.join(shown[3:])}",
    )


def _state(server: Server) -> list[tuple[float, int]]:
    """Resident memory in MB and open files of Java, HAProxy's two processes and the workers, in this order."""
    named = {
        name: [process for process in server.processes() if process.name() == name] for name in ("java", "haproxy")
    }
    processes = [*named["java"], *named["haproxy"], *server.workers()]
    return [(process.memory_info().rss / 1e6, process.num_fds()) for process in processes]
