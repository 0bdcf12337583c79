"""Tests of `server.properties`, and of the project's own `config.properties`."""

import json
from pathlib import Path

import pytest

from handler.limits import whole_number
from server.cli import REPLY_LIMIT, environment
from server.properties import ConfigurationError, Properties
from tests.paths import ROOT

AS_JAVA_READS = json.loads((ROOT / "tests" / "data" / "properties.json").read_text(encoding="utf-8"))
"""Pairs of a file, with one character for each byte, and the settings that `java.util.Properties.load` reads from it
(OpenJDK 17), without the empty name. The files are cases of Java's documentation, and random characters and escapes."""


def write(folder: Path, content: str | bytes) -> Properties:
    content = content if isinstance(content, bytes) else content.encode("latin-1")
    (folder / "config.properties").write_bytes(content)
    return Properties.read(folder / "config.properties")


def test_the_projects_configuration_listens_on_loopback_only() -> None:
    properties = Properties.read(ROOT / "config.properties")
    assert {address.host for address in properties.addresses} == {"127.0.0.1"}
    assert len({address.port for address in properties.addresses}) == 5
    assert properties.models == {"sentiment.mar": "sentiment.mar"}
    assert properties.model_store == ROOT / "model_store"
    assert properties.metrics_config == ROOT / "metrics.yaml"
    assert properties.values["allowed_urls"].startswith("file://")
    assert json.loads(properties.values["models"])["sentiment"]["1.0"]["marName"] == "sentiment.mar"


def test_the_defaults_are_those_of_torchserve(tmp_path: Path) -> None:
    properties = write(tmp_path, "# nothing\n\n")
    assert [address.port for address in properties.addresses] == [8080, 8081, 8082, 7070, 7071]
    assert properties.jvm_arguments == []
    assert properties.metrics_config is None


@pytest.mark.parametrize(("content", "values"), AS_JAVA_READS)
def test_a_file_is_read_as_java_reads_it(tmp_path: Path, content: str, values: dict[str, str]) -> None:
    read = dict(write(tmp_path, content).values)
    read.pop("", None)
    assert read == values


def test_the_limit_for_replies_is_at_most_the_size_that_torchserve_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = write(tmp_path, "max_response_size=1000")
    monkeypatch.delenv(REPLY_LIMIT, raising=False)
    assert environment(properties)[REPLY_LIMIT] == "1000"
    assert environment(write(tmp_path, ""))[REPLY_LIMIT] == "6553500"
    monkeypatch.setenv(REPLY_LIMIT, "999")
    assert environment(properties)[REPLY_LIMIT] == "999"
    monkeypatch.setenv(REPLY_LIMIT, "1001")
    with pytest.raises(ConfigurationError, match="1001 is above max_response_size=1000"):
        environment(properties)
    monkeypatch.setenv(REPLY_LIMIT, " ")
    assert environment(properties)[REPLY_LIMIT] == "1000", "a blank value counts as not set"
    with pytest.raises(ConfigurationError, match="a number of bytes"):
        environment(write(tmp_path, "max_response_size=1k"))
    with pytest.raises(ConfigurationError, match=r"max_response_size=9{40}; expected a number of bytes up to"):
        environment(write(tmp_path, f"max_response_size={'9' * 5_000}"))


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "CLASSIFIER_MAX_TEXTS", REPLY_LIMIT])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1k", "four", "²", "9" * 19, "9" * 5_000])
def test_a_variable_that_the_handler_would_refuse_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"The environment variable {name} is .*expected a whole number above"):
        environment(write(tmp_path, ""))
    with pytest.raises(ValueError, match="whole number above 0"):
        whole_number(name, 1)


def test_a_blank_number_of_threads_counts_as_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    variables = environment(write(tmp_path, ""))
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == "", "the empty value of this variable has a meaning"


def test_values_are_read(tmp_path: Path) -> None:
    properties = write(
        tmp_path,
        "inference_address : http://0.0.0.0:9000\nmodel_store store\n"
        "load_models=a=x.mar,\\\n  y.mar\nvmargs=-Xmx1g -ea\n",
    )
    assert properties.inference.url() == "http://127.0.0.1:9000"
    assert properties.model_store == tmp_path / "store"
    assert properties.models == {"a=x.mar": "x.mar", "y.mar": "y.mar"}
    assert properties.jvm_arguments == ["-Xmx1g", "-ea"]


