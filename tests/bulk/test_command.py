"""The command: the answers of the server, errors of single rows, several processes, and runs that are killed."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet
import pytest

from bulk.process import FAILED, INTERRUPTED, ROW_ERRORS, TERMINATED
from handler.classifier import TextClassifier
from tests.bulk.command import ENVIRONMENT, TWO_PROCESSES, bulk, bulk_python, command, shards, summary
from tests.bulk.inputs import BAD_ROWS, TEXTS, texts, write_csv, write_inputs
from tests.bulk.test_documents import dataflow_command
from tests.e2e.server_process import Server, gone, sentiment
from tests.interruptible import heed_sigint
from tests.paths import ROOT


@dataclass(frozen=True)
class Scored:
    """Input files and their results."""

    folder: Path
    texts: dict[str, list[str]]
    output: Path
    summary: dict[str, Any]

    def rows(self, name: str, *, errors: bool = False) -> list[dict[str, Any]]:
        """The rows of a CSV or text file's results."""
        rows: list[dict[str, Any]] = []
        # A shard without errors has no file of errors.
        with_errors = sorted(self.output.parent.glob(f"{self.output.name}.errors-{name}-*"))
        for path in with_errors if errors else shards(self.output, name):
            with path.open(newline="", encoding="utf-8") as file:
                rows += csv.DictReader(file)
        return rows


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Scored:
    """Files of all formats with 5,000 texts, 1 % of which have errors, scored by two processes."""
    folder = tmp_path_factory.mktemp("bulk")
    written = write_inputs(folder)
    output = folder / "out" / "scored"
    result = bulk(folder / "tweets.*", output, mar, "--scores", "--json", *TWO_PROCESSES)
    assert result.returncode == ROW_ERRORS, result.stderr
    return Scored(folder, written, output, summary(result))


def test_all_rows_are_scored_or_have_an_error(scored: Scored) -> None:
    counts = scored.summary
    assert counts["rows"] == TEXTS == counts["scored"] + counts["errors"]
    assert counts["errors_by_type"] == BAD_ROWS
    assert sum(counts["labels"].values()) == counts["scored"]
    assert counts["tokens"] > counts["scored"]
    assert counts["engine_ms"] > 0


@pytest.mark.parametrize("name", ["tweets.csv", "tweets.jsonl", "tweets.parquet"])
def test_the_rows_are_those_that_sentiment_score_writes(
    name: str, scored: Scored, server: Server, tmp_path: Path
) -> None:
    """Byte for byte, for texts in any order and in batches of any size."""
    expected = tmp_path / name
    result = sentiment(
        server, "score", str(scored.folder / name), "--scores", "--output", str(expected), "--connections", "2"
    )
    assert result.returncode == ROW_ERRORS, result.stderr
    paths = shards(scored.output, name)
    if name == "tweets.parquet":
        tables = pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in paths])
        assert tables.to_pylist() == pyarrow.parquet.read_table(expected).to_pylist()
        assert tables.schema.names == pyarrow.parquet.read_schema(expected).names
        return
    contents = [path.read_bytes() for path in paths]
    if name == "tweets.csv":
        assert len(contents) > 2
        contents[1:] = [content.partition(b"\n")[2] for content in contents[1:]]
    assert b"".join(contents) == expected.read_bytes()


def test_a_line_of_text_gets_the_prediction_for_this_text(scored: Scored, served: TextClassifier) -> None:
    rows = scored.rows("tweets.txt")
    assert [row["text"] for row in rows] == scored.texts["tweets.txt"]
    good = [row for row in rows if not row["error"]]
    for row in good[:100]:
        [expected] = served.predict([row["text"].lstrip("\ufeff")])
        assert [float(row[f"score_{label}"]) for label in served.labels] == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_rows_with_errors_have_a_file_of_their_own(scored: Scored) -> None:
    assert scored.rows("tweets.csv", errors=True) == [row for row in scored.rows("tweets.csv") if row["error"]]
    assert len(scored.rows("tweets.csv", errors=True)) > 1


