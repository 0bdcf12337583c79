"""Start, stop and restart of the server, as a user does it: no orphan, no lost request, clear errors."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.e2e.server_process import READY, Project, Server, gone, run_module
from tests.paths import ROOT

TEXT = {"content-type": "text/plain"}
LONG_TEXT = "late again and nobody knows why " * 300


@pytest.fixture
def project(tmp_path: Path, mar: Path) -> Project:
    return Project(tmp_path, mar)


def post(project: Project, text: str) -> int:
    return requests.post(project.predictions, data=text.encode(), headers=TEXT, timeout=120).status_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_answers_what_is_in_flight_and_leaves_no_process(tmp_path: Path, mar: Path, number: int) -> None:
    one_worker = {"defaultVersion": True, "marName": "sentiment.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": 16}
    project = Project(tmp_path, mar, models=json.dumps({"sentiment": {"1.0": one_worker}}))
    server = Server(project)
    server.wait_for(READY)
    processes = server.processes()
    assert len(processes) >= 3, "this program, Java, a worker"
    with ThreadPoolExecutor(40) as pool:
        replies = [pool.submit(post, project, LONG_TEXT) for _ in range(40)]
        while pending_requests(project) < 40 - 16:  # the first batch is with the worker
            time.sleep(0.01)
        code = server.stop(number)
        assert [reply.result() for reply in replies] == [200] * 40
    assert code == 0
    assert gone(processes)
    assert "Stopped." in server.log


def pending_requests(project: Project) -> int:
    [model] = requests.get(f"{project.management}/models/sentiment", timeout=10).json()
    pending: int = model["jobQueueStatus"]["pendingRequests"]
    return pending


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_it_ends_as_a_containers_first_process_too(project: Project) -> None:
    """Which inherits the workers when Java is gone; here by prctl(2), PR_SET_CHILD_SUBREAPER."""
    code = "import ctypes, runpy; ctypes.CDLL(None).prctl(36, 1); runpy.run_module('server', run_name='__main__')"
    server = Server(project, [sys.executable, "-c", code, "--config", str(project.config)])
    server.wait_for(READY)
    server.processes()[1].kill()  # Java, so that it waits for none of them
    assert server.wait() == 1
    assert "TorchServe ended by itself" in server.log


def test_java_announces_nothing_that_it_will_refuse(server: Server) -> None:
    """Of what a future release blocks or removes. TorchServe 0.12 will not change, so Java is told to allow it."""
    assert [line for line in server.log.splitlines() if "in a future release" in line] == []


def test_a_start_after_kill_9_works(project: Project) -> None:
    first = Server(project)
    first.wait_for(READY)
    processes = first.processes()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    assert gone(processes), "Java and the workers end with the program that started them"
    second = Server(project)
    second.wait_for(READY)
    assert post(project, "back again") == 200
    assert second.stop() == 0


def test_there_is_a_worker_for_each_core_and_none_has_pytorch(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # `make test` has set it
    server = Server(project)
    server.wait_for(READY)
    found = server.workers()
    assert len(found) == len(os.sched_getaffinity(0))
    assert post(project, "how large are you?") == 200
    for worker in found:
        assert not [file.path for file in worker.memory_maps() if "libtorch" in file.path]
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
    assert server.stop() == 0


def test_two_servers_on_one_machine(project: Project, tmp_path: Path, mar: Path, server: Server) -> None:
    """`server` runs meanwhile; the second has ports of its own and shares nothing with it."""
    second = Server(project)
    second.wait_for(READY)
    assert post(project, "one") == post(server.project, "two") == 200
    assert second.stop() == 0
    assert post(server.project, "still here") == 200


def test_a_signal_during_the_start_ends_it_at_once(project: Project) -> None:
    server = Server(project)
    server.wait_for("")  # its first word
    processes = server.processes()
    assert server.stop(signal.SIGINT) == 0
    assert gone(processes)
    assert READY not in server.log


def run_server(project: Project) -> subprocess.CompletedProcess[str]:
    return run_module("server", "--config", str(project.config))


def test_a_port_in_use_is_a_clear_error(project: Project) -> None:
    port = int(project.management.rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        result = run_server(project)
    assert result.returncode == 1
    assert f"error: Cannot listen on 127.0.0.1:{port} (management_address in config.properties)" in result.stderr
    assert "choose another port" in result.stderr


def test_a_missing_archive_is_a_clear_error(project: Project) -> None:
    (project.folder / "model_store" / "sentiment.mar").unlink()
    result = run_server(project)
    assert result.returncode == 1
    assert "sentiment.mar; `make archive` builds it" in result.stderr


def test_a_model_that_does_not_load_is_told_and_ended(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar)
    server = Server(project, CLASSIFIER_MAX_TEXTS="many")
    server.wait_for("error: Workers end while they load the model")
    assert server.wait() == 1
    assert "CLASSIFIER_MAX_TEXTS must be a whole number above 0, not 'many'" in server.log


def test_a_full_queue_refuses_and_answers_the_rest(tmp_path: Path, mar: Path) -> None:
    settings = {"defaultVersion": True, "marName": "sentiment.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": 1}
    project = Project(tmp_path, mar, job_queue_size="2", models=json.dumps({"sentiment": {"1.0": settings}}))
    server = Server(project)
    server.wait_for(READY)
    with ThreadPoolExecutor(30) as pool:
        replies = list(
            pool.map(
                lambda _: requests.post(project.predictions, data=LONG_TEXT.encode(), headers=TEXT, timeout=120),
                range(30),
            )
        )
    statuses = {reply.status_code for reply in replies}
    assert statuses == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert set(reply.json()) == {"code", "type", "message"}
    assert post(project, "room again") == 200
    assert server.stop() == 0


def test_workers_scale_through_the_management_api(project: Project) -> None:
    server = Server(project)
    server.wait_for(READY)
    url = f"{project.management}/models/sentiment"
    count = len(server.workers()) + 1
    response = requests.put(f"{url}?min_worker={count}&max_worker={count}&synchronous=true", timeout=120)
    assert response.status_code == 200, response.text
    [model] = requests.get(url, timeout=10).json()
    assert [worker["status"] for worker in model["workers"]] == ["READY"] * count
    assert post(project, "hello") == 200
    processes = server.processes()
    assert server.stop() == 0
    assert gone(processes)


def test_make_serve_is_up_again_without_installing_or_building(project: Project) -> None:
    """`make` finds nothing to do: the tests' environment and archive are those of `make serve`."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the tests were not started by `make test`")
    server = Server(project, ["make", "serve", f"CONFIG={project.config}"])
    server.wait_for(READY)
    assert "Installing" not in server.log
    assert "Archived" not in server.log
    processes = server.processes()
    assert post(project, "hello") == 200
    # Ctrl-C in a terminal reaches the whole foreground group.
    for process in processes:
        if os.getpgid(process.pid) == os.getpgid(server.process.pid) and process.pid != os.getpid():
            process.send_signal(signal.SIGINT)
    server.wait()
    assert gone(processes)
    assert "Stopped." in server.log
