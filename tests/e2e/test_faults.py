"""What goes wrong in operation, with traffic going on. Every request is accounted for: it got the right answer, or an
error that the README names; and in the end everything is as before. `make fault-test` runs the long forms."""

import csv
import http.client
import itertools
import json
import random
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from benchmarks.client import load, to_request
from handler.classifier import TextClassifier
from tests.e2e.report import LONG, Report, sized
from tests.e2e.server_process import Project, Server, sentiment, serving
from tests.e2e.traffic import CLIENTS, NO_ANSWER, NOBODY_LISTENS, TEXT, TEXTS, Traffic, labels_of, wait_until

RESPONSE_TIMEOUT_S = 4

LOST_WITH_ITS_WORKER = {(500, "InternalServerException"), (507, "InternalServerException")}
"""Which of the two a request gets that a dead worker held, is a race within TorchServe."""

FORGOTTEN = (NO_ANSWER, "ReadTimeout")
"""What a request gets that was taken from the queue for a worker which dies while TorchServe waits `maxBatchDelay` for
others to go along: TorchServe drops it without a word (`WorkerThread.run` ends with `BatchAggregator.cleanJobs`)."""

NO_PLACE = (503, "ServiceUnavailableException")

LONG_TEXTS = tuple(f"{text} {'the flight to Denver was what it was, ' * 40}" for text in TEXTS)
"""A few hundred tokens each, so that a test's clients can send three times what a server can do."""

GROWTH_MB = 20
"""What a worker may grow by in the long soak: 200 bytes a request, less than anything that is kept of each. In the
short one a leak would not show, only file handles would."""


def project(folder: Path, mar: Path, **changes: str) -> Project:
    """Two workers, which count as hung after a few seconds."""
    batches = {"marName": "sentiment.mar", "batchSize": 16, "maxBatchDelay": 1, "responseTimeout": RESPONSE_TIMEOUT_S}
    sentiment = batches | {"defaultVersion": True, "minWorkers": 2, "maxWorkers": 2}
    return Project(folder, mar, models=json.dumps({"sentiment": {"1.0": sentiment}}), **changes)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    with serving(project(tmp_path_factory.mktemp("faults"), mar)) as server:
        yield server


@pytest.fixture(scope="module")
def labels(served: TextClassifier) -> dict[str, str]:
    return labels_of(TEXTS, served)


def ready(server: Server) -> set[int]:
    """The workers that have loaded the model, by process: one that hangs before has two minutes until TorchServe ends
    it (`startupTimeout`)."""
    [version] = requests.get(f"{server.project.management}/models/sentiment", timeout=10).json()
    return {worker["pid"] for worker in version["workers"] if worker["status"] == "READY"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hung"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_or_hung_worker_costs_what_it_held_alone(
    faulty: Server, labels: dict[str, str], report: Report, number: signal.Signals, workers: int
) -> None:
    killed = number is signal.SIGKILL
    times = sized(1, 15 if killed else 1)
    traffic = Traffic(faulty.project.predictions, labels)
    ended = set()
    with traffic.going():
        for _ in range(times):
            traffic.wait_for_answers(100)
            for worker in faulty.workers()[:workers]:
                worker.send_signal(number)
                ended.add(worker)
            traffic.wait_for_answers(100)
            wait_until(lambda: len(ready(faulty) - {worker.pid for worker in ended}) == 2, "two workers again")
        traffic.wait_for_answers(100)
    # What the workers held, and what came while there was none.
    refused = traffic.refusals()
    lost = LOST_WITH_ITS_WORKER | ({FORGOTTEN} if killed else set())
    assert set(refused) <= lost | {NO_PLACE}
    assert sum(refused[answer] for answer in lost) <= CLIENTS * len(ended), refused
    wait_until(lambda: not any(worker.is_running() for worker in ended), "the end of what was killed")
    often = f", {times} times" if times > 1 else ""
    report.traffic(f"{workers} of 2 workers {'killed' if killed else 'hung'} ({number.name}){often}", traffic)


ENDING = (503, "OverloadedError")


def test_sigterm_answers_what_has_come_and_refuses_what_still_comes(
    tmp_path: Path, mar: Path, labels: dict[str, str], report: Report
) -> None:
    """Clients that do as they are told (`Retry-After`) do not hold it up, though they never stop asking."""
    with serving(project(tmp_path, mar)) as server:
        traffic = Traffic(server.project.predictions, labels)
        with traffic.going():
            traffic.wait_for_answers(100)
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
        assert "Some requests were not answered." not in server.log
    assert set(traffic.refusals()) <= {ENDING, NOBODY_LISTENS}
    assert traffic.refusals()[ENDING]
    report.traffic("SIGTERM to the server", traffic)


def test_sigterm_under_a_whole_file_loses_none_of_it(tmp_path: Path, mar: Path, labels: dict[str, str]) -> None:
    """The command line sends lists of 64 texts over eight connections, and goes on with the same command."""
    texts = list(TEXTS) * 1_500
    source, scored = tmp_path / "texts.csv", tmp_path / "texts.scored.csv"
    source.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    served = project(tmp_path, mar)
    journal = tmp_path / "texts.scored.csv.journal"
    with serving(served) as server, ThreadPoolExecutor(1) as pool:
        run = pool.submit(sentiment, server, "score", str(source))
        wait_until(lambda: journal.exists() and journal.stat().st_size > 5_000, "the first results")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Some requests were not answered." not in server.log
        ended = run.result()
    assert ended.returncode == 3, ended.stderr
    assert "are done, and kept in" in ended.stderr
    assert not scored.exists()
    with serving(served) as server:
        again = sentiment(server, "score", str(source))
    assert again.returncode == 0, again.stderr
    assert "Continuing after" in again.stderr
    with scored.open(newline="", encoding="utf-8") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [labels[text] for text in texts]


