"""Tests of `server.readiness` with a TorchServe that responds, fails, hangs or does not exist."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from server import NAME, VERSION, readiness
from server.address import Address, Endpoint, Endpoints
from server.readiness import Readiness
from server.workspace import Workspace
from tests.paths import ROOT


def describe(name: str, version: str, *states: str) -> dict[str, Any]:
    """A version of a model with workers in these states, as the management API describes it."""
    workers = [{"status": state} for state in states]
    return {"modelName": name, "modelVersion": version, "minWorkers": 1, "workers": workers}


class TorchServe:
    """A stand-in for TorchServe's management API that records the requested paths."""

    def __init__(self, address: Endpoint) -> None:
        self.answers: dict[str, Any] = {"/ping": {"status": "Healthy"}}
        self.hangs = threading.Event()
        self.asked: list[str] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked.append(self.path)
                while stand_in.hangs.wait(0) and not stand_in.ended.wait(0.05):
                    pass
                answer = stand_in.answers.get(self.path)
                body = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        self.ended = threading.Event()
        self._server = readiness._server(address, Handler)  # type: ignore[arg-type]
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def register(self, name: str, *states: str, version: str = "1.0") -> None:
        names = [model["modelName"] for model in self.answers.get("/models", {"models": []})["models"]]
        self.answers["/models"] = {"models": [{"modelName": each} for each in {*names, name}]}
        described = describe(name, version, *states)
        self.answers[f"/models/{name}"] = self.answers[f"/models/{name}/all"] = [described]

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(params=[True, False], ids=["sockets", "ports"])
def workspace(request: pytest.FixtureRequest) -> Iterator[Workspace]:
    opened = Workspace({"TMPDIR": "/tmp"}, 0)
    opened.has_sockets = request.param
    yield opened
    opened.close()


@pytest.fixture
def addresses(workspace: Workspace) -> Endpoints:
    address = workspace.address("torchserve")
    return Endpoints(address, address, address)


@pytest.fixture
def torchserve(addresses: Endpoints) -> Iterator[TorchServe]:
    opened = TorchServe(addresses.management)
    yield opened
    opened.close()


@pytest.fixture
def address(workspace: Workspace) -> Endpoint:
    return workspace.address("ready")


@pytest.fixture
def ready(address: Endpoint, addresses: Endpoints, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readiness]:
    monkeypatch.setattr(readiness, "CACHE_S", 0)
    opened = Readiness(address, addresses)
    yield opened
    opened.close()


def ask(address: Endpoint, path: str, method: str = "GET") -> tuple[int, Any]:
    connection = address.connection(60)
    connection.request(method, path)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, json.loads(body) if body else None


@pytest.mark.usefixtures("ready")
def test_ready_means_that_every_default_version_has_a_ready_worker(address: Endpoint, torchserve: TorchServe) -> None:
    torchserve.answers["/models"] = {"models": []}
    error = {"code": 503, "type": "NotReadyError", "message": "No model is registered."}
    assert ask(address, "/ready") == (503, error)
    torchserve.register("a", "READY", "UNLOADING")
    assert ask(address, "/ready") == (200, {"status": "Ready"})
    assert ask(address, "/ready", "HEAD") == (200, None)
    assert ask(address, "/ready?verbose=1") == (200, {"status": "Ready"})
    assert ask(address, "/v2/health/ready") == (200, {"ready": True})
    assert ask(address, "/v2/models/a/ready") == (200, {"name": "a", "ready": True})
    torchserve.register("b", "UNLOADING")
    message = "b 1.0 cannot answer: its workers are UNLOADING."
    assert ask(address, "/ready") == (503, error | {"message": message})
    assert ask(address, "/v2/health/ready") == (503, {"error": message})
    assert ask(address, "/v2/models/a/ready")[0] == 200
    assert ask(address, "/v2/models/b/ready") == (503, {"error": message})
    torchserve.register("b")
    assert ask(address, "/v2/models/b/ready") == (503, {"error": "b 1.0 cannot answer: it has no worker."})


@pytest.mark.usefixtures("ready")
def test_each_version_has_its_own_readiness(address: Endpoint, torchserve: TorchServe) -> None:
    torchserve.register("a", "READY")
    torchserve.answers["/models/a/all"] = [describe("a", "1.0", "READY"), describe("a", "2.0")]
    assert ask(address, "/v2/models/a/versions/1.0/ready") == (200, {"name": "a", "version": "1.0", "ready": True})
    assert ask(address, "/v2/models/a/versions/2.0/ready")[0] == 503
    unknown = {"error": "There is no version 3.0 of a model a."}
    assert ask(address, "/v2/models/a/versions/3.0/ready") == (404, unknown)
    assert ask(address, "/v2/models/c/ready") == (404, {"error": "There is no model c."})


