"""`config.properties` as the server reads it, and the project's own."""

import json
from pathlib import Path

import pytest

from server.__main__ import REPLY_LIMIT, environment
from server.properties import ConfigurationError, Properties
from tests.paths import ROOT


def write(folder: Path, content: str) -> Properties:
    (folder / "config.properties").write_text(content)
    return Properties.read(folder / "config.properties")


def test_the_projects_own_keeps_to_this_machine() -> None:
    properties = Properties.read(ROOT / "config.properties")
    assert {address.host for address in properties.addresses} == {"127.0.0.1"}
    assert len({address.port for address in properties.addresses}) == 5
    assert properties.archives == [ROOT / "model_store" / "sentiment.mar"]
    assert properties.values["allowed_urls"].startswith("file://")
    assert json.loads(properties.values["models"])["sentiment"]["1.0"]["marName"] == "sentiment.mar"


def test_defaults_are_torchserves(tmp_path: Path) -> None:
    properties = write(tmp_path, "# nothing\n\n")
    assert [address.port for address in properties.addresses] == [8080, 8081, 8082, 7070, 7071]
    assert properties.archives == []
    assert properties.jvm_arguments == []


def test_a_worker_sends_no_more_than_torchserve_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = write(tmp_path, "max_response_size=1000")
    monkeypatch.delenv(REPLY_LIMIT, raising=False)
    assert environment(properties)[REPLY_LIMIT] == "1000"
    assert environment(write(tmp_path, ""))[REPLY_LIMIT] == "6553500"
    monkeypatch.setenv(REPLY_LIMIT, "999")
    assert environment(properties)[REPLY_LIMIT] == "999"
    monkeypatch.setenv(REPLY_LIMIT, "1001")
    with pytest.raises(ConfigurationError, match="1001 is above max_response_size=1000"):
        environment(properties)
    with pytest.raises(ConfigurationError, match="a number of bytes"):
        environment(write(tmp_path, "max_response_size=1k"))


def test_values_are_read(tmp_path: Path) -> None:
    properties = write(
        tmp_path,
        "inference_address = http://0.0.0.0:9000\nmodel_store=store\nload_models=a=x.mar, y.mar\nvmargs=-Xmx1g -ea\n",
    )
    assert properties.inference.url() == "http://127.0.0.1:9000"
    assert properties.archives == [tmp_path / "store" / "x.mar", tmp_path / "store" / "y.mar"]
    assert properties.jvm_arguments == ["-Xmx1g", "-ea"]


def test_all_are_those_of_the_model_store(tmp_path: Path) -> None:
    for name in ("y.mar", "x.mar", "notes.txt"):
        (tmp_path / name).touch()
    properties = write(tmp_path, "model_store=.\nload_models=all\n")
    assert [path.name for path in properties.archives] == ["x.mar", "y.mar"]


def test_an_ipv6_address_has_brackets(tmp_path: Path) -> None:
    assert write(tmp_path, "inference_address=http://[::1]:8080\n").inference.url() == "http://[::1]:8080"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("management_address=localhost:8081\n", "management_address=localhost:8081; expected http://HOST:PORT"),
        ("metrics_address=http://127.0.0.1\n", "metrics_address=http://127.0.0.1; expected http://HOST:PORT"),
        ("grpc_inference_port=many\n", "grpc_inference_port=many; expected a port's number"),
    ],
)
def test_wrong_addresses_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = write(tmp_path, content).addresses


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No file at"):
        Properties.read(tmp_path / "nowhere")
