"""The compared servers, called sides: how each is started, queried and stopped."""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import requests

from benchmarks.client import to_request
from benchmarks.servers.common import BATCH_DELAY_S, BATCH_TEXTS, MODEL_VARIABLE, PATH

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "config.properties"
START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 60


def _label(reply: Any) -> str:
    return str(reply["label"])


@dataclass(frozen=True)
class Side:
    """A server."""

    name: str
    description: str
    command: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    body: Callable[[str], bytes] = str.encode
    content_type: str = "text/plain"
    label: Callable[[Any], str] = _label
    """The function that reads the label in a response."""

    @property
    def url(self) -> str:
        """The URL for predictions."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def requests(self, texts: Iterable[str]) -> Iterator[bytes]:
        """Requests with these texts, all encoded in advance, so that encoding takes no time in a measurement."""
        return iter([to_request(self.url, self.body(text), self.content_type) for text in texts])

    def ask(self, text: str) -> str:
        """The label that the server predicts for a text."""
        headers = {"Content-Type": self.content_type}
        with requests.Session() as session:
            session.trust_env = False  # the server is on this machine, so a proxy must not be used
            response = session.post(self.url, data=self.body(text), headers=headers, timeout=60)
        response.raise_for_status()
        return self.label(response.json())


def sides(product: Path, unbatched: Path, model: Path, learner: Path, workers: int) -> list[Side]:
    """All compared servers.

    Args:
        product: this project's virtual environment, without packages of the other servers.
        unbatched: this project's configuration without batches.
        model: an archive's model, unpacked.
        learner: the file of a fastai learner with the same weights.
        workers: the number of workers of each server.
    """
    here = Path(sys.executable).parent
    engine = {MODEL_VARIABLE: str(model)}
    known_example = {"BENCHMARK_LEARNER": str(learner)}
    as_json = {"content_type": "application/json"}

    def text_field(text: str) -> bytes:
        return json.dumps({"text": text}).encode()

    def flask(name: str, count: int) -> Side:
        # No timeout, because the import of fastai takes longer than gunicorn's default.
        command = [str(here / "gunicorn"), "--bind", "127.0.0.1:{port}", "--workers", str(count)]
        command += ["--worker-class", "gthread", "--threads", "1", "--timeout", "0", "benchmarks.servers.flask_app:app"]
        description = f"Flask around `learn.predict` under gunicorn, {count} worker{'s' if count > 1 else ''}"
        environment = known_example | {"OMP_NUM_THREADS": str(workers // count)}
        return Side(name, description, command, 3001, environment, text_field, label=str, **as_json)

    batching = f"batches of up to {BATCH_TEXTS}, {1000 * BATCH_DELAY_S:.0f} ms"
    return [
        torchserve(product, CONFIG, workers),
        torchserve(product, CONFIG, workers, direct=True),
        replace(
            torchserve(product, unbatched, workers),
            name="torchserve-unbatched",
            description=f"this project with `batchSize` 1: TorchServe, {workers} workers",
        ),
        flask("flask", 1),
        flask("flask-all-cores", workers),
        Side(
            "fastapi",
            f"FastAPI under uvicorn, {workers} workers, this engine",
            [
                *(str(here / "uvicorn"), "--port", "{port}", "--workers", str(workers)),
                *("--log-level", "warning", "--no-access-log", "benchmarks.servers.fastapi_app:app"),
            ],
            3002,
            engine,
        ),
        Side(
            "litserve",
            f"LitServe, {workers} workers, this engine, {batching}",
            [sys.executable, "-m", "benchmarks.servers.litserve_app", "{port}", str(workers)],
            3003,
            engine,
            text_field,
            "application/json",
        ),
        Side(
            "bentoml",
            f"BentoML, {workers} workers, this engine, batches of up to {BATCH_TEXTS}, its own delay",
            [str(here / "bentoml"), "serve", "--port", "{port}", "benchmarks.servers.bentoml_app:Sentiment"],
            3004,
            engine | {"BENCHMARK_WORKERS": str(workers), "BENTOML_DO_NOT_TRACK": "true"},
            lambda text: json.dumps({"texts": [text]}).encode(),
            "application/json",
            lambda reply: _label(reply[0]),
        ),
    ]


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torchserve(product: Path, config: Path, workers: int, *, direct: bool = False) -> Side:
    """This project's server, started as by `make serve`.

    Args:
        product: this project's virtual environment.
        config: the configuration.
        workers: the number of workers, for the description.
        direct: whether TorchServe serves without HAProxy in front of it.
    """
    command = [str(product / "bin" / "python"), "-m", "server", "--config", str(config)]
    description = f"TorchServe, {workers} workers"
    if direct:
        return Side("torchserve-direct", f"this project without HAProxy: {description}", [*command, "--direct"], 8080)
    return Side("torchserve", f"this project: HAProxy in front of {description}", command, 8080)


class Running:
    """A server that has answered its first request."""

    def __init__(self, side: Side, process: psutil.Popen, start_s: float) -> None:
        self.side = side
        self.start_s = start_s
        """The time from the start command to the first response."""

        self._process = process

    def processes(self) -> list[psutil.Process]:
        """All processes of the server."""
        return [self._process, *self._process.children(recursive=True)]

    def worker_megabytes(self) -> float:
        """The resident memory of the largest process other than Java."""
        return max(p.memory_info().rss for p in self.processes() if p.name() != "java") / 1e6

    def processor_seconds(self) -> dict[str, float]:
        """The processor time used so far by Java, by HAProxy, and by all other processes."""
        used = {"java": 0.0, "haproxy": 0.0, "python": 0.0}
        for process in self.processes():
            times = process.cpu_times()
            used[process.name() if process.name() in used else "python"] += times.user + times.system
        return used


class BenchmarkError(Exception):
    """A program cannot be measured: its port is in use, it does not start, it fails, or its answers are wrong."""


@contextmanager
def running(side: Side, log: Path) -> Iterator[Running]:
    """Start a server, wait for its first response, and stop it at the end.

    Raises:
        BenchmarkError: another program listens on its port, or the server does not respond.
    """
    port = urlsplit(side.url).port
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise BenchmarkError(f"Another program listens on port {port}, which {side.name} needs. Stop it first.")
    command = [part.replace("{port}", str(port)) for part in side.command]
    # One thread per worker, because there is one worker per core; a server with fewer workers overrides this.
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | side.environment
    started = time.perf_counter()
    with log.open("ab") as output:
        process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        while True:
            try:
                side.ask("Thank you")
                break
            except requests.RequestException:
                if process.poll() is not None or time.perf_counter() - started > START_TIMEOUT_S:
                    raise BenchmarkError(f"{side.name} does not respond; see its output in {log}.") from None
                time.sleep(0.05)
        yield Running(side, process, time.perf_counter() - started)
    finally:
        family: list[psutil.Process] = [process]
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
            process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
        for remaining in alive:
            remaining.kill()