def test_a_finished_run_that_is_started_again_changes_nothing(scored: Scored, mar: Path) -> None:
    before = contents(scored.output.parent)
    result = bulk(scored.folder / "tweets.*", scored.output, mar, "--scores", "--json")
    assert result.returncode == ROW_ERRORS, result.stderr
    assert contents(scored.output.parent) == before
    counts = summary(result)
    assert counts["earlier_shards"] == counts["shards"] == scored.summary["shards"]
    for name in ("rows", "scored", "errors", "errors_by_type", "labels"):
        assert counts[name] == scored.summary[name]


def test_a_killed_run_that_is_started_again_writes_the_same_files(scored: Scored, mar: Path, tmp_path: Path) -> None:
    output = tmp_path / "scored"
    pattern = scored.folder / "tweets.csv"
    process = subprocess.Popen(
        command(pattern, output, mar, "--scores", "--direct_num_workers", "1"), cwd=ROOT, env=os.environ | ENVIRONMENT
    )
    while not shards(output, "tweets.csv"):
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert workers
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    process.kill()
    process.wait()
    assert gone(workers)
    (tmp_path / f"scored-tweets.csv-00004-of-00005.csv.{'0123' * 8}.partial").write_text("half a sh")
    result = bulk(pattern, output, mar, "--scores", "--json")
    assert result.returncode == ROW_ERRORS, result.stderr
    assert 1 <= summary(result)["earlier_shards"] < summary(result)["shards"]
    expected = {name: content for name, content in contents(scored.output.parent).items() if "tweets.csv" in name}
    assert {name: content for name, content in contents(tmp_path).items() if name != "scored.run.json"} == expected


