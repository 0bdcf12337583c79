"""Tests of the probes with a real server: ready means that a worker answers, live that no restart is needed."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from server import api, probe, readiness
from server.properties import Properties
from tests.e2e.server_process import ONE_WORKER, Project, Server, run_module

NOTICE_TIMEOUT_S = 10
RECOVERY_TIMEOUT_S = 60


def succeeds(check: Callable[[Properties], None], properties: Properties) -> bool:
    try:
        check(properties)
    except (readiness.NotReadyError, *api.ERRORS):
        return False
    return True


def states_until_ready(properties: Properties) -> list[tuple[bool, bool]]:
    """The results of both probes, repeated until both succeed: live, ready."""
    states = []
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline:
        states.append((succeeds(probe.live, properties), succeeds(probe.ready, properties)))
        if states[-1] == (True, True):
            return states
    pytest.fail(f"Not ready after {RECOVERY_TIMEOUT_S} s: {states[-1]}")


def test_ready_needs_a_worker_and_live_does_not(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar, models=ONE_WORKER)
    properties = Properties.read(project.config)
    assert not succeeds(probe.live, properties)
    server = Server(project)
    starting = states_until_ready(properties)
    assert starting[0] == (False, False)
    assert (True, False) in starting, "TorchServe responds before the model is loaded"

    for worker in server.workers():
        worker.kill()
    deadline = time.monotonic() + NOTICE_TIMEOUT_S
    while succeeds(probe.ready, properties):
        assert time.monotonic() < deadline, "killed workers still count as ready"
    recovering = states_until_ready(properties)
    assert all(live for live, _ in recovering), "a restart would not bring the workers back sooner"
    response = requests.post(project.predictions, data=b"thank you", headers={"Content-Type": "text/plain"}, timeout=60)
    assert response.status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("question", ["ready", "live"])
def test_the_command_prints_the_reason(tmp_path: Path, mar: Path, question: str) -> None:
    project = Project(tmp_path, mar)
    result = run_module("server.probe", question, "--config", str(project.config))
    assert result.returncode == 1
    assert result.stderr.startswith(f"not {question}: ")
    assert "refused" in result.stderr


def test_the_command_prints_nothing_if_the_server_is_ready(server: Server) -> None:
    result = run_module("server.probe", "ready", "--config", str(server.project.config))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
