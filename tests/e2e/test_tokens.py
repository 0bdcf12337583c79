"""TorchServe's token authorization, on: who has no token gets nothing, and everything of this project's own works."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.server_process import Project, Server, run_module, sentiment, serving
from tests.e2e.traffic import wait_until

EXPIRATION_S = 4
WRONG = {"Authorization": "Bearer 12345678"}
KINDS = ("inference", "management")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    project = Project(tmp_path_factory.mktemp("guarded"), mar, disable_token_authorization="false")
    with serving(project) as server:
        yield server
    assert not key_file(server).exists(), "the keys go with the server"


def key_file(server: Server) -> Path:
    return server.project.folder / "key_file.json"


def keys(server: Server) -> dict[str, str]:
    return {kind: json.loads(key_file(server).read_text())[kind]["key"] for kind in KINDS}


def statuses(server: Server, headers: dict[str, dict[str, str]]) -> list[int]:
    asked = [
        ("GET", f"{server.project.inference}/ping", "inference"),
        ("POST", server.project.predictions, "inference"),
        ("GET", f"{server.project.management}/models", "management"),
    ]
    return [
        requests.request(method, url, headers=headers[kind], json={"text": "late"}, timeout=10).status_code
        for method, url, kind in asked
    ]


def test_who_has_no_token_or_another_gets_nothing(guarded: Server) -> None:
    assert key_file(guarded).stat().st_mode & 0o077 == 0, "nobody else may read the keys"
    right = {kind: {"Authorization": f"Bearer {key}"} for kind, key in keys(guarded).items()}
    assert statuses(guarded, right) == [200, 200, 200]
    assert statuses(guarded, dict.fromkeys(KINDS, WRONG)) == [400, 400, 400]
    assert statuses(guarded, {kind: {} for kind in KINDS}) == [400, 400, 400]
    assert statuses(guarded, {"inference": right["management"], "management": right["inference"]}) == [400, 400, 400]


def test_probes_and_stop_work_after_the_tokens_have_expired_too(tmp_path: Path, mar: Path) -> None:
    changes = {"disable_token_authorization": "false", "token_expiration_min": str(EXPIRATION_S / 60)}
    with serving(Project(tmp_path, mar, **changes)) as server:
        for question in ("ready", "live"):
            before = {kind: {"Authorization": f"Bearer {key}"} for kind, key in keys(server).items()}
            wait_until(lambda headers=before: statuses(server, headers) == [400, 400, 400], "an end of the tokens")  # type: ignore[misc]
            result = run_module("server.probe", question, "--config", str(server.project.config))
            assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert "Some requests were not answered." not in server.log


def test_the_command_line_sends_them(guarded: Server) -> None:
    found = keys(guarded)
    tokens = {"SENTIMENT_TOKEN": found["inference"], "SENTIMENT_MANAGEMENT_TOKEN": found["management"]}
    predicted = sentiment(guarded, "predict", "Thank you for the great flight!", "--json", **tokens)
    assert json.loads(predicted.stdout)["label"] == "positive", predicted.stderr
    status = sentiment(guarded, "status", "--json", **tokens)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["versions"][0]["ready"]
    for arguments in (("predict", "late again"), ("status",)):
        refused = sentiment(guarded, *arguments)
        assert refused.returncode == 1
        assert "wants another token" in refused.stderr


def test_keys_that_cannot_be_written_are_a_clear_error(tmp_path: Path, mar: Path) -> None:
    project = Project(tmp_path, mar, disable_token_authorization="false")
    (tmp_path / "key_file.json").mkdir()
    result = run_module("server", "--config", str(project.config))
    assert result.returncode == 1
    assert "disable_token_authorization=true" in result.stderr
