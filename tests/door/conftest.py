"""Fixtures of the door's tests: the door in front of a stub, once with each HAProxy on the machine."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from server import swagger_ui
from server.door import haproxy, places
from tests.door.stub import TIMEOUT_S, Client, Stub
from tests.e2e.server_process import free_ports
from tests.paths import ROOT

FOLDER = ROOT / "door"
WHEEL = haproxy()
DISTRIBUTION = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
PROGRAMS = sorted({program for program in (WHEEL, DISTRIBUTION) if program})


class Door:
    """Both processes of the door."""

    def __init__(self, program: str, folder: Path, prefix: tuple[str, ...] = ()) -> None:
        """Start both processes.

        Args:
            program: the HAProxy program.
            folder: the folder for sockets and output.
            prefix: a command that runs the command in its arguments.
        """
        self.port, self.management_port, self.metrics_port = free_ports(3)
        self.stub = Stub(folder / "stub")
        behind = f"unix@{folder / 'stub'}"
        self.variables = {
            "PUBLIC_INFERENCE": f"127.0.0.1:{self.port}",
            "PUBLIC_MANAGEMENT": f"127.0.0.1:{self.management_port}",
            "PUBLIC_METRICS": f"127.0.0.1:{self.metrics_port}",
            **dict.fromkeys(("TORCHSERVE_INFERENCE", "TORCHSERVE_MANAGEMENT", "TORCHSERVE_METRICS"), behind),
            "READINESS": behind,
            "LARGE_DOOR": f"unix@{folder / 'large'}",
            "CONTROL": f"unix@{folder / 'control'}",
            "PLACES": str(places(2)),
            **swagger_ui.variables(),
            "MALLOC_MMAP_THRESHOLD_": "1000000",
        }
        self._output: IO[str] = (folder / "output").open("w+")
        self._processes = [
            subprocess.Popen(
                [*prefix, program, "-f", "shared.cfg", "-f", file, "-db"],
                cwd=FOLDER,
                env=self.variables,
                stdout=self._output,
                stderr=subprocess.STDOUT,
            )
            for file in ("large.cfg", "haproxy.cfg")
        ]
        self.large, self.front = (psutil.Process(process.pid) for process in self._processes)
        self.large_address = folder / "large"
        self._wait()

    def connect(self, sent: bytes = b"", receive_bytes: int | None = None, source: str = "127.0.0.1") -> Client:
        """A client's connection to the public address."""
        return Client(self.port, sent, receive_bytes, source)

    def wait_until_idle(self) -> None:
        """Wait until no client is connected: the door counts a connection until it has seen its end."""
        end = time.monotonic() + TIMEOUT_S
        while any(
            connection.laddr.port == self.port and connection.status != psutil.CONN_LISTEN
            for connection in self.front.net_connections("tcp")
        ):
            assert time.monotonic() < end, "a test has left a connection open"
            time.sleep(0.02)

    @property
    def output(self) -> str:
        """The output of both processes."""
        self._output.seek(0)
        return self._output.read()

    def stop(self) -> list[int]:
        """End both processes; returns their exit codes."""
        for process in self._processes:
            process.terminate()
        codes = [process.wait(10) for process in self._processes]
        self.stub.shutdown()
        self.stub.server_close()
        self._output.close()
        return codes

    def _wait(self) -> None:
        """Wait until both processes listen."""
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.large_address))
                self.connect().close()
                return
            except (ConnectionRefusedError, FileNotFoundError):
                assert all(process.poll() is None for process in self._processes), self.output
                time.sleep(0.02)


@pytest.fixture(
    scope="session", params=PROGRAMS, ids=lambda program: "wheel" if "site-packages" in program else "system"
)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def running(program: str) -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="door") as folder:
        door = Door(program, Path(folder))
        yield door
        door.stop()


@pytest.fixture
def door(running: Door) -> Door:
    running.wait_until_idle()
    running.stub.reset()
    return running