def with_two_workers(arguments: list[str]) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """Start a command in a process group of its own, and wait for its workers."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,  # noqa: PLW1509
        start_new_session=True,
    )
    while len(workers := psutil.Process(process.pid).children(recursive=True)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    return process, workers


@pytest.mark.parametrize("is_busy", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "Interrupted"), (signal.SIGTERM, TERMINATED, "Terminated")],
)
def test_a_signal_to_all_processes_is_one_line(
    scored: Scored, mar: Path, tmp_path: Path, number: signal.Signals, code: int, word: str, is_busy: bool
) -> None:
    """Ctrl-C reaches all processes of a terminal, and `timeout` sends SIGTERM to all processes of a group."""
    arguments = command(scored.folder / "tweets.csv", tmp_path / "scored", mar, *TWO_PROCESSES)
    process, workers = with_two_workers(arguments)
    if is_busy:
        wait_for_a_shard(process, tmp_path)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, f"{word}. Run the same command again to continue.\n")
    assert gone(workers)


def wait_for_a_shard(process: "subprocess.Popen[str]", folder: Path) -> None:
    while not any(folder.glob("scored-*")):
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_worker_that_is_killed_ends_the_command(scored: Scored, mar: Path, tmp_path: Path, is_busy: bool) -> None:
    """Beam's runner itself would wait for ever, and print the tracebacks of its threads."""
    arguments = command(scored.folder / "tweets.csv", tmp_path / "scored", mar, *TWO_PROCESSES)
    process, workers = with_two_workers(arguments)
    if is_busy:
        wait_for_a_shard(process, tmp_path)
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == FAILED
    killed = f"was ended by signal 9 ({signal.strsignal(signal.SIGKILL)})"
    assert errors == (
        f"error: A worker was lost: worker {workers[0].pid} {killed}, "
        "perhaps because the machine is short of memory. Run the same command again to continue.\n"
    )
    assert gone(workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BROKEN_LINES = {
    b'{"id": 1, "text": "la\xff te"}': "NotUtf8Error: The line is not UTF-8 (byte 21). Expected text in UTF-8.",
    b'{"id": 1, "text": "la\\ud800te"}': (
        "NotUtf8Error: The text has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text."
    ),
    b'{"id": 1, "text": ': (
        "NotJsonError: The line is not JSON: Expecting value (character 17). Expected a JSON object."
    ),
    b'["late"]': "WrongShapeError: The line is not a JSON object. Expected a JSON object.",
    b'{"id": 1, "text": 5}': "WrongShapeError: 'text' is not a string. Expected a string.",
    b'{"id": 1, "text": null}': "BlankTextError: The text is empty or blank. Expected a text with words in it.",
    b'{"id": 1}': "BlankTextError: The text is empty or blank. Expected a text with words in it.",
    b"[" * 100_000: "NotJsonError: The line is not JSON: too large. Expected a JSON object.",
}
BROKEN_ROWS = {
    b"1,late,again,and again": "WrongShapeError: The row has 4 cells, but the header has 2.",
    b"1": "WrongShapeError: The row has 1 cells, but the header has 2.",
    b"1,sp\xe4t": "NotUtf8Error: The row is not UTF-8. Expected text in UTF-8.",
}
MANY_TOKENS = "late again " * 1_800


def test_a_row_that_cannot_be_read_hurts_itself_only(mar: Path, served: TextClassifier, tmp_path: Path) -> None:
    """Three threads, one for each shard, share the engine.

    With the low limit, the server would refuse some good texts as overloaded. Files in several folders have
    output files with different names.
    """
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    good = [f"{text} late" * 40 for text in texts(60)]
    lines = [json.dumps({"text": text}).encode() for text in good]
    lines[20:20] = [*BROKEN_LINES, b"", b"  ", json.dumps({"text": MANY_TOKENS}).encode()]
    (tmp_path / "a" / "broken.jsonl").write_bytes(b"\n".join(lines))
    rows = [b"id,text", b"0,late", *BROKEN_ROWS, b"", b"9,on time"]
    (tmp_path / "a" / "broken.csv").write_bytes(b"\r\n".join(rows))
    (tmp_path / "b" / "broken.txt").write_bytes(b"sp\xe4t\nlate\n\non time")
    output = tmp_path / "scored"
    options = ["--json", "--scores", "--direct_num_workers", str(10**20), "--direct_running_mode", "multi_threading"]
    pattern = f"{tmp_path}//*///broken.*"  # the output's names do not depend on surplus slashes
    result = bulk(pattern, output, mar, *options, CLASSIFIER_MAX_TOKEN_READS="4000")
    assert result.returncode == ROW_ERRORS, result.stderr
    assert summary(result)["errors"] == len(BROKEN_LINES) + len(BROKEN_ROWS) + 3

    [jsonl] = shards(output, "a%2Fbroken.jsonl")
    results = [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in results if row["error"] is None] == good
    errors = [row["error"] for row in results if row["error"]]
    assert errors[:-1] == list(BROKEN_LINES.values())
    assert errors[-1].startswith("TooLargeError: The texts of the request have too many tokens: ")
    assert results[20]["text"] == '{"id": 1, "text": "la\\xff te"}', "the line is kept"
    for row, text in zip([row for row in results if row["error"] is None], good, strict=True):
        expected = dict(zip(served.labels, served.predict([text])[0].tolist(), strict=True))
        assert {label: row[f"score_{label}"] for label in served.labels} == pytest.approx(expected, abs=1e-6)

    [table] = shards(output, "a%2Fbroken.csv")
    with table.open(newline="", encoding="utf-8") as file:
        cells = list(csv.DictReader(file))
    assert [row["error"] for row in cells] == ["", *BROKEN_ROWS.values(), ""]
    assert [row["text"] for row in cells] == ["late", "late,again,and again", "", "sp\\xe4t", "on time"]
    assert table.read_bytes().count(b"\r\n") == len(cells) + 1

    [plain] = shards(output, "b%2Fbroken.txt")
    with plain.open(newline="", encoding="utf-8") as file:
        found = [(row["text"], row["error"].partition(":")[0]) for row in csv.DictReader(file)]
    assert found == [("sp\\xe4t", "NotUtf8Error"), ("late", ""), ("", "BlankTextError"), ("on time", "")]


IN_ONE_PROCESS = """
import contextlib, io, json, sys
from bulk import run
from bulk.cli import main
run.JOB_SERVER_NOTICE_S = 0.1
results = []
for arguments in json.load(sys.stdin):
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = exit.code
    results.append([code, errors.getvalue()])
print(json.dumps(results))
"""


def damaged_archives(folder: Path, mar: Path) -> dict[Path, str]:
    """Write archives with a damage each; returns the reasons that the command gives."""
    config = "model/config.json"
    contents: dict[str, tuple[str, bytes, str]] = {
        "deflate": (config, b"late " * 1_000, f"{config}: Error -3 while decompressing data: invalid"),
        "encrypted": (config, b"late", f"{config}: File <ZipInfo"),
        "method": (config, b"late", f"{config}: That compression method is not supported"),
        "name": ("x" * 1_000, b"late", f"{'x' * 99}…: File name too long"),
        "file": ("model", b"late", f"{config} is missing."),
        "nested": (config, b"[" * 100_000, f"{config}: expected the JSON of a model; found"),
        "json": (config, b"late", f"{config}: expected JSON in UTF-8: "),
    }
    reasons = {}
    for name, (member, content, reason) in contents.items():
        path = folder / f"{name}.mar"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
        damaged = bytearray(path.read_bytes())
        central = damaged.index(b"PK\x01\x02")
        match name:
            case "deflate":
                damaged[30 + len(member)] = 0xFF
            case "encrypted":
                damaged[6] = damaged[central + 8] = 1
            case "method":
                damaged[8] = damaged[central + 10] = 99
        path.write_bytes(damaged)
        reasons[path] = reason
    path = folder / "folder.mar"
    shutil.copy(mar, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("handler/folder.py/file", "")
    reasons[path] = "handler/folder.py: Is a directory"
    path = folder / "vocabulary.mar"
    with zipfile.ZipFile(mar) as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            if not name.endswith("/vocabulary.json"):
                archive.writestr(name, whole.read(name))
    reasons[path] = "model/vocabulary.json is missing"
    return reasons


def test_an_error_of_the_command_is_one_clear_line(scored: Scored, mar: Path, tmp_path: Path) -> None:
    """All commands run in one process, which imports Beam once."""
    write_csv(tmp_path / "good.csv", ["late"])
    (tmp_path / "label.csv").write_text("text,label\nlate,negative\n")
    (tmp_path / "twice.csv").write_text("text,text\nlate,late\n")
    (tmp_path / "quote.csv").write_text('text,b\nlate,1\n"late,2\nlate,3\n')
    (tmp_path / "utf16.txt").write_bytes("late\n".encode("utf-16"))
    (tmp_path / "packed.jsonl").write_bytes(b"\x1f\x8b\x08")
    (tmp_path / "no.parquet").write_text("late")
    (tmp_path / "no.mar").write_text("late")
    (tmp_path / "late.xls").write_text("late")
    (tmp_path / "gone.csv").symlink_to("nowhere")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "late.txt").write_text("late\n")
    write_csv(tmp_path / f"{'x' * 220}.csv", ["late"])
    with socket.socket() as closed:  # nothing listens on this port
        closed.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{closed.getsockname()[1]}"
    job_server = ["--job_endpoint", endpoint, "--job_server_timeout", "1"]
    other = tmp_path / "other.mar"
    shutil.copy(mar, other)
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("handler/more.py", "")

    def arguments(name: str, output: str = "scored", archive: Path = mar, *options: str) -> list[str]:
        paths = ["--input", str(tmp_path / name), "--output", str(tmp_path / output), "--archive", str(archive)]
        return [*paths, "--direct_running_mode", "in_memory", *options]  # no processes for each command

    finished = ["--input", str(scored.folder / "tweets.*"), "--output", str(scored.output)]
    cases: dict[str, tuple[list[str], str]] = {
        "no file": (arguments("none-*"), "error: No file matches {}/none-*."),
        "a broken link": (arguments("gone.csv"), "error: No file matches {}/gone.csv."),
        "a folder": (arguments("folder.csv"), "error: No file matches {}/folder.csv."),
        "no archive": (arguments("good.csv", "x", tmp_path / "x.mar"), "error: {}/x.mar cannot be read: No such file"),
        "not an archive": (
            arguments("good.csv", "x", tmp_path / "no.mar"),
            "error: {}/no.mar is not a model archive, or it is damaged: File is not a zip file. `make archive` builds "
            "one.",
        ),
        "a column": (
            arguments("good.csv", "x", mar, "--text-column", "tweet"),
            "error: {}/good.csv has no column 'tweet'; it has id, text, padding. Choose one with --text-column.",
        ),
        "a column twice": (arguments("twice.csv"), "error: {}/twice.csv has more than one column 'text'."),
        "a column of results": (arguments("label.csv"), "error: {}/label.csv already has a column 'label'"),
        "UTF-16": (arguments("utf16.txt"), "error: {}/utf16.txt begins like UTF-16."),
        "gzip": (arguments("packed.jsonl"), "error: {}/packed.jsonl is compressed by gzip"),
        "not Parquet": (arguments("no.parquet"), "error: {}/no.parquet is not Parquet, or it is damaged: "),
        "another format": (arguments("late.xls"), "error: The format of {}/late.xls is unknown."),
        "a folder as output": (arguments("good.csv", ""), "error: --output '{}' is a folder."),
        "an output in a file": (arguments("good.csv", "no.mar/x"), "error: {}/no.mar/x.run.json cannot be written: "),
        "an option": (arguments("good.csv", "x", mar, "--outptu", "y"), "option --outptu"),
        "the guide's command for Dataflow": (
            arguments("good.csv", "x", mar, *dataflow_command()[6:]),
            f"error: {mar}: the workers of Dataflow cannot reach it.",
        ),
        "fewer than no processes": (
            arguments("good.csv", "y", mar, "--direct_num_workers", "-1"),
            "error: --direct_num_workers -1: expected a number of processes",
        ),
        "a runner": (arguments("good.csv", "y", mar, "--runner", "Foo"), "error: --runner Foo: Unexpected pipeline"),
        "no runner": (
            arguments("good.csv", "y", mar, "--runner", "os.getcwd"),
            "error: --runner os.getcwd is no runner of Beam. Expected a name such as DataflowRunner.",
        ),
        "no job server": (
            arguments("good.csv", "y", mar, "--runner", "PortableRunner"),
            "error: --runner PortableRunner: the job cannot be started: You must specify a --job_endpoint",
        ),
        "a job server that does not answer": (
            arguments("good.csv", "y", mar, "--runner", "PortableRunner", *job_server),
            f"Waiting for the job server {endpoint} (--job_endpoint), 1 s at most (--job_server_timeout).\n"
            f"error: --job_endpoint {endpoint}: no job server answers within 1 s.",
        ),
        "an option's number": (
            arguments("good.csv", "y", mar, "--direct_num_workers", "x"),
            "error: argument --direct_num_workers: invalid int value: 'x'",
        ),
        "an option's JSON": (
            arguments("good.csv", "y", mar, "--gcs_custom_audit_entries", "{"),
            "error: Beam cannot read the value of --direct_running_mode or --gcs_custom_audit_entries: Expecting",
        ),
        "plain text": (
            arguments("late.txt", "y", mar, "--text-column", "label"),
            "error: {}/late.txt already has a column 'label'",
        ),
        "a long name": (
            arguments("x*.csv", "y"),
            f"error: {{}}/y.errors-{'x' * 220}.csv-00000-of-00001.csv cannot be written: File name too long.",
        ),
        "a quote": (arguments("quote.csv"), "error: {}/quote.csv, line 3, is not valid CSV: unexpected end of data."),
        "other options": (
            [*finished, "--archive", str(mar)],
            f"error: The output {scored.output}-* belongs to another run: its set of columns is not the same.",
        ),
        "another archive": (
            [*finished, "--archive", str(other), "--scores"],
            f"error: The output {scored.output}-* belongs to another run: its archive is not the same.",
        ),
    }
    for path, reason in damaged_archives(tmp_path, mar).items():
        expected = f"error: {path} is not a model archive, or it is damaged: {reason}"
        cases[f"damaged: {path.stem}"] = (arguments("good.csv", "x", path), expected)
        remote = arguments("good.csv", "x", path, "--runner", "DataflowRunner")
        cases[f"damaged, for other machines: {path.stem}"] = (remote, expected)
    result = subprocess.run(
        [bulk_python(), "-c", IN_ONE_PROCESS],
        input=json.dumps([case for case, _ in cases.values()]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    for (name, (_, expected)), (code, message) in zip(cases.items(), json.loads(result.stdout), strict=True):
        assert expected.format(tmp_path) in message, f"{name}: {message}"
        assert "Traceback" not in message, f"{name}: {message}"
        assert code == (2 if name.startswith("an option") else FAILED), name
        assert message.count("error:") == 1, f"{name}: {message}"
        assert ("was built with other code" in message) == (name == "another archive"), f"{name}: {message}"


def test_a_limit_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    result = bulk(tmp_path / "in.csv", tmp_path / "out", tmp_path / "none.mar", CLASSIFIER_MAX_TOKEN_READS="abc")
    assert result.returncode == FAILED
    expected = "CLASSIFIER_MAX_TOKEN_READS must be a whole number above 0 of at most 18 digits, not 'abc'."
    assert result.stderr == f"error: {expected}\n"