@pytest.mark.usefixtures("ready")
def test_the_models_are_listed_with_their_versions_and_states(address: Endpoint, torchserve: TorchServe) -> None:
    torchserve.register("a", "READY")
    torchserve.register("b", "UNLOADING")
    [first], [second] = torchserve.answers["/models/a"], torchserve.answers["/models/b"]
    torchserve.answers["/models/a/all"] = [first, first | {"modelVersion": "2.0", "workers": []}]
    torchserve.answers["/models/b/all"] = [second]
    status, listed = ask(address, "/v2/models")
    assert (status, sorted(listed["models"])) == (200, ["a", "b"])
    assert sorted(listed["versions"], key=lambda each: (each["name"], each["version"])) == [
        {"name": "a", "version": "1.0", "default": True, "state": "READY"},
        {
            "name": "a",
            "version": "2.0",
            "default": False,
            "state": "UNAVAILABLE",
            "reason": "a 2.0 cannot answer: it has no worker.",
        },
        {
            "name": "b",
            "version": "1.0",
            "default": True,
            "state": "UNAVAILABLE",
            "reason": "b 1.0 cannot answer: its workers are UNLOADING.",
        },
    ]
    torchserve.answers["/models/b/all"] = None
    assert ask(address, "/v2/models")[0] == 503


@pytest.mark.usefixtures("ready")
def test_model_names_are_decoded_and_encoded_again(address: Endpoint, torchserve: TorchServe) -> None:
    torchserve.register("a b")
    torchserve.answers["/models/a%20b"] = torchserve.answers["/models/a%20b/all"] = [describe("a b", "1.0", "READY")]
    assert ask(address, "/v2/models/a%20b/ready") == (200, {"name": "a b", "ready": True})
    assert ask(address, "/v2/models/a/versions/all/ready")[0] == 404
    assert ask(address, "/v2/models/a%20b/versions/1%2e0/ready")[0] == 200
    assert ask(address, "/v2/models/..%2fx/versions/%0d%0a/ready")[0] == 404
    assert set(torchserve.asked) == {"/models", "/models/a%20b", "/models/a%20b/all"}, "no name of a client"


@pytest.mark.usefixtures("ready")
def test_the_server_describes_itself(address: Endpoint) -> None:
    assert f'version = "{VERSION}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    described = {"name": NAME, "version": VERSION, "extensions": ["binary_tensor_data"]}
    assert ask(address, "/v2") == (200, described)


