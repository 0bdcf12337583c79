"""Tests of `server/worker_parent`: the parent process that each worker gets."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from server.environment import WORKER_PARENT
from tests.e2e.traffic import wait_until

HOLD_S = 0.1
"""The least time for which a worker's connection stays open after the worker's end."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a worker has a parent process on Linux only")

WORKER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    connection, _ = listener.accept()
    connection.sendall(b"!")
    sys.exit(int(connection.recv(10) or b"1"))
"""
"""A worker that accepts one connection and greets. It exits with the code that it receives, or with 1 if the
connection closes."""


@contextlib.contextmanager
def started() -> Iterator[tuple[subprocess.Popen[str], psutil.Process, socket.socket]]:
    """A worker: its parent, its process, and TorchServe's connection to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as connection:
        program, address = Path(folder, "model_service_worker.py"), Path(folder, "socket")
        program.write_text(WORKER)
        parent = subprocess.Popen(
            [sys.executable, program, address],
            env=os.environ | {"PYTHONPATH": str(WORKER_PARENT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_until(lambda: connection.connect_ex(str(address)) == 0, "a connection")
            assert connection.recv(1) == b"!"
            [worker] = psutil.Process(parent.pid).children()
            yield parent, worker, connection
        finally:
            parent.kill()
            parent.communicate()


def end(parent: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of the parent, and its output, which is the worker's too."""
    _, output = parent.communicate(timeout=60)
    return parent.returncode, output


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGKILL, " (SIGKILL)"), (signal.SIGSEGV, " (SIGSEGV)"), (signal.SIGRTMIN + 1, "")],
)
def test_the_log_says_which_signal_ended_a_worker(number: int, name: str) -> None:
    with started() as (parent, worker, connection):
        killed_s = time.monotonic()
        worker.send_signal(number)
        assert connection.recv(1) == b""
        assert time.monotonic() - killed_s >= HOLD_S, "the parent holds the connection open"
        line = f"worker {worker.pid} was ended by signal {int(number)}{name}\n"
        assert end(parent) == (1, line)


def test_the_log_has_the_exit_code_of_a_worker_that_exits_by_itself() -> None:
    with started() as (parent, worker, connection):
        connection.sendall(b"3")
        assert end(parent) == (1, f"worker {worker.pid} exited with code 3\n")


def test_a_parent_whose_output_is_not_read_ends() -> None:
    with started() as (parent, _, connection):
        with open(f"/proc/{parent.pid}/fd/2", "wb", buffering=0) as pipe:
            os.set_blocking(pipe.fileno(), False)
            while pipe.write(b"x" * 4096):  # until the pipe is full
                pass
        connection.sendall(b"3")
        assert parent.wait(60) == 1


def test_a_worker_that_torchserve_stops_leaves_no_line() -> None:
    """TorchServe closes the connection, and sends SIGKILL to the parent."""
    with started() as (parent, _, connection):
        connection.close()
        assert end(parent) == (1, "")
    with started() as (parent, worker, _):
        parent.kill()
        assert end(parent) == (-signal.SIGKILL, "")
        assert not psutil.wait_procs([worker], timeout=60)[1]
