"""The command line against a real TorchServe."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from handler.classifier import TextClassifier
from sentiment.cli import main
from sentiment.inference import InferenceClient
from sentiment.management import ManagementClient
from server import probe
from server.properties import Properties
from tests.approximately import approximately
from tests.docs.test_documents import NUMBERS_WITHIN, comparable, with_addresses_of
from tests.e2e.report import Report
from tests.e2e.server_process import Project, Server, sentiment, serving, write_changed
from tests.e2e.traffic import TEXTS, Traffic, labels_of
from tests.paths import CLIENT, MODEL, TOY_TWEETS
from training.export.archive import archive

RAISES = b"""
class Handler:
    def initialize(self, context):
        raise ValueError("no such model")

    def handle(self, data, context):
        return []
"""


def readme_blocks(kind: str) -> list[str]:
    text = (CLIENT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_readme_print_what_it_shows(server: Server) -> None:
    examples = [example for block in readme_blocks("console") for example in re.split(r"^\$ ", block, flags=re.M)[1:]]
    assert examples
    for example in examples:
        command, _, output = example.partition("\n")
        program, *arguments = shlex.split(command)
        assert program == "sentiment"
        result = sentiment(server, *arguments)
        assert result.returncode == 0, result.stderr
        assert comparable(result.stdout.strip()) == approximately(comparable(output.strip()), NUMBERS_WITHIN), (
            f"{command}\n{result.stdout}"
        )


def test_the_python_code_of_the_readme_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for block in readme_blocks("python"):
        exec(with_addresses_of(server, block), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("positive 0.9")
    assert lines[3:] == ["400 BlankTextError", "1.0 True True"]


def test_predict(server: Server) -> None:
    result = sentiment(server, "predict", "Thank you for the great flight! ✈", " ", "--json")
    assert result.returncode == 4, result.stderr
    good, blank = map(json.loads, result.stdout.splitlines())
    assert (good["label"], good["model_version"]) == ("positive", "1.0")
    assert good["score"] == good["scores"]["positive"] > 0.9
    assert blank["error"].startswith("BlankTextError: The text is empty or blank.")


def test_score(server: Server, tmp_path: Path) -> None:
    """Toy tweets for several requests, with a text that is too long and a blank text."""
    with TOY_TWEETS.open(newline="", encoding="utf-8") as file:
        tweets = list(csv.DictReader(file))
    rows = tweets * (400 // len(tweets) + 1)
    rows[150] = rows[150] | {"text": " "}
    rows[250] = rows[250] | {"text": "a" * 20_001}
    source = tmp_path / "tweets.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = sentiment(server, "score", str(source), "--json")
    assert result.returncode == 4, result.stderr
    report = json.loads(result.stdout)
    assert (report["rows"], report["errors"], report["model_versions"]) == (len(rows), 2, ["1.0"])
    with (tmp_path / "tweets.scored.csv").open(newline="", encoding="utf-8") as file:
        scored = list(csv.DictReader(file))
    assert [{name: row[name] for name in rows[0]} for row in scored] == rows
    assert scored[150]["error"].startswith("BlankTextError: ")
    assert scored[250]["error"].startswith("TooLargeError: ")
    with InferenceClient(server.project.inference) as client:
        for row in scored[:40]:
            expected = client.predict(row["text"])
            assert row["label"] == expected.label, row
            assert float(row["score"]) == pytest.approx(expected.score, abs=1e-5), row


def test_status(server: Server) -> None:
    result = sentiment(server, "status")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[:2] == ["inference   Healthy", "management  Healthy"]
    assert lines[2] == "models      batched, sentiment"
    assert lines[5].startswith("1.0      yes      ")
    assert lines[5].endswith("sentiment.mar")
    assert {line.split()[0] for line in lines[7:]} == {
        "model",
        "accuracy",
        "exported",
        "commit",
        "command",
        "precision",
    }
    assert max(map(len, lines)) <= 80


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server with one worker and registration enabled, with several archives in its model store."""
    folder = tmp_path_factory.mktemp("open")
    settings = {"defaultVersion": True, "marName": "sentiment.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": 16}
    project = Project(folder, mar, models=json.dumps({"sentiment": {"1.0": settings}}))
    store = folder / "model_store"
    archive(MODEL, folder / "sentiment-2.mar", "2.0", "int8")
    shutil.move(folder / "sentiment-2.mar", store)
    (store / "torn.mar").write_bytes((store / "sentiment-2.mar").read_bytes()[:100_000])
    (store / "text.mar").write_text("no archive")
    write_changed(store / "sentiment-2.mar", store / "raises.mar", "service.py", RAISES)
    # PATH contains no program: TorchServe must only execute the server's own programs while versions change.
    with serving(project, OMP_NUM_THREADS="1", PATH=str(folder)) as running:
        yield running