@pytest.mark.usefixtures("ready")
def test_a_server_is_live_while_a_worker_of_every_default_version_answers(
    address: Endpoint, torchserve: TorchServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe's own `/ping` fails if one of two workers cannot start for 300 s."""
    monkeypatch.setattr(readiness, "FAULT_S", 0.2)
    del torchserve.answers["/ping"]
    torchserve.register("a", "READY", "UNLOADING")
    torchserve.register("b", "READY")
    torchserve.answers["/models/c"] = [describe("c", "1.0") | {"minWorkers": 0}]
    torchserve.answers["/models"]["models"].append({"modelName": "c"})
    models = torchserve.answers["/models"]
    assert is_live(address)
    time.sleep(0.3)
    assert is_live(address)
    torchserve.register("b", "UNLOADING")
    assert is_live(address), "a worker has just died"
    time.sleep(0.3)
    torchserve.register("b", "READY")
    assert is_live(address), "a worker is ready again"
    torchserve.register("b")
    assert is_live(address)
    time.sleep(0.3)
    message = "b has had no ready worker for 0.2 s."
    assert ask(address, "/ping") == (503, {"code": 503, "type": "NotReadyError", "message": message})
    assert ask(address, "/v2/health/live") == (503, {"error": message})
    torchserve.register("b", "READY")
    assert is_live(address)
    torchserve.register("b")
    assert is_live(address)
    monkeypatch.setattr(readiness, "CONTINUOUS_S", 0.2)
    time.sleep(0.3)
    assert is_live(address), "a second observation, too long after the first"
    torchserve.register("b", "READY")
    assert is_live(address)
    monkeypatch.setattr(readiness, "CONTINUOUS_S", 60)
    torchserve.answers["/models"] = None
    assert is_live(address), "the management API alone does not answer"
    time.sleep(0.3)
    message = "TorchServe's management API has given no valid answer for 0.2 s."
    assert ask(address, "/v2/health/live") == (503, {"error": message})
    torchserve.answers["/models"] = models
    assert is_live(address)


def is_live(address: Endpoint) -> bool:
    answers = ask(address, "/ping"), ask(address, "/v2/health/live")
    return answers == ((200, {"status": "Healthy"}), (200, {"live": True}))


@pytest.mark.usefixtures("ready")
def test_the_server_is_not_ready_without_torchserve(address: Endpoint) -> None:
    for path in (
        "/ready",
        "/ping",
        "/v2/health/ready",
        "/v2/health/live",
        "/v2/models/a/ready",
        "/v2/models/a/versions/1/ready",
    ):
        status, content = ask(address, path)
        assert status == 503
        assert "does not answer" in (content.get("message") or content["error"])


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(
    "models", [b"<html>", {"models": None}, [], {"models": [{}]}, {"models": [{"modelName": "a"}]}]
)
def test_the_server_is_not_ready_if_torchserves_response_is_malformed(
    address: Endpoint, torchserve: TorchServe, models: Any
) -> None:
    torchserve.answers["/models"] = models
    torchserve.answers["/models/a"] = [{"modelName": "a"}]
    status, content = ask(address, "/ready")
    assert status == 503
    assert content["type"] == "NotReadyError"


@pytest.mark.usefixtures("ready")
def test_the_server_is_soon_not_ready_if_torchserve_hangs(
    address: Endpoint, torchserve: TorchServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "REQUEST_TIMEOUT_S", 0.2)
    torchserve.register("a", "READY")
    torchserve.hangs.set()
    paths = ["/ready", "/ping", "/v2/health/live", "/v2/models/a/ready", "/v2/models/a/versions/1.0/ready"] * 4
    with ThreadPoolExecutor(len(paths)) as pool:
        for status, content in pool.map(lambda path: ask(address, path), paths):
            assert status == 503
            assert "has not answered within" in (content.get("message") or content["error"])
    torchserve.hangs.clear()
    assert ask(address, "/ready")[0] == 200


def test_many_requests_cause_one_request(addresses: Endpoints, address: Endpoint, torchserve: TorchServe) -> None:
    torchserve.register("a", "READY")
    opened = Readiness(address, addresses)
    paths = [
        "/ready",
        "/ping",
        "/v2/health/live",
        "/v2/models",
        "/v2/models/a/ready",
        "/v2/models/a/versions/1.0/ready",
    ]
    try:
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda path: ask(address, path)[0], paths * 8)) == {200}
        for path in torchserve.answers:
            assert torchserve.asked.count(path) <= 4, "two half seconds may pass, and `/models` is asked for two lists"
    finally:
        opened.close()


def test_a_draining_server_is_not_ready(address: Endpoint, torchserve: TorchServe, ready: Readiness) -> None:
    torchserve.register("a", "READY")
    ready.drain()
    for path in ("/ready", "/v2/health/ready", "/v2/models/a/ready", "/v2/models/a/versions/1.0/ready"):
        status, content = ask(address, path)
        assert (status, content.get("message") or content["error"]) == (503, "The server is stopping.")
    assert ask(address, "/v2/health/live")[0] == 200


BROKEN = [
    b"",
    b"GET",
    b"\r\n\r\n",
    b"\0" * 100,
    b"GET /ready HTTP/9\r\n\r\n",
    b"X" * 100_000,
    b"POST /ready HTTP/1.1\r\n\r\n",
]


@pytest.mark.usefixtures("ready")
def test_slow_and_malformed_requests_do_not_delay_others(
    address: Endpoint, torchserve: TorchServe, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torchserve.register("a", "READY")
    held = []
    for content in BROKEN:
        connection = open_connection(address)
        held.append(connection)
        connection.sendall(content)
        assert ask(address, "/ready")[0] == 200
    for connection in held:
        connection.close()
    for content in BROKEN:
        connection = open_connection(address)
        connection.sendall(content)
        connection.close()
    assert ask(address, "/ready")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def open_connection(address: Endpoint) -> socket.socket:
    if isinstance(address, Address):
        return socket.create_connection((address.host, address.port))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(address.path))
    return connection
