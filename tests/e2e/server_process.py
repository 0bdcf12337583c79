"""Real server processes, started as a user starts them, on free ports."""

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO
from zipfile import ZipFile

import psutil
import pytest
import requests

from tests.interruptible import heed_sigint
from tests.paths import CLIENT, ROOT

START_TIMEOUT_S = 180
READY = "Ctrl-C stops it"
"""The last line that the server prints when it is ready."""

BATCH = 8
"""The batch size of the model `batched` in the fixture `server`."""

FIRST_PORT, LAST_PORT = 12_000, 32_000
PORT_RANGES = 4

ONE_WORKER = json.dumps(
    {
        "sentiment": {
            "1.0": {
                "defaultVersion": True,
                "marName": "sentiment.mar",
                "batchSize": 16,
                "maxBatchDelay": 1,
                "responseTimeout": 15,
                "minWorkers": 1,
                "maxWorkers": 1,
            }
        }
    }
)
"""The setting `models` with a single worker, for servers that need no second one: they start faster."""

PORT_SETTINGS = ("inference_address", "management_address", "metrics_address")
GRPC_SETTINGS = ("grpc_inference_port", "grpc_management_port")


def free_ports(count: int) -> list[int]:
    """Distinct ports on which no program listens.

    They are below the ephemeral ports (from 32,768 on Linux, 49,152 on macOS), because the system could assign an
    ephemeral port to a connection before the server binds it. Each process of pytest-xdist has its own range.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PORT_RANGES
    size = (LAST_PORT - FIRST_PORT) // PORT_RANGES
    start = FIRST_PORT + process * size
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(start, start + size)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Project:
    """A folder with the project's configuration, changed to free ports, and a model store."""

    def __init__(self, folder: Path, mar: Path, **changes: str) -> None:
        ports = free_ports(6)
        values = dict(
            line.split("=", 1)
            for line in (ROOT / "config.properties").read_text().splitlines()
            if line and not line.startswith("#")
        )
        values |= {name: f"http://127.0.0.1:{port}" for name, port in zip(PORT_SETTINGS, ports, strict=False)}
        values |= {name: str(port) for name, port in zip(GRPC_SETTINGS, ports[3:], strict=False)}
        values |= {"initial_worker_port": str(ports[5])} | changes
        self.folder = folder
        self.config = folder / "config.properties"
        self.config.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
        shutil.copy(ROOT / "metrics.yaml", folder)
        (folder / "model_store").mkdir(exist_ok=True)
        shutil.copy(mar, folder / "model_store" / "sentiment.mar")
        self.inference, self.management, self.metrics = (values[name] for name in PORT_SETTINGS)
        self.grpc, self.grpc_management = (f"127.0.0.1:{values[name]}" for name in GRPC_SETTINGS)
        self.worker_port = int(values["initial_worker_port"])
        self.predictions = f"{self.inference}/predictions/sentiment"


class Server:
    """A running server. Its output is recorded, and shown if the server does not start."""

    def __init__(
        self, project: Project, command: list[str] | None = None, output: TextIO | None = None, **environment: str
    ) -> None:
        """Start the server.

        Args:
            project: the folder with the configuration and the model store.
            command: the command that starts the server; None for `python -m server`.
            output: the file for its output; None to record the output.
            **environment: additional environment variables.
        """
        self.project = project
        self.lines: list[str] = []
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", "server", "--config", str(project.config)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=heed_sigint,  # noqa: PLW1509
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """The recorded output."""
        return "\n".join(self.lines)

    def wait_for(self, text: str) -> None:
        """Wait for a line with `text` in the output."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                line = self._arrived.get(timeout=1)
            except queue.Empty:
                continue
            if line is None:
                break
            if text in line:
                return
        pytest.fail(f"The server never printed {text!r}. Its output:\n{self.log}")

    def processes(self) -> list[psutil.Process]:
        """The processes of the server: its main process, Java, the door and the workers."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The workers' processes."""
        workers = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # the process has ended meanwhile
                if "model_service_worker" in " ".join(process.cmdline()):
                    workers.append(process)
        return workers

    def door(self, metric: str, proxy: str = "") -> list[float]:
        """The values of one of HAProxy's metrics: that of one of its proxies, or one for each of them."""
        lines = requests.get(f"{self.project.metrics}/metrics/door", timeout=10).text.splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f'{metric}{{proxy="{proxy}')]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the server and wait for its end; returns its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the server's end; returns its exit code."""
        code = self.process.wait(120)
        self._reader.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line.rstrip("\n"))
            self._arrived.put(line)
        self._arrived.put(None)


@contextlib.contextmanager
def serving(project: Project, command: list[str] | None = None, **environment: str) -> Iterator[Server]:
    """A ready server, which must exit with 0 at the end."""
    server = Server(project, command, None, **environment)
    try:
        server.wait_for(READY)
        yield server
    finally:
        # Ctrl-C is faster than SIGTERM: it has no grace period for persistent connections.
        assert server.stop(signal.SIGINT) == 0, server.log


def write_changed(archive: Path, changed: Path, file: str, content: str | bytes) -> None:
    """Write a copy of an archive with another content of one of its files."""
    with ZipFile(archive) as source, ZipFile(changed, "w") as target:
        for item in source.infolist():
            target.writestr(item, content if item.filename == file else source.read(item))


def run_module(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: TextIO | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these arguments until it exits."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=stdin, capture_output=True, text=True, timeout=120, check=False
    )


def run_client(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: TextIO | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line `sentiment` of this checkout."""
    return run_module("sentiment", *arguments, env=env, stdin=stdin, cwd=CLIENT)


def sentiment(server: Server, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command `sentiment` against a server, without the environment of this process."""
    addresses = {"SENTIMENT_URL": server.project.inference, "SENTIMENT_MANAGEMENT_URL": server.project.management}
    return run_client(*arguments, env=addresses | environment)


def gone(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    """Whether all processes end within the timeout."""
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]