@pytest.fixture
def management(open_server: Server) -> Iterator[ManagementClient]:
    with ManagementClient(open_server.project.management) as client:
        yield client


def names(management: ManagementClient) -> list[tuple[str, bool]]:
    return [(version.name, version.default) for version in management.versions()]


@pytest.fixture
def traffic(open_server: Server, served: TextClassifier) -> Traffic:
    return Traffic(open_server.project.predictions, labels_of(TEXTS, served))


def versions(traffic: Traffic) -> list[str | None]:
    return [outcome.version for outcome in traffic.outcomes]


def test_a_rollout_and_a_rollback_under_load_lose_no_request(
    open_server: Server, management: ManagementClient, traffic: Traffic, report: Report
) -> None:
    with traffic.going():
        traffic.wait_for_answers(100)
        out = sentiment(open_server, "rollout", "sentiment-2.mar", "--drain", "1")
        assert out.returncode == 0, out.stdout + out.stderr
        assert names(management) == [("2.0", True)]
        traffic.wait_for_answers(100)
        back = sentiment(open_server, "rollback", "sentiment.mar", "--drain", "1")
        assert back.returncode == 0, back.stdout + back.stderr
        assert names(management) == [("1.0", True)]
        traffic.wait_for_answers(100)
    assert traffic.refusals() == {}
    assert set(versions(traffic)) == {"1.0", "2.0"}
    assert (versions(traffic)[0], versions(traffic)[-1]) == ("1.0", "1.0")
    assert "Compared: 0 of 30 labels changed, the largest difference of a score is 0.0000" in out.stdout
    assert "To go back to version 1.0: sentiment rollback sentiment.mar" in out.stdout
    by_version = " and ".join(f"{count:,} by {name}" for name, count in Counter(versions(traffic)).items())
    report.traffic("`sentiment rollout` to 2.0 and `rollback` to 1.0", traffic, by_version)


def killed_after(server: Server, lines: int, *arguments: str) -> list[str]:
    """Kill the command line after `lines` lines of output; returns the lines."""
    addresses = {"SENTIMENT_URL": server.project.inference, "SENTIMENT_MANAGEMENT_URL": server.project.management}
    command = [sys.executable, "-u", "-m", "sentiment", *arguments]
    with subprocess.Popen(command, cwd=CLIENT, env=addresses, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines_printed = [line for _, line in zip(range(lines), process.stdout, strict=False)]
        process.kill()
    return lines_printed


def test_a_rollout_that_is_killed_is_finished_by_the_same_command_and_loses_no_request(
    open_server: Server, management: ManagementClient, traffic: Traffic
) -> None:
    """The rollout is killed after the registration, and after the switch. `test_rollout.py` tests the other points."""
    with traffic.going():
        for lines, archive, version in ((2, "sentiment-2.mar", "2.0"), (5, "sentiment.mar", "1.0")):
            lines_printed = killed_after(open_server, lines, "rollout", archive, "--drain", "1")
            assert len(lines_printed) == lines, lines_printed
            finished = sentiment(open_server, "rollout", archive, "--drain", "1")
            assert finished.returncode == 0, f"killed after {lines_printed}: {finished.stdout}{finished.stderr}"
            assert names(management) == [(version, True)], f"killed after {lines_printed}: {finished.stdout}"
            assert management.default().workers() == "1 READY"
    assert traffic.refusals() == {}
    assert names(management) == [("1.0", True)]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("torn.mar", "is cut short", "may be broken"),
        ("text.mar", "is a text file", "not an archive counts as version 1.0"),
        ("raises.mar", "has a handler that fails", "Version 2.0 does not load: its workers end."),
        ("missing.mar", "is not there", "Use the archive's file name in the server's model store"),
    ],
)
def test_an_unusable_archive_leaves_the_old_version_in_place(
    open_server: Server,
    management: ManagementClient,
    traffic: Traffic,
    report: Report,
    name: str,
    wrong: str,
    message: str,
) -> None:
    workers = len(open_server.workers())
    with traffic.going():
        traffic.wait_for_answers(50)
        result = sentiment(open_server, "rollout", name)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Version 1.0 is still the default." in result.stdout
    assert names(management) == [("1.0", True)]
    assert (traffic.refusals(), set(versions(traffic))) == ({}, {"1.0"})
    assert len(open_server.workers()) == workers
    report.traffic(f"`sentiment rollout` of an archive that {wrong}", traffic)