def test_clients_that_send_rubbish_or_hang_up_hurt_nobody(
    faulty: Server, labels: dict[str, str], report: Report
) -> None:
    generator = random.Random(1)
    rounds = sized(200, 2_000)
    parts = urlsplit(faulty.project.predictions)
    assert parts.hostname is not None
    address = (parts.hostname, parts.port)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: 1000\r\n\r\n".encode()
    traffic = Traffic(faulty.project.predictions, labels)
    with traffic.going():
        slow = [socket.create_connection(address) for _ in range(20)]
        for connection in slow:
            connection.sendall(head[:40])
        for _ in range(rounds):
            for sent in (generator.randbytes(500), head + b"half a body", head[:50]):
                with socket.create_connection(address) as connection:
                    connection.sendall(sent)
        for _ in range(rounds):  # gone before the answer comes; it is computed all the same, so not too many at once
            time.sleep(0.002)
            client = http.client.HTTPConnection(*address)
            client.request("POST", parts.path, body=b"late again " * 20, headers=TEXT)
            client.close()
        traffic.wait_for_answers(100)
        for connection in slow:
            connection.close()
    assert traffic.refusals() == {}
    report.traffic(f"{3 * rounds:,} broken requests, 20 slow clients, {rounds:,} that hang up", traffic)


def test_three_times_its_capacity(tmp_path: Path, mar: Path, served: TextClassifier, report: Report) -> None:
    """Texts of hundreds of tokens; the queue holds what two workers do in a second or so."""
    labels = labels_of(LONG_TEXTS, served)
    seconds = sized(4, 20)
    with serving(project(tmp_path, mar)) as server:
        url = server.project.predictions
        alone = Traffic(url, labels, clients=32)
        with alone.going():
            alone.wait_for_answers(seconds * 40)
        capacity = len(alone.right()) / alone.seconds
        overload = Traffic(url, labels, clients=200, rate=3 * capacity)
        with overload.going():
            # The queue fills late where something else had the cores while the capacity was measured.
            wait_until(lambda: overload.sent > 3 * capacity * seconds and overload.refusals(), "the load")
        afterwards = Traffic(url, labels)
        with afterwards.going():
            afterwards.wait_for_answers(20)
    assert alone.refusals() == afterwards.refusals() == {}
    assert set(overload.refusals()) == {NO_PLACE}
    answers_s = [outcome.seconds for outcome in overload.right()]
    refusals_s = [outcome.seconds for outcome in overload.outcomes if outcome.status != 200]
    report.traffic(
        f"three times its capacity ({capacity:.0f} requests/s of 400 tokens), for {seconds} s",
        overload,
        f"{len(answers_s) / overload.seconds:.0f} right answers/s; medians: {statistics.median(answers_s):.2f} s for "
        f"those, {1000 * statistics.median(refusals_s):.0f} ms for refusals; the first {CLIENTS} requests afterwards "
        f"within {max(outcome.seconds for outcome in afterwards.outcomes[:CLIENTS]):.2f} s",
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_for_logs(tmp_path: Path, mar: Path, labels: dict[str, str], report: Report) -> None:
    """All logs go to standard output; /dev/full has no space left on it."""
    full = project(tmp_path, mar)
    traffic = Traffic(full.predictions, labels)
    with Path("/dev/full").open("w") as disk:
        # Empty is as if it were not set: what is printed then waits in a buffer.
        server = Server(full, output=disk, PYTHONUNBUFFERED="")
        try:
            wait_until(lambda: _answers(full), "an answer")
            with traffic.going():
                traffic.wait_for_answers(100)
                [first, *_] = server.workers()
                first.kill()  # its end and the start of another are logged
                wait_until(lambda: len(set(server.workers()) - {first}) == 2, "two workers again")
                traffic.wait_for_answers(100)
        finally:
            code = server.stop()
    assert code == 0
    assert set(traffic.refusals()) <= LOST_WITH_ITS_WORKER | {FORGOTTEN}
    assert traffic.refusals().total() <= CLIENTS
    report.traffic("no space left for logs, and a worker killed", traffic)


def _answers(project: Project) -> bool:
    try:
        return requests.post(project.predictions, data=b"late again", headers=TEXT, timeout=10).ok
    except (requests.ConnectionError, requests.ReadTimeout):  # a worker that still loads answers late
        return False


def test_a_soak_leaves_memory_and_file_handles_as_they_were(faulty: Server, report: Report) -> None:
    """Ever new words, none of which the model knows; the known ones around them decide the label."""
    url, count = faulty.project.predictions, sized(5_000, 200_000)
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
    # Java closes a connection a moment after its client has.
    wait_until(
        lambda: all(now[1] <= then[1] + 2 for then, now in zip(before, _state(faulty), strict=True)),
        "as many file handles as before",
    )
    after = _state(faulty)
    if LONG:
        for (megabytes, _), (later_megabytes, _) in zip(before, after, strict=True):
            assert later_megabytes <= megabytes + GROWTH_MB
    shown = [f"{old[0]:.0f} to {new[0]:.0f} MB, {old[1]} to {new[1]}" for old, new in zip(before, after, strict=True)]
    report.add(
        f"{count:,} requests with ever new words",
        count,
        right,
        Counter(),
        f"memory and file handles after 1,000 and after all: Java {shown[1]}; workers {shown[2]} and {shown[3]}",
    )


def _state(server: Server) -> list[tuple[float, int]]:
    """Resident megabytes and open files of the server's own process, Java and the workers."""
    return [(process.memory_info().rss / 1e6, process.num_fds()) for process in server.processes()]