def test_environment_variables_override_settings_as_in_torchserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("TS_MANAGEMENT_ADDRESS", "http://127.0.0.1:9001")
    content = "inference_address=http://127.0.0.1:$$PORT$$\n"
    properties = write(tmp_path, content)
    assert (properties.inference.port, properties.management.port) == (9000, 8081)
    properties = write(tmp_path, content + "enable_envvars_config=true\n")
    assert (properties.inference.port, properties.management.port) == (9000, 9001)
    monkeypatch.delenv("PORT")
    with pytest.raises(ConfigurationError, match="line 1: the environment variable PORT is not set"):
        write(tmp_path, content)


def test_load_models_all_lists_the_archives_of_the_model_store(tmp_path: Path) -> None:
    for name in ("y.mar", "x.mar", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "sentiment").mkdir()
    assert list(write(tmp_path, "model_store=.\nload_models=all\n").models) == ["x.mar", "y.mar"]


@pytest.mark.parametrize("settings", ["", "load_models=\n", "load_models=all\n"])
def test_no_model_is_an_error(tmp_path: Path, settings: str) -> None:
    with pytest.raises(ConfigurationError, match=r"load_models=.*expected, for instance, load_models=sentiment\.mar"):
        _ = write(tmp_path, f"model_store=.\n{settings}").models


def test_a_model_store_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"Cannot read the model store, .*none: No such file or directory"):
        _ = write(tmp_path, "model_store=none\nload_models=all\n").models


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"sentiment": {"1.0": {"batchSize": 16}', "models is not JSON"),
        ('["sentiment"]', "models is not a JSON object of models"),
        ('{"sentiment": {"batchSize": 16}}', "models is not a JSON object of models"),
        ('{"a": {"1.0": {"batch_size": 16}}}', "models has batch_size for a 1.0, but TorchServe would ignore it"),
        (
            '{"a": {"1.0": {"maxBatchDelay": 0}}}',
            "models has maxBatchDelay 0 for a 1.0; expected a whole number from 1",
        ),
        ('{"a": {"1.0": {"batchSize": "16"}}}', "models has batchSize '16' for a 1.0"),
        ('{"a": {"1.0": {"minWorkers": 1.5}}}', "models has minWorkers 1.5 for a 1.0"),
        ('{"a": {"1.0": {"maxWorkers": true}}}', "models has maxWorkers True for a 1.0"),
        ('{"a": {"1.0": {"responseTimeout": 2147483648}}}', "from 1 to 2147483647"),
    ],
)
def test_malformed_model_settings_are_an_error(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = write(tmp_path, f"load_models=a.mar\nmodels={value}\n").models


ADDRESS = "expected http://HOST:PORT with a port from 1 to 65534"
PORT = "expected a port number from 1 to 65534"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("management_address=localhost:8081\n", f"management_address=localhost:8081; {ADDRESS}"),
        ("metrics_address=http://127.0.0.1\n", f"metrics_address=http://127.0.0.1; {ADDRESS}"),
        ("metrics_address=http://127.0.0.1:0\n", ADDRESS),
        ("metrics_address=http://127.0.0.1:65535\n", ADDRESS),
        ("metrics_address=http://127.0.0.1:99999999\n", ADDRESS),
        ("inference_address=https://127.0.0.1:8443\n", "terminate TLS in a proxy"),
        ("inference_address=unix:/tmp/inference.sock\n", ADDRESS),
        ("inference_address=http://[::1]:8080\n", "accepts no IPv6 address"),
        ("inference_address=http://127.0.0.1:8080/\n", ADDRESS),
        ("inference_address=http://127.0.0.1:8080 \n", ADDRESS),
        ("grpc_inference_port=many\n", f"grpc_inference_port=many; {PORT}"),
        ("grpc_inference_port=7070 \n", "without blanks"),
        ("grpc_management_port=0\n", PORT),
        ("use_native_io=false\ninitial_worker_port=70000\n", PORT),
        ("grpc_inference_port=8080\n", "inference_address and grpc_inference_port have the same port, 8080"),
        ("metrics_address=http://127.0.0.1:8081\n", "management_address and metrics_address have the same port"),
        ("management_address=http://127.0.0.1:8080\n", "inference_address and management_address have the same port"),
        ("metrics_address=http://0.0.0.0:8081\n", "management_address and metrics_address have the same port"),
        ("use_native_io=false\ninitial_worker_port=7071\n", "grpc_management_port and initial_worker_port"),
    ],
)
def test_the_error_for_a_wrong_address_names_the_setting(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = write(tmp_path, content).addresses


def test_one_port_may_be_used_on_two_hosts(tmp_path: Path) -> None:
    properties = write(tmp_path, "management_address=http://127.0.0.2:8080\n")
    assert [address.port for address in properties.addresses] == [8080, 8080, 8082, 7070, 7071]


@pytest.mark.parametrize("value", ["false", "False", "no", ""])
def test_the_error_for_torchserves_tokens_mentions_bearer_keys(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"disable_token_authorization=.*set SENTIMENT_KEY_FILE to a file"):
        write(tmp_path, f"disable_token_authorization={value}\n").check_tokens()


def test_disabled_tokens_are_accepted(tmp_path: Path) -> None:
    write(tmp_path, "").check_tokens()
    write(tmp_path, "disable_token_authorization=TRUE\n").check_tokens()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# one\nload_models=caf\xc3\xa9=x.mar\n", r"line 2: .* would misread 'é'; write \\u00e9"),
        (b"# one\na=1,\\\n  \xf0\x9f\x98\x80\n", r"line 2: .* write \\ud83d\\ude00"),
        (b"\xef\xbb\xbfinference_address=http://127.0.0.1:9000\n", "line 1: TorchServe takes the byte-order mark"),
        ("inference_address=http://127.0.0.1:9000\n".encode("utf-16"), "line 1: the line is not text in ASCII"),
        (b"a=1\nb=\\u00g9\n", r"line 2: expected four hexadecimal digits"),
    ],
)
def test_characters_that_java_would_misread_are_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        write(tmp_path, content)


