"""The command line: exit codes, output streams, JSON."""

import csv
import io
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sentiment import __version__
from sentiment.cli import main
from sentiment.management import MAX_WORKERS_OF_UNKNOWN, RESERVED_BYTES
from sentiment.transport import RETRIES
from tests.client.fake_torchserve import FakeTorchServe, Registered, serving
from tests.client.scripted import Reply, Request, Scripted, error, model, prediction, scripted
from tests.e2e.server_process import free_ports
from tests.paths import CLIENT, ROOT

COMMANDS = ["predict", "explain", "score", "status", "scale", "register", "unregister", "rollout", "rollback"]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "SENTIMENT_URL",
        "SENTIMENT_MANAGEMENT_URL",
        "SENTIMENT_MODEL",
        "SENTIMENT_TOKEN",
        "SENTIMENT_MANAGEMENT_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(random, "uniform", lambda *_: 0)  # no pauses before retries


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    with scripted(model) as server:
        monkeypatch.setenv("SENTIMENT_URL", server.url)
        yield server


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTorchServe]:
    fake = FakeTorchServe()
    with serving(fake) as server:
        monkeypatch.setenv("SENTIMENT_URL", server.url)
        monkeypatch.setenv("SENTIMENT_MANAGEMENT_URL", server.url)
        yield fake


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("SENTIMENT_URL", url)
    monkeypatch.setenv("SENTIMENT_MANAGEMENT_URL", url)
    return url


def type_in(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))


Out = pytest.CaptureFixture[str]


def test_predict_prints_a_line_for_each_text(answering: Scripted, capsys: Out) -> None:
    assert main(["predict", "late", "so\nlate"]) == 0
    first, second = (prediction(text) for text in ("late", "so\nlate"))
    assert capsys.readouterr().out.splitlines() == [
        f"positive  {first['score']:.4f}  late",
        f"negative  {second['score']:.4f}  so late",
    ]


def test_predict_reads_one_text_per_line_of_standard_input(
    answering: Scripted, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "late ✈\r\n\nGr\xfc\xdfe\n".encode("latin-1", "replace") + "✈\n".encode())
    assert main(["predict", "--json"]) == 4
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["late ?", "", "Gr\udcfc\udcdfe", "✈"]
    assert lines[1]["error"].startswith("BlankTextError: ")
    assert lines[2]["error"].startswith("NotUtf8Error: ")
    assert lines[3] == {"text": "✈", **prediction("✈"), "model_version": "1.0"}


@pytest.mark.parametrize("arguments", [["-"], []])
def test_a_dash_stands_for_standard_input(
    answering: Scripted, capsys: Out, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    type_in(monkeypatch, b"late\n")
    assert main(["predict", *arguments]) == 0
    assert capsys.readouterr().out.endswith("  late\n")


def test_predict_reads_a_file_with_one_text_per_line(answering: Scripted, capsys: Out, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"flight {number}" for number in range(200)))
    assert main(["predict", "--file", str(tmp_path / "texts.txt")]) == 0
    assert [line.partition("  flight ")[2] for line in capsys.readouterr().out.splitlines()] == list(
        map(str, range(200))
    )


def test_the_error_of_a_refused_text_is_in_its_line(answering: Scripted, capsys: Out) -> None:
    assert main(["predict", "late", " "]) == 4
    late, blank = capsys.readouterr().out.splitlines()
    assert late.startswith("positive")
    assert blank.startswith("error             BlankTextError: ")


