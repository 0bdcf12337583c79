"""The probes, against a real server: ready means that a worker answers, live that TorchServe does."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from server import api, probe, readiness
from server.properties import Properties
from tests.e2e.server_process import Project, Server, run_module

NOTICE_TIMEOUT_S = 10
RECOVERY_TIMEOUT_S = 60


def yes(question: Callable[[Properties], None], properties: Properties) -> bool:
    try:
        question(properties)
    except (readiness.NotReadyError, *api.ERRORS):
        return False
    return True


def states_until_ready(properties: Properties) -> list[tuple[bool, bool]]:
    """Whether the server was live and ready, as often as it could be asked."""
    states = []
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while time.monotonic() < deadline:
        states.append((yes(probe.live, properties), yes(probe.ready, properties)))
        if states[-1] == (True, True):
            return states
    pytest.fail(f"Not ready after {RECOVERY_TIMEOUT_S} s: {states[-1]}")


def test_ready_and_live_mean_what_they_say(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar)
    properties = Properties.read(project.config)
    assert not yes(probe.live, properties)
    server = Server(project)
    starting = states_until_ready(properties)
    assert starting[0] == (False, False)
    assert (True, False) in starting, "TorchServe answers before the model is loaded"

    for worker in server.workers():
        worker.kill()
    deadline = time.monotonic() + NOTICE_TIMEOUT_S
    while yes(probe.ready, properties):
        assert time.monotonic() < deadline, "workers that are gone still count as ready"
    recovering = states_until_ready(properties)
    assert all(live for live, _ in recovering), "a restart would not bring the workers back sooner"
    response = requests.post(project.predictions, data=b"thank you", headers={"Content-Type": "text/plain"}, timeout=60)
    assert response.status_code == 200
    assert server.stop() == 0


@pytest.mark.parametrize("question", ["ready", "live"])
def test_the_command_says_why_not(tmp_path: Path, mar: Path, question: str) -> None:
    project = Project(tmp_path, mar)
    result = run_module("server.probe", question, "--config", str(project.config))
    assert result.returncode == 1
    assert result.stderr.startswith(f"not {question}: ")
    assert "refused" in result.stderr


def test_the_command_is_silent_when_all_is_well(server: Server) -> None:
    result = run_module("server.probe", "ready", "--config", str(server.project.config))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