def test_comments_may_have_any_encoding(tmp_path: Path) -> None:
    assert write(tmp_path, b"# caf\xc3\xa9 in UTF-8\n! caf\xe9 in Latin-1\na=1\n").values == {"a": "1"}


def test_the_error_for_an_unreadable_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No file at"):
        Properties.read(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"Cannot read .*: Is a directory"):
        Properties.read(tmp_path)
    with pytest.raises(ConfigurationError, match=r"Cannot read .*: File name too long"):
        Properties.read(tmp_path / ("t" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigurationError, match=r"Cannot read .*loop: Too many levels of symbolic links"):
        Properties.read(tmp_path / "loop")


def test_paths_are_relative_to_the_folder_of_the_file_itself(tmp_path: Path) -> None:
    """TorchServe's working folder is the folder of the file, not that of a link to it."""
    (tmp_path / "real").mkdir()
    write(tmp_path / "real", "")
    (tmp_path / "link.properties").symlink_to(tmp_path / "real" / "config.properties")
    assert Properties.read(tmp_path / "link.properties").model_store == tmp_path / "real" / "model_store"


def test_models_of_the_command_line_replace_those_of_the_configuration(tmp_path: Path) -> None:
    properties = write(tmp_path, "load_models=all\na=1\n").with_models(["reviews", "films=reviews-2.mar"])
    assert properties.models == {"reviews=reviews.mar": "reviews.mar", "films=reviews-2.mar": "reviews-2.mar"}
    assert properties.values["a"] == "1"


@pytest.mark.parametrize(
    "entries", [[""], ["="], ["a="], ["=a.mar"], ["a,b"], ["a b"], ["é"], ["a/b"], ["a", "a=b.mar"]]
)
def test_a_malformed_model_option_is_rejected(tmp_path: Path, entries: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"--model .*expected"):
        write(tmp_path, "").with_models(entries)


def test_every_model_has_settings(tmp_path: Path) -> None:
    first = {"1.0": {"marName": "a.mar", "batchSize": 16}, "2.0": {"marName": "a-2.mar", "batchSize": 8}}
    configured = {"a": first, "b": {"1.0": {"marName": "b.mar", "minWorkers": 3}}}
    properties = write(tmp_path, f"models={json.dumps(configured)}\n")
    models = [("a", "2.0", "a-2.mar"), ("a", "3.0", "a-3.mar"), ("b", "1.0", "b.mar"), ("c", "1.0", "c.mar")]
    settings = json.loads(properties.settings_of(models))
    assert settings["a"] == first | {"3.0": {"marName": "a-3.mar", "batchSize": 16}}
    assert settings["b"] == configured["b"]
    assert settings["c"] == {"1.0": {"marName": "c.mar", "batchSize": 16}}
    one_worker = json.loads(properties.settings_of(models, workers=1))
    assert one_worker["c"]["1.0"] == {"marName": "c.mar", "batchSize": 16, "minWorkers": 1, "maxWorkers": 1}
    assert one_worker["b"]["1.0"]["minWorkers"] == 3, "the configured number has precedence"
    assert json.loads(write(tmp_path, "").settings_of([("c", "1.0", "c.mar")])) == {"c": {"1.0": {"marName": "c.mar"}}}