def test_the_token_the_model_and_the_version_are_sent(answering: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENTIMENT_TOKEN", "KEY")
    monkeypatch.setenv("SENTIMENT_MODEL", "other")
    assert main(["predict", "late", "--version", "2.0"]) == 0
    [request] = answering.requests
    assert request.path == "/predictions/other/2.0"
    assert request.headers["Authorization"] == "Bearer KEY"


def test_options_override_the_environment(answering: Scripted, nobody: str) -> None:
    assert main(["predict", "late", "--url", answering.url, "--model", "mine"]) == 0
    assert answering.requests[0].path == "/predictions/mine"


@pytest.mark.parametrize(
    "arguments",
    [["predict", "late"], ["status"], ["scale", "2"], ["register", "a.mar"], ["rollout", "a.mar"], ["rollback"]],
    ids=" ".join,
)
def test_an_unreachable_server_gives_exit_code_3(nobody: str, capsys: Out, arguments: list[str]) -> None:
    assert main(arguments) == 3
    output = capsys.readouterr()
    assert f"{nobody} does not answer" in output.out + output.err


def test_an_overloaded_server_gives_exit_code_3(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    with scripted(lambda _: error(503, "OverloadedError")) as server:
        assert main(["predict", "late", "--url", server.url, "--model", "mine"]) == 3
        assert len(server.requests) == RETRIES + 1
    assert "OverloadedError" in capsys.readouterr().err


def test_a_refusal_gives_exit_code_1(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["predict", "late", "--version", "7.0"]) == 1
    assert capsys.readouterr().err.startswith("error: ModelVersionNotFoundException")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["predict", "late", "--file", "texts.txt"],
        ["scale", "0"],
        ["scale", "many"],
        ["score"],
        ["rollout", "a.mar", "--max-changed", "2"],
        ["rollout", "a.mar", "--drain", "-1"],
        ["score", "a.csv", "--connections", "0"],
    ],
    ids=" ".join,
)
def test_invalid_usage_gives_exit_code_2(arguments: list[str], capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: sentiment" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_and_exit_codes(command: str, capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"  sentiment {command} " in text or f"  sentiment {command}\n" in text
    assert "exit codes:" in text
    assert [line for line in text.splitlines() if len(line) > 82] == []


def test_a_file_is_scored(answering: Scripted, capsys: Out, tmp_path: Path) -> None:
    source = tmp_path / "tweets.csv"
    source.write_text("id,tweet\n1,late\n2, \n")
    assert main(["score", str(source), "--text-column", "tweet", "--json"]) == 4
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report.pop("seconds") >= 0
    scored = tmp_path / "tweets.scored.csv"
    assert report == {"output": str(scored), "rows": 2, "errors": 1, "model_versions": ["1.0"]}
    assert output.err == "", "no progress bar where there is no terminal"
    with scored.open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["positive", ""]


def test_a_file_without_errors_gives_exit_code_0_and_an_existing_output_1(
    answering: Scripted, capsys: Out, tmp_path: Path
) -> None:
    source, output = tmp_path / "tweets.jsonl", tmp_path / "labels.jsonl"
    source.write_text('{"text": "late"}\n')
    command = ["score", str(source), "--output", str(output)]
    assert main(command) == 0
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_an_output_that_cannot_be_written_gives_exit_code_1(answering: Scripted, capsys: Out, tmp_path: Path) -> None:
    source = tmp_path / "tweets.csv"
    source.write_text("text\nlate\n")
    assert main(["score", str(source), "--output", str(tmp_path / "missing" / "out.csv")]) == 1
    assert "out.csv.journal: No such file or directory" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_without_a_traceback(
    answering: Scripted, capsys: Out, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tweets.csv").write_text("text\nlate\n")
    Path("tweets.scored.csv.partial").symlink_to("/dev/full")
    assert main(["score", "tweets.csv"]) == 1
    assert not Path("tweets.scored.csv").exists()
    assert "No space left on device" in capsys.readouterr().err


def test_score_without_a_server_gives_exit_code_3_and_leaves_no_journal(
    answering: Scripted, nobody: str, capsys: Out, tmp_path: Path
) -> None:
    source = tmp_path / "tweets.csv"
    source.write_text("text\nlate\n")
    assert main(["score", str(source)]) == 3
    assert "0 of 1 rows are done" in capsys.readouterr().err
    assert not (tmp_path / "tweets.scored.csv.journal").exists(), "a journal of nothing stands in nobody's way"


def test_status(fake: FakeTorchServe, capsys: Out) -> None:
    fake.versions["2.0"] = Registered("sentiment-2.mar", 2, polls_until_ready=1_000)
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["inference   Healthy", "management  Healthy"]
    assert lines[4].split() == ["1.0", "yes", "2", "READY", "0", "16", "sentiment.mar"]
    assert lines[5].split() == ["2.0", "2", "UNLOADING", "0", "16", "sentiment-2.mar"]
    assert lines[7:] == ["model       A model.", f"commit      {'c' * 12}"]
    assert max(map(len, lines)) <= 80


def test_status_as_json(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["status", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["inference"], report["management"]) == ("Healthy", "Healthy")
    [version] = report["versions"]
    assert (version["version"], version["default"], version["ready"], version["workers"]) == (
        "1.0",
        True,
        True,
        ["READY"] * 2,
    )
    assert report["card"]["exported"] == {"commit": "c" * 40}


def test_status_shows_what_is_available_if_only_one_address_answers(
    fake: FakeTorchServe, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    [port] = free_ports(1)
    assert main(["status", "--management-url", f"http://127.0.0.1:{port}"]) == 3
    first, second = capsys.readouterr().out.splitlines()
    assert first == "inference   Healthy"
    assert "does not answer" in second


def test_status_of_a_missing_model_names_the_registered_models(fake: FakeTorchServe, capsys: Out) -> None:
    fake.others = ("reviews",)
    for command in (["status"], ["scale", "2"], ["rollout", "a.mar"], ["unregister", "1.0"]):
        assert main([*command, "--model", "x"]) == 1
        output = capsys.readouterr()
        assert "There is no model x. Registered: reviews, sentiment. Choose one with --model." in output.err
        assert "does not answer" not in output.out + output.err


def test_status_names_the_other_models(fake: FakeTorchServe, capsys: Out) -> None:
    fake.others = ("reviews",)
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == "models      reviews, sentiment"
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["reviews", "sentiment"]


def test_the_only_model_of_a_server_is_the_default(capsys: Out) -> None:
    names = ["reviews"]

    def answer(request: Request) -> Reply:
        return Reply(200, json.dumps({"models": names}).encode()) if request.path == "/v2/models" else model(request)

    with scripted(answer) as server:
        assert main(["predict", "late", "--url", server.url]) == 0
        assert server.requests[-1].path == "/predictions/reviews"
        names.append("sentiment")
        assert main(["predict", "late", "--url", server.url]) == 0
        assert server.requests[-1].path == "/predictions/sentiment"
        names[:] = ["films", "reviews"]
        assert main(["predict", "late", "--url", server.url]) == 1
    assert "The server has the models films, reviews. Choose one with --model" in capsys.readouterr().err


def test_without_a_list_of_models_the_default_name_is_used(capsys: Out) -> None:
    """TorchServe without the door does not list its models."""
    with scripted(lambda _: error(404, "ModelNotFoundException", "Model not found: sentiment")) as server:
        assert main(["predict", "late", "--url", server.url]) == 1
    assert capsys.readouterr().err.endswith("Model not found: sentiment. Choose the server's model with --model.\n")


def test_register_requires_a_name_if_the_server_has_several_models(capsys: Out) -> None:
    listed = {"models": [{"modelName": name, "modelUrl": f"{name}.mar"} for name in ("films", "reviews")]}
    with scripted(lambda _: Reply(200, json.dumps(listed).encode())) as server:
        assert main(["register", "hotels.mar", "--management-url", server.url]) == 1
    assert (
        "The server has the models films, reviews. Use --name with one of them to register another"
        in capsys.readouterr().err
    )


def test_the_error_for_a_missing_model_names_the_servers_models(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["predict", "late", "--model", "reviews"]) == 1
    assert capsys.readouterr().err.endswith("The server has sentiment. Choose one with --model.\n")


def test_more_workers_than_the_machine_can_use_require_force(fake: FakeTorchServe, capsys: Out) -> None:
    fake.polls_until_ready = 0
    fake.machine = {"machine": {"cores": 4, "memory_bytes": RESERVED_BYTES + 6 * 2**28, "worker_bytes": 2**28}}
    assert main(["scale", "7"]) == 1
    report = "7 workers are too many: the useful maximum here is 6"
    assert report in capsys.readouterr().err, "by the memory"
    assert main(["register", "sentiment-2.mar", "--workers", "5"]) == 1
    assert "5 workers are too many: the useful maximum here is 4" in capsys.readouterr().err, (
        "two of version 1.0 are there"
    )
    assert (list(fake.versions), fake.versions["1.0"].workers) == (["1.0"], 2)
    assert main(["scale", "6"]) == 0
    fake.machine = {"machine": {"cores": 2, "memory_bytes": 2**40, "worker_bytes": 2**28}}
    assert main(["scale", "1000"]) == 1
    assert (
        "The server has 2 cores and 1024.0 GiB of memory; a worker takes 256 MiB. Use --force"
        in capsys.readouterr().err
    )
    assert main(["scale", "5"]) == 0, "fewer than there are is never too many"
    assert main(["scale", "9", "--force"]) == 0
    assert fake.versions["1.0"].workers == 9


def test_the_workers_of_other_versions_and_models_count_towards_the_memory(fake: FakeTorchServe, capsys: Out) -> None:
    fake.polls_until_ready = 0
    machine = {"cores": 8, "memory_bytes": RESERVED_BYTES + 8 * 2**28, "worker_bytes": 2**28}
    fake.machine = {"machine": machine}
    assert main(["scale", "9"]) == 1
    assert "9 workers are too many: the useful maximum here is 8" in capsys.readouterr().err
    fake.versions["2.0"] = Registered("sentiment-2.mar", 2, started=1)
    fake.others = ("reviews",)
    assert main(["scale", "4"]) == 1
    error = capsys.readouterr().err
    assert "4 workers are too many: the useful maximum here is 3" in error
    assert " The workers of other versions (reviews 1.0: 3, sentiment 2.0: 2) take 1280 MiB." in error
    fake.machine_of_others = {"machine": machine | {"worker_bytes": 2**27}}
    assert main(["scale", "5"]) == 1
    assert "5 workers are too many: the useful maximum here is 4" in capsys.readouterr().err, (
        "a worker of reviews takes half as much"
    )
    assert main(["scale", "4"]) == 0
    assert main(["register", "films.mar", "--name", "films", "--workers", "3"]) == 1
    assert "3 workers are too many: the useful maximum here is 1" in capsys.readouterr().err
    assert "POST /models" not in fake.log


@pytest.mark.parametrize(
    "machine",
    [{}, *({"machine": each} for each in (None, 5, {"cores": "2"}, {"cores": 2, "memory_bytes": 2**30}))],
    ids=repr,
)
def test_the_number_of_workers_is_limited_for_a_server_that_reports_no_machine(
    fake: FakeTorchServe, capsys: Out, machine: dict[str, object]
) -> None:
    fake.machine = machine
    assert main(["scale", str(MAX_WORKERS_OF_UNKNOWN + 1)]) == 1
    assert "Use --force to start them anyway" in capsys.readouterr().err
    assert main(["scale", "12"]) == 0


def test_version(capsys: Out) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"sentiment {__version__}\n"
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_explain(capsys: Out) -> None:
    tokens = [
        {"token": "xxbos", "weight": 0.0, "start": 0, "end": 0},
        {"token": "late", "weight": 0.5, "start": 0, "end": 4},
        {"token": "good", "weight": -0.625, "start": 5, "end": 9},
    ]

    def answer(request: Request) -> Reply:
        reply = model(request)
        return (
            reply
            if reply.status != 200
            else Reply(200, json.dumps(json.loads(reply.body) | {"tokens": tokens}).encode())
        )

    with scripted(answer) as server:
        assert main(["explain", "late good", "--url", server.url, "--model", "mine"]) == 0
        assert server.requests[-1].path == "/explanations/mine"
        score = prediction("late good")["score"]
        assert capsys.readouterr().out.splitlines() == [
            f"negative  {score:.4f}  late good",
            "  -0.6250  good",
            "  +0.5000  late",
            "  +0.0000  xxbos  (no word)",
        ]
        assert main(["explain", "late good", " ", "--url", server.url, "--json"]) == 4
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert first == {"text": "late good", "model_version": None, **prediction("late good"), "tokens": tokens}
        assert second["error"].startswith("BlankTextError: ")


@pytest.mark.parametrize(
    ("predicted", "weights", "printed"),
    [
        (
            {"labels": ["late", "rude"], "scores": {"late": 0.5625, "rude": 0.75, "long waiting time": 0.25}},
            {"rude": 0.25, "late": 0.5},
            ["rude 0.7500, late 0.5625  Late", "     rude     late", "  +0.2500  +0.5000  late"],
        ),
        (
            {"labels": [], "scores": {"late": 0.25, "long waiting time": 0.375}},
            {"long waiting time": 0.5},
            ["no label  Late", "  long waitin…", "       +0.5000  late"],
        ),
        (
            {"labels": list("abcde"), "scores": dict.fromkeys("abcde", 0.5)},
            dict.fromkeys("abcde", 0.5),
            [
                "a 0.5000, b 0.5000, c 0.5000, d 0.5000, e 0.5000  Late",
                "  ".join(["", *(letter.rjust(7) for letter in "abcd"), "…"]),
                "  +0.5000" * 4 + "  late",
            ],
        ),
        ({"value": 3.25}, None, ["3.25      Late", "  +0.7500  late"]),
        (
            {"label": "Sport", "score": 0.5, "scores": {"Sport": 0.5, "Wirtschaft": 0.5}},
            None,
            ["Sport       0.5000  Late", "  +0.7500  late"],
        ),
    ],
    ids=["labels", "no label", "many labels", "number", "long label"],
)
def test_an_explanation_has_the_form_of_its_kind_of_model(
    capsys: Out, predicted: dict[str, Any], weights: dict[str, float] | None, printed: list[str]
) -> None:
    token: dict[str, Any] = {"token": "late", "weight": 0.75, "start": 0, "end": 4}
    reply = predicted | {"tokens": [token | ({"weights": weights} if weights else {})]}
    with scripted(lambda _: Reply(200, json.dumps(reply).encode())) as server:
        assert main(["explain", "Late", "--url", server.url, "--model", "mine"]) == 0
    assert capsys.readouterr().out.splitlines() == printed


def test_a_line_fits_the_terminal_for_any_number_of_labels(capsys: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    labels = [f"label {number}" for number in range(20)]
    reply = {"labels": labels, "scores": dict.fromkeys(labels, 0.5)}
    with scripted(lambda _: Reply(200, json.dumps(reply).encode())) as server:
        assert main(["predict", "late " * 30, "--url", server.url, "--model", "mine"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert len(line) == 80
    assert line.startswith("label 0 0.5000, label 1 0.5000, label 2…  late late")


def test_scale(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["scale", "4"]) == 0
    assert capsys.readouterr().out == "Version 1.0 of sentiment (sentiment.mar) has 4 READY.\n"
    assert main(["scale", "1", "--version", "1.0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": "1.0", "default": True, "workers": 1}


def test_register(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["register", "sentiment-2.mar", "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": "2.0", "default": False, "workers": 1}
    assert main(["register", "sentiment-3.mar"]) == 0
    assert fake.versions["3.0"].workers == 2
    assert main(["register", "none.mar"]) == 1
    assert "model store" in capsys.readouterr().err


def test_a_registered_archive_is_not_registered_again(fake: FakeTorchServe, capsys: Out) -> None:
    """A repeated registration fills the disk: the server unpacks the archive before it answers 409."""
    fake.versions["2.0"] = Registered("sentiment-2.mar", 1, polls_until_ready=2)
    assert main(["register", "sentiment-2.mar"]) == 0
    output = capsys.readouterr()
    assert output.out == "Version 2.0 of sentiment (sentiment-2.mar) has 1 READY.\n"
    assert "is already registered from sentiment-2.mar" in output.err
    assert main(["register", "sentiment-2.mar", "--workers", "3"]) == 0
    assert fake.versions["2.0"].workers == 3
    assert "POST /models" not in fake.log


def test_unregister(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["register", "sentiment-2.mar"]) == 0
    capsys.readouterr()
    assert main(["unregister", "2.0", "--drain", "0", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"version": "2.0", "removed": True}
    assert output.err.endswith("Removed version 2.0.\n")
    assert main(["unregister", "2.0"]) == 1
    assert main(["unregister", "1.0"]) == 1
    assert "Version 1.0 is the only version of sentiment. To remove the model, use --force." in capsys.readouterr().err
    assert main(["register", "sentiment-2.mar"]) == 0
    assert main(["unregister", "1.0", "--force"]) == 1
    assert "Version 1.0 is the default" in capsys.readouterr().err
    assert list(fake.versions) == ["1.0", "2.0"]


def test_a_version_that_is_not_removed_gives_exit_code_1(
    fake: FakeTorchServe, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sentiment.rollout.QUEUE_TIMEOUT_S", 0)
    fake.versions["2.0"] = Registered("sentiment-2.mar", 1, pending=99)
    assert main(["unregister", "2.0", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out) == {"version": "2.0", "removed": False}
    assert "Version 2.0 stays registered: " in output.err
    assert list(fake.versions) == ["1.0", "2.0"]


def test_a_version_that_does_not_load_is_unregistered(fake: FakeTorchServe, capsys: Out) -> None:
    fake.polls_until_ready = -1
    assert main(["register", "sentiment-2.mar"]) == 1
    assert "does not load" in capsys.readouterr().err
    assert list(fake.versions) == ["1.0"]


def test_a_rollout_prints_each_step_and_the_command_to_go_back(fake: FakeTorchServe, capsys: Out) -> None:
    assert main(["rollout", "sentiment-2.mar", "--drain", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = ["The default is version 1.0", "Registered", "Warmed", "Compared", "Version 2.0 is the default"]
    for start, line in zip(starts, lines, strict=False):
        assert line.startswith(start)
    assert "To go back to version 1.0: sentiment rollback sentiment.mar" in lines
    assert main(["rollback", "sentiment.mar", "--drain", "0"]) == 0
    assert list(fake.versions) == ["1.0"]


def test_a_rollout_with_json_prints_one_object_and_its_steps_to_standard_error(
    fake: FakeTorchServe, capsys: Out
) -> None:
    assert main(["rollout", "sentiment-2.mar", "--drain", "0", "--keep-old", "--json"]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["new"], report["old"], report["old_kept"]) == ("2.0", "1.0", True)
    assert report["rollback"] == "sentiment rollback sentiment.mar"
    assert report["comparison"]["changes"] == []
    assert "Warmed version 2.0 with 30 tweets to an airline (--sample names other texts)." in output.err


def test_a_failed_rollout_gives_exit_code_1(fake: FakeTorchServe, capsys: Out, tmp_path: Path) -> None:
    fake.label = lambda version, _: version
    sample = tmp_path / "sample.txt"
    sample.write_text("late\n\nearly\n")
    assert main(["rollout", "sentiment-2.mar", "--sample", str(sample)]) == 1
    output = capsys.readouterr()
    assert "Compared: 2 of 2 labels changed" in output.out
    assert "Warmed version 2.0 with 2 texts." in output.out
    assert "error: 100% of the labels changed" in output.err
    assert list(fake.versions) == ["1.0"]


@pytest.mark.parametrize("content", [None, "\n \n"], ids=["missing", "without a text"])
def test_an_empty_sample_gives_exit_code_1(
    fake: FakeTorchServe, capsys: Out, tmp_path: Path, content: str | None
) -> None:
    sample = tmp_path / "sample.txt"
    if content is not None:
        sample.write_text(content)
    assert main(["rollout", "sentiment-2.mar", "--sample", str(sample)]) == 1
    assert "sample.txt" in capsys.readouterr().err
    assert "POST /models" not in fake.log


def test_a_closed_output_causes_no_traceback(answering: Scripted, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("late\n" * 20_000)
    command = [sys.executable, "-m", "sentiment", "predict", "--file", str(texts), "--url", answering.url]
    with subprocess.Popen(command, cwd=CLIENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("positive")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_the_client_imports_no_other_folder() -> None:
    program = (
        "import sys, sentiment.cli, sentiment.tables; "
        "print([n for n in sys.modules if n.split('.')[0] in ('handler', 'training', 'server', 'pyarrow')])"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=CLIENT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
