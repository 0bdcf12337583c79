"""Tests of bearer keys with a real server: the paths that require a key, and the keys that are accepted."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.server_process import ONE_WORKER, Project, Server, run_module, sentiment, serving
from tests.e2e.traffic import TEXT

ONE, TWO = "0123456789abcdef" * 2, "-._~+/AZaz09" * 3 + "=="
WRONG = "fedcba9876543210" * 2


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keys")
    keys = folder / "keys"
    keys.write_text(f"{ONE}\n{TWO}\n")
    with serving(Project(folder, mar, models=ONE_WORKER), SENTIMENT_KEY_FILE=str(keys)) as server:
        yield server
    for key in (ONE, TWO, WRONG):
        assert key not in server.log


def bearer(key: str, scheme: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{scheme} {key}"}


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.yaml", "/ready", "/ping", "/v2/health/live", "/v2/health/ready"]
)
def test_paths_without_predictions_need_no_key(guarded: Server, path: str) -> None:
    reply = requests.get(guarded.project.inference + path, timeout=60)
    assert reply.status_code == 200, reply.text


def test_metrics_and_the_probe_need_no_key(guarded: Server) -> None:
    for path in ("/metrics", "/metrics/door"):
        assert requests.get(guarded.project.metrics + path, timeout=60).status_code == 200
    for question in ("ready", "live"):
        probe = run_module("server.probe", question, "--config", str(guarded.project.config))
        assert probe.returncode == 0, probe.stderr


POSTED = (
    *("/predictions/sentiment", "/predictions/sentiment/1.0", "/explanations/sentiment", "/invocations"),
    *("/v1/models/sentiment:predict", "/v2/models/sentiment/infer", "/v2/models/sentiment/versions/1.0/infer"),
)
ASKED = (
    *("/v2", "/v2/models/sentiment", "/v2/models/sentiment/ready", "/predictions/sentiment", "/nothing", "/ready/"),
    *("//ready", "/v2/health/../models/sentiment", "/%2e/ready", "/readyx", "/v2%2fhealth%2fready"),
)
NO_KEYS: tuple[dict[str, str], ...] = (
    *({}, bearer(""), bearer(WRONG), bearer(ONE[:-1]), bearer(ONE + "0"), bearer(ONE.upper())),
    *(bearer(ONE, "Basic"), bearer(ONE, "Token"), {"Authorization": ONE}, {"X-Authorization": f"Bearer {ONE}"}),
)


def check_refused(status: int, headers: http.client.HTTPMessage, body: bytes, path: str) -> None:
    assert status == 401, (path, body)
    assert headers["WWW-Authenticate"] == "Bearer"
    assert headers["Content-Type"] == "application/json"
    assert list(json.loads(body)) == (["error"] if path.startswith("/v2") else ["code", "type", "message"])


def ask(url: str, method: str, path: str, *headers: tuple[str, str]) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send a request without changes to its path, and with repeated headers if they are given twice."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest(method, path)
    for name, value in headers:
        connection.putheader(name, value)
    if method == "POST":
        connection.putheader("Content-Length", "10")
    connection.endheaders(b"late again" if method == "POST" else None)
    reply = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply.status, reply.headers, body


@pytest.mark.parametrize("headers", NO_KEYS, ids=str)
def test_every_other_path_requires_a_key(guarded: Server, headers: dict[str, str]) -> None:
    for method, path in (*(("POST", path) for path in POSTED), *(("GET", path) for path in ASKED)):
        check_refused(*ask(guarded.project.inference, method, path, *headers.items()), path)
    for path in ("/models", "/models/sentiment", "/nothing", "/"):
        check_refused(*ask(guarded.project.management, "GET", path, *headers.items()), path)
    for method in ("POST", "DELETE"):
        check_refused(*ask(guarded.project.management, method, "/models/sentiment", *headers.items()), path)


def test_no_path_bypasses_the_key(guarded: Server) -> None:
    """A path that begins with /docs/ never leaves /docs/."""
    for path in ("/docs/../predictions/sentiment", "/docs/..%2fpredictions%2fsentiment", "/docs/%2e%2e/v2"):
        for method in ("GET", "POST"):
            status, _, body = ask(guarded.project.inference, method, path)
            assert status in (404, 405), body


def test_a_repeated_header_is_refused(guarded: Server) -> None:
    """A server behind the door might read another of the headers than the door does."""
    for keys in ((ONE, ONE), (ONE, WRONG), (WRONG, ONE)):
        twice = [("Authorization", f"Bearer {key}") for key in keys]
        check_refused(*ask(guarded.project.inference, "POST", "/predictions/sentiment", *twice), "")
        check_refused(*ask(guarded.project.management, "GET", "/models", *twice), "")


@pytest.mark.parametrize("key", [ONE, TWO])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_every_key_of_the_file_is_accepted(guarded: Server, key: str, scheme: str) -> None:
    headers = bearer(key, scheme)
    reply = requests.post(guarded.project.predictions, data=b"late again", headers=TEXT | headers, timeout=60)
    assert reply.json()["label"] == "negative"
    assert requests.get(f"{guarded.project.inference}/v2", headers=headers, timeout=60).status_code == 200
    assert requests.get(f"{guarded.project.management}/models", headers=headers, timeout=60).status_code == 200


def test_a_missing_key_is_refused_before_the_body_arrives(guarded: Server) -> None:
    connection = http.client.HTTPConnection(guarded.project.inference.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/predictions/sentiment")
    connection.putheader("Content-Length", "2000000")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_the_command_line_sends_the_key(guarded: Server) -> None:
    tokens = {"SENTIMENT_TOKEN": ONE, "SENTIMENT_MANAGEMENT_TOKEN": TWO}
    for command in (["predict", "late again"], ["status"]):
        with_key = sentiment(guarded, *command, **tokens)
        assert with_key.returncode == 0, with_key.stderr
        without = sentiment(guarded, *command)
        assert without.returncode != 0
        assert "Expected the header Authorization: Bearer KEY" in without.stderr


def test_an_unusable_file_of_keys_prevents_the_start(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar)
    (tmp_path / "keys").write_text(f"{ONE}\nhunter2\n")
    server = Server(project, None, None, SENTIMENT_KEY_FILE=str(tmp_path / "keys"))
    assert server.wait() == 1
    assert "keys, line 2: the key has 7 characters; expected one key per line" in server.log
    assert "hunter2" not in server.log


def test_torchserves_tokens_prevent_the_start(tmp_path: Path, mar: Path) -> None:
    server = Server(Project(tmp_path, mar, disable_token_authorization="false"))
    assert server.wait() == 1
    assert "To require bearer keys, set SENTIMENT_KEY_FILE to a file with one key per line" in server.log
