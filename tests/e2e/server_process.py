"""A real TorchServe, started the way a user starts it, on ports of its own."""

import contextlib
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

import psutil
import pytest
import requests

from tests.paths import CLIENT, ROOT

START_TIMEOUT_S = 180
READY = "Ctrl-C stops it"
"""The last that the server says when it is up."""

BATCH = 8
"""The size of the batches of the model `batched` in the fixture `server`."""

FIRST_PORT, LAST_PORT = 12_000, 32_000
PORT_RANGES = 4

PORT_SETTINGS = ("inference_address", "management_address", "metrics_address")
GRPC_SETTINGS = ("grpc_inference_port", "grpc_management_port")


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on; they differ.

    They are below the ports that the system gives to connections (from 32,768 on Linux, 49,152 on macOS), because a
    connection could take such a port before the server does. Each process of pytest-xdist has a range of its own.
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
    """A folder with a configuration and a model store, as the project's own, on free ports."""

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
    """A running server; its output is kept, and shown when it does not come up."""

    def __init__(
        self, project: Project, command: list[str] | None = None, output: TextIO | None = None, **environment: str
    ) -> None:
        """
        Args:
            output: where it writes; by default what it writes is kept.
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
            # A script's background job ignores it, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
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
        pytest.fail(f"The server never said {text!r}. It said:\n{self.log}")

    def processes(self) -> list[psutil.Process]:
        """The server's own process, Java and the workers."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # gone since, or waiting to be
                if "model_service_worker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def door(self, metric: str) -> list[float]:
        """The values of one of the door's own metrics, of all its parts."""
        lines = requests.get(f"{self.project.metrics}/metrics/door", timeout=10).text.splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{metric}{{")]

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
    """A server that is ready; in the end it must stop as it should."""
    server = Server(project, command, None, **environment)
    try:
        server.wait_for(READY)
        yield server
    finally:
        # Ctrl-C has no grace in which clients leave their connections.
        assert server.stop(signal.SIGINT) == 0, server.log


def run_module(
    *arguments: str, env: Mapping[str, str] | None = None, stdin: TextIO | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`python -m` with these arguments, to its end."""
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
    """The command line, pointed at a server; of this process' environment it has nothing."""
    addresses = {"SENTIMENT_URL": server.project.inference, "SENTIMENT_MANAGEMENT_URL": server.project.management}
    return run_client(*arguments, env=addresses | environment)


def gone(processes: list[psutil.Process], timeout_s: float = 20) -> bool:
    """Whether all of them end in time."""
    return not psutil.wait_procs(processes, timeout=timeout_s)[1]