def test_a_version_that_does_not_load_is_removed_and_the_other_stays_ready(
    open_server: Server, management: ManagementClient
) -> None:
    properties = Properties.read(open_server.project.config)
    version = management.register("raises.mar", management.default().settings)
    probe.ready(properties)
    assert not management.version(version).ready
    management.unregister(version)
    registered = sentiment(open_server, "register", "raises.mar")
    assert registered.returncode == 1
    assert "does not load" in registered.stderr
    assert names(management) == [("1.0", True)]


def test_another_model_is_registered_used_and_removed(
    open_server: Server,
    management: ManagementClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The new model gets the settings of the model that is already there."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        output = capsys.readouterr()
        return code, output.out + output.err

    monkeypatch.setenv("SENTIMENT_URL", open_server.project.inference)
    monkeypatch.setenv("SENTIMENT_MANAGEMENT_URL", open_server.project.management)
    store = open_server.project.folder / "model_store"
    shutil.copy(store / "sentiment.mar", store / "my_model.mar")
    code, output = run("register", "my_model.mar")
    assert (code, "Model version 1.0 is already registered for model sentiment" in output) == (1, True), output
    assert "`sentiment register my_model.mar --name my_model`" in output
    code, output = run("register", "my_model.mar", "--name", "reviews")
    assert code == 0, output
    assert output.splitlines() == [
        "Version 1.0 of reviews (my_model.mar) has 1 READY.",
        "To try it: sentiment predict --model reviews 'A text'",
        "After a restart, the server serves only the models of its configuration or command line.",
    ]
    with ManagementClient(open_server.project.management, "reviews") as reviews:
        assert reviews.default().settings == management.default().settings
    code, output = run("predict", "--model", "reviews", "late again", "--json")
    assert (code, json.loads(output)["label"]) == (0, "negative")
    code, output = run("explain", "--model", "reviews", "late again")
    assert output.startswith("negative  ")
    assert "late" in {line.split()[-1] for line in output.splitlines()[1:]}
    assert "models      reviews, sentiment\n" in run("status")[1]
    code, output = run("scale", "1000", "--model", "reviews")
    assert (code, "Use --force to start them anyway" in output) == (1, True)
    assert "cores and" in output, "a worker knows its machine"
    assert run("unregister", "1.0", "--model", "reviews")[0] == 1
    code, output = run("unregister", "1.0", "--model", "reviews", "--force", "--drain", "0")
    assert code == 0, output
    code, output = run("status", "--model", "reviews")
    assert (code, "There is no model reviews. Registered: sentiment." in output) == (1, True), output
    code, output = run("register", "raises.mar", "--name", "reviews")
    assert (code, "Removed version 2.0 of reviews." in output) == (1, True), output
    assert management.models() == ["sentiment"]


def test_fewer_workers_under_load_lose_no_request(open_server: Server, traffic: Traffic) -> None:
    with traffic.going():
        for workers in (2, 1, 2, 1):
            scaled = sentiment(open_server, "scale", str(workers))
            assert scaled.returncode == 0, scaled.stderr
            traffic.wait_for_answers(100)
    assert traffic.refusals() == {}


def test_register_scale_and_roll_back_to_another_version(open_server: Server, management: ManagementClient) -> None:
    registered = sentiment(open_server, "register", "sentiment-2.mar", "--workers", "1")
    assert registered.returncode == 0, registered.stderr
    assert registered.stdout == "Version 2.0 of sentiment (sentiment-2.mar) has 1 READY.\n"
    predicted = sentiment(open_server, "predict", "--version", "2.0", "late again", "--json")
    assert json.loads(predicted.stdout)["model_version"] == "2.0"
    scaled = sentiment(open_server, "scale", "2", "--version", "2.0")
    assert scaled.stdout == "Version 2.0 of sentiment (sentiment-2.mar) has 2 READY.\n"
    assert sentiment(open_server, "unregister", "1.0").returncode == 1, "the default stays"
    choices = sentiment(open_server, "rollback", "--drain", "0")
    assert choices.returncode == 1, "which version was the default before is not known"
    assert "Choose: `sentiment rollback sentiment-2.mar` (version 2.0)." in choices.stderr
    rolled_back = sentiment(open_server, "rollback", "sentiment-2.mar", "--drain", "0")
    assert rolled_back.returncode == 0, rolled_back.stderr
    assert names(management) == [("2.0", True)]
    assert management.default().workers() == "2 READY"
    assert sentiment(open_server, "register", "sentiment.mar").returncode == 0
    assert sentiment(open_server, "unregister", "1.0", "--drain", "0").returncode == 0
    assert names(management) == [("2.0", True)]
