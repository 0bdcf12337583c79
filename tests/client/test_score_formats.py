"""Formats of files: delimiters, encodings, endings, compression and streams; and the columns of each kind of model."""

import csv
import gzip
import io
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sentiment.cli import main
from sentiment.inference import MAX_TEXTS
from sentiment.score import TEXTS_BESIDE_LIVE_TRAFFIC
from tests.client.scripted import Reply, Request, Scripted, error, model, prediction, scripted
from tests.paths import CLIENT

Out = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SENTIMENT_MODEL", "mine")
    return tmp_path


@pytest.fixture(scope="module")
def scripted_model() -> Iterator[Scripted]:
    with scripted(model) as server:
        yield server


@pytest.fixture
def answering(scripted_model: Scripted, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setenv("SENTIMENT_URL", scripted_model.url)
    scripted_model.requests.clear()
    return scripted_model


LATE, EARLY = prediction("zu spät"), prediction("früh")
SCORED = f"{LATE['label']};{LATE['score']};", f"{EARLY['label']};{EARLY['score']};"
TABLE = "id;text\r\n1;zu spät\r\n2;früh\r\n"
TABLE_SCORED = f"id;text;label;score;error\r\n1;zu spät;{SCORED[0]}\r\n2;früh;{SCORED[1]}\r\n"
QUOTED = prediction('"zu spät'), prediction('fr"üh"')
QUOTES_SCORED = (
    "text\tn\tlabel\tscore\terror\n"
    f'"zu spät\t1\t{QUOTED[0]["label"]}\t{QUOTED[0]["score"]}\t\n'
    f'fr"üh"\t2\t{QUOTED[1]["label"]}\t{QUOTED[1]["score"]}\t\n'
).encode()
LINES = '{"text": "zu spät"}\n{"text": "früh"}\n'


@pytest.mark.parametrize(
    ("name", "content", "options", "copy", "expected"),
    [
        ("a.csv", TABLE.encode(), ["--delimiter", ";"], "a.scored.csv", TABLE_SCORED.encode()),
        (
            "a.CSV",
            TABLE.encode("cp1252"),
            ["--delimiter", ";", "--encoding", "CP1252"],
            "a.scored.CSV",
            TABLE_SCORED.encode("cp1252"),
        ),
        (
            "Excel.csv",
            TABLE.encode("utf-16"),
            ["--delimiter", ";", "--encoding", "utf-16"],
            "Excel.scored.csv",
            TABLE_SCORED.encode("utf-16"),
        ),
        (
            "a.TSV",
            TABLE.replace(";", "\t").encode(),
            [],
            "a.scored.TSV",
            TABLE_SCORED.replace(";", "\t").encode(),
        ),
        (
            "dump",
            TABLE.replace(";", "\t").encode(),
            ["--format", "tsv"],
            "dump.scored",
            TABLE_SCORED.replace(";", "\t").encode(),
        ),
        ("a.tab", TABLE.replace(";", "|").encode(), ["--delimiter", "|"], "a.scored.tab", None),
        ("a.txt", TABLE.replace(";", "\t").encode(), ["--format", "csv", "--delimiter", "tab"], "a.scored.txt", None),
        (
            "a.b.csv.gz",
            gzip.compress(TABLE.encode(), mtime=0),
            ["--delimiter", ";"],
            "a.b.scored.csv.gz",
            TABLE_SCORED.encode(),
        ),
        ("q.tsv", b'text\tn\n"zu sp\xc3\xa4t\t1\nfr"\xc3\xbch"\t2\n', ["--no-quotes"], "q.scored.tsv", QUOTES_SCORED),
        ("a.ndjson", LINES.encode(), [], "a.scored.ndjson", None),
        ("a.NDJSON.GZ", gzip.compress(LINES.encode(), mtime=0), [], "a.scored.NDJSON.GZ", None),
        ("a.jsonl", LINES.encode("latin-1"), ["--encoding", "latin-1"], "a.scored.jsonl", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_common_variants_of_files_are_read_and_copied(
    answering: Scripted, here: Path, name: str, content: bytes, options: list[str], copy: str, expected: bytes | None
) -> None:
    (here / name).write_bytes(content)
    assert main(["score", name, *options]) == 0
    written = (here / copy).read_bytes()
    if name.lower().endswith(".gz"):
        assert written[:2] == b"\x1f\x8b"
        written = gzip.decompress(written)
    if expected is not None:
        assert written == expected
    else:
        text = written.decode("latin-1" if "latin-1" in options else "utf-8")
        assert text.count(LATE["label"]) + text.count(EARLY["label"]) >= 2
    texts = [text.replace('"', "") for request in answering.requests for text in request.json]
    assert texts == ["zu spät", "früh"]
    assert sorted(path.name for path in here.iterdir()) == sorted([name, copy])


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", TABLE.encode(), [], "no column 'text' with this delimiter. With --delimiter ';', it has one."),
        ("a.csv", TABLE.replace(";", "\t").encode(), [], "With --delimiter tab, it has one."),
        ("a.csv", b"text\n" + b"late\n" * 5_000 + b"Gr\xfc\xdfe\n", [], "line 5002, is not UTF-8: "),
        ("a.csv", b"text\nGr\xfc\xdfe\n", [], "line 2, is not UTF-8: invalid start byte. Set the file's encoding"),
        ("a.csv", "text\nlate\n".encode("utf-16"), [], "The file starts like UTF-16: use --encoding utf-16."),
        ("a.csv", b"text\nlate\n\x81\n", ["--encoding", "cp1252"], "line 3, is not CP1252"),
        ("a.csv", b'text,n\n"two\n\nlines",1\n\nlate\n', [], "line 6, has 1 cells, but the header has 2"),
        (
            "a.csv",
            b'text\nlate\n"open\n' + b"a\n" * 9,
            [],
            "line 3, is not valid CSV: unexpected end of data, read unt",
        ),
        (
            "a.tsv",
            b'text\tn\n"Great" film\t1\n',
            [],
            "line 2, is not valid TSV: '\\t' expected after '\"'. If quotes have",
        ),
        ("a.csv.gz", gzip.compress(TABLE.encode() * 99, mtime=0)[:-20], ["--delimiter", ";"], "is not complete gzip"),
        ("a.csv.gz", gzip.compress(b"text\n\xff\n" * 9, mtime=0)[:-9], [], "line 2, is not UTF-8"),
        ("a.jsonl", b'{"text": "late"}\n\n{"text": 5}\n', [], "line 3, is not a JSON object with a string in 'text'"),
        ("a.jsonl", b'{"text": "late"}\n\n{"text": "\xfc"}\n', [], "line 3, is not UTF-8"),
        ("a.jsonl", LINES.encode(), ["--delimiter", ";"], "--delimiter applies to CSV and TSV; a.jsonl is JSON lines."),
        ("a.parquet", b"PAR1", ["--encoding", "utf-8"], "--encoding applies to CSV, TSV and JSON lines"),
        ("a.parquet.gz", b"PAR1", [], "Parquet compressed by gzip is not supported"),
        (
            "a.xlsx",
            b"PK",
            [],
            "The format of a.xlsx is unknown. Expected the ending .csv, .tsv, .tab, .jsonl, .ndjson, .parquet",
        ),
        (
            "a.csv",
            b"text\nlate\n",
            ["--output", "a.jsonl"],
            "The output is written in the input's format, CSV, but a.jsonl",
        ),
        (
            "a.csv",
            b"text\nlate\n",
            ["--output", "a.tsv"],
            "The output is written in the input's format, CSV, but a.tsv",
        ),
    ],
    ids=str,
)
def test_an_invalid_file_is_reported_with_its_line_and_what_to_do(
    answering: Scripted, here: Path, capsys: Out, name: str, content: bytes, options: list[str], message: str
) -> None:
    (here / name).write_bytes(content)
    assert main(["score", name, *options]) == 1
    assert message in capsys.readouterr().err
    assert answering.requests == []
    assert [path.name for path in here.iterdir()] == [name]


def multi_label(text: str) -> dict[str, Any]:
    scores = {"rude": 0.75, "late": 0.625 if "late" in text else 0.25}
    return {"labels": [name for name, score in scores.items() if score > 0.5], "scores": scores}


def regression(text: str) -> dict[str, Any]:
    return {"value": 3.14 if "late" in text else -0.0}


def server_of(kind: Callable[[str], dict[str, Any]]) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        if request.method == "GET":
            return error(404, "ResourceNotFoundException")
        asked = request.json
        if isinstance(asked, dict):
            return Reply(200, json.dumps(kind(asked["text"])).encode())
        return Reply(200, json.dumps([kind(text) for text in asked]).encode())

    return answer


@pytest.fixture(params=[prediction, multi_label, regression], ids=["single-label", "multi-label", "regression"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with scripted(server_of(request.param)) as server:
        monkeypatch.setenv("SENTIMENT_URL", server.url)
        yield request.param.__name__


COLUMNS = {
    "prediction": ["label", "score", "score_negative", "score_other", "score_positive", "error"],
    "multi_label": ["labels", "score_rude", "score_late", "error"],
    "regression": ["value", "error"],
}
CELLS = {
    "prediction": [prediction("late"), prediction("on time")],
    "multi_label": [multi_label("late"), multi_label("on time")],
    "regression": [regression("late"), regression("on time")],
}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_the_columns_depend_on_the_kind_of_model_and_on_scores(kind: str, ending: str, here: Path) -> None:
    import pandas as pd

    write: dict[str, Callable[[pd.DataFrame, str], object]] = {
        "csv": lambda frame, name: frame.to_csv(name, index=False),
        "jsonl": lambda frame, name: frame.to_json(name, orient="records", lines=True),
        "parquet": lambda frame, name: frame.to_parquet(name),
    }
    read: dict[str, Callable[[str], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "jsonl": lambda name: pd.read_json(name, lines=True, orient="records"),
        "parquet": pd.read_parquet,
    }
    write[ending](pd.DataFrame({"text": ["late", "on time"]}), f"a.{ending}")
    assert main(["score", f"a.{ending}", "--scores"]) == 0
    table = read[ending](f"a.scored.{ending}")
    assert sorted(table.columns) == sorted(["text", *COLUMNS[kind]])
    for index, expected in enumerate(CELLS[kind]):
        row = table.iloc[index]
        if "labels" in expected:
            labels = row["labels"].split(";") if ending == "csv" else list(row["labels"])
            assert labels == expected["labels"]
        for name in ("label", "score", "value"):
            if name in expected:
                assert row[name] == expected[name]
        for name, score in expected.get("scores", {}).items():
            assert row[f"score_{name}"] == score


def test_each_kind_of_prediction_is_printed(kind: str, capsys: Out) -> None:
    assert main(["predict", "late", "on time"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    expected = {
        "prediction": "positive  0.8000  late",
        "multi_label": "rude 0.7500, late 0.6250  late",
        "regression": "3.14      late",
    }
    assert first == expected[kind]
    assert second.endswith("  on time")
    assert main(["predict", "late", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"text": "late", "model_version": None, **CELLS[kind][0]}


def test_a_label_that_contains_the_separator_is_refused_for_csv(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    (here / "a.csv").write_text("text\nlate\n")
    answer = server_of(lambda _: {"labels": ["a;b"], "scores": {"a;b": 1}})
    with scripted(answer) as server:
        assert main(["score", "a.csv", "--url", server.url]) == 1
    assert "The label 'a;b' contains ';'" in capsys.readouterr().err


def test_a_label_that_the_encoding_cannot_represent_is_an_error(here: Path, capsys: Out) -> None:
    (here / "a.csv").write_text("text\nlate\n")
    answer = server_of(lambda _: {"label": "✈", "score": 1, "scores": {"✈": 1}})
    with scripted(answer) as server:
        assert main(["score", "a.csv", "--encoding", "latin-1", "--url", server.url]) == 1
    assert "The results contain the character '✈', which iso8859-1 cannot represent." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_with_its_own_label_column_keeps_it(answering: Scripted, here: Path, capsys: Out, name: str) -> None:
    """A column `label` conflicts with labels, not with numbers; the results so far are kept."""
    (here / name).write_text('{"text": "late", "label": "x"}\n' if "json" in name else "text,label\nlate,x\n")
    assert main(["score", name]) == 1
    assert f"{name} already has a column 'label'" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == [name]
    assert main(["score", name, "--prefix", "predicted_"]) == 0
    copy = (here / name.replace(".", ".scored.")).read_text()
    assert "predicted_label" in copy
    assert "predicted_error" in copy
    with scripted(server_of(regression)) as server:
        assert main(["score", name, "--overwrite", "--url", server.url]) == 0


def test_parquet_without_pyarrow_shows_the_command_to_install_it(
    here: Path, capsys: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["score", "a.parquet"]) == 1
    assert f"{sys.executable} -m pip install pyarrow" in capsys.readouterr().err


def sentiment(arguments: list[str], url: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "sentiment", *arguments],
        cwd=CLIENT,
        env={"SENTIMENT_URL": url, "SENTIMENT_MODEL": "mine"},
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_standard_input_is_scored_to_standard_output(answering: Scripted) -> None:
    content = gzip.compress(TABLE.encode("cp1252"))
    result = sentiment(["score", "-", "--delimiter", ";", "--encoding", "cp1252"], answering.url, content)
    assert (result.returncode, result.stdout) == (0, TABLE_SCORED.encode("cp1252"))
    assert result.stderr.startswith(b"standard output: 2 rows, 0 with errors")
    result = sentiment(["score", "-"], answering.url, b"text,n\nlate\n")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.startswith(b"error: standard input, line 2, has 1 cells, but the header has 2. Quote")


def test_a_file_is_scored_to_standard_output_and_standard_input_to_a_file(
    answering: Scripted, here: Path, capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a.jsonl").write_text(LINES)
    assert main(["score", "a.jsonl", "--output", "-", "--json"]) == 0
    output = capsysbinary.readouterr()
    assert [json.loads(line)["label"] for line in output.out.splitlines()] == [LATE["label"], EARLY["label"]]
    assert json.loads(output.err)["output"] == "-"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    assert main(["score", "-", "--format", "jsonl", "--output", "b.jsonl.gz"]) == 0
    assert gzip.decompress((here / "b.jsonl.gz").read_bytes()) == output.out
    assert sorted(path.name for path in here.iterdir()) == ["a.jsonl", "b.jsonl.gz"]


def test_by_default_one_small_request_is_sent_at_a_time(here: Path, capsys: Out) -> None:
    """Another client's request then waits for one small request at most."""
    (here / "a.csv").write_text("text\n" + "".join(f"flight {number}\n" for number in range(3 * MAX_TEXTS)))
    lock = threading.Lock()
    now: list[int] = []
    most: list[int] = []
    sizes: list[int] = []

    def answer(request: Request) -> Reply:
        with lock:
            now.append(1)
            most.append(len(now))
            sizes.append(len(request.json))
        try:
            return model(request)
        finally:
            with lock:
                now.pop()

    with scripted(answer) as server:
        assert main(["score", "a.csv", "--url", server.url]) == 0
        assert (max(most), max(sizes)) == (1, TEXTS_BESIDE_LIVE_TRAFFIC)
        assert main(["score", "a.csv", "--overwrite", "--url", server.url, "--connections", "3"]) == 0
        assert max(sizes) == MAX_TEXTS


def test_the_journal_of_an_older_release_blocks_a_run_only_if_it_has_results(
    answering: Scripted, here: Path, capsys: Out
) -> None:
    (here / "a.csv").write_text("text\nlate\n")
    journal = here / "a.scored.csv.journal"
    header = {"input": "a.csv", "bytes": 1, "modified_ns": 1, "text column": "text", "server": "elsewhere"}
    journal.write_text(json.dumps(header) + '\n["negative", 0.9, null, "1.0"]\n')
    assert main(["score", "a.csv"]) == 1
    assert "has 1 results of another run" in capsys.readouterr().err
    journal.write_text(json.dumps(header) + "\n")
    assert main(["score", "a.csv"]) == 0
    with (here / "a.scored.csv").open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["late"]


def test_a_terminal_shows_that_input_is_expected(answering: Scripted) -> None:
    controller, terminal = pty.openpty()
    for command, message in [
        ("predict", b"Type a text and press Enter. Ctrl-D ends the input."),
        ("explain", b"Type a text"),
        ("score", b"Type or paste a table. Ctrl-D ends the input."),
    ]:
        process = subprocess.Popen(
            [sys.executable, "-m", "sentiment", command, "-"],
            cwd=CLIENT,
            env={"SENTIMENT_URL": answering.url, "SENTIMENT_MODEL": "mine"},
            stdin=terminal,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with process:
            assert process.stderr is not None
            first_line = process.stderr.readline()
            os.write(controller, b"text\n\x04")
            assert process.wait(30) in (0, 1)
        assert first_line.startswith(message)
    os.close(controller)
    os.close(terminal)
