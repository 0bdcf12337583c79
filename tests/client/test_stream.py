"""Scoring of streams: results are written while rows still arrive."""

import csv
import gzip
import io
import json
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sentiment.cli import main
from sentiment.errors import RefusedError
from sentiment.inference import InferenceClient
from sentiment.score import REQUESTS_AHEAD, TEXTS_BESIDE_LIVE_TRAFFIC
from sentiment.stream import PROBE, answered
from tests.client.scripted import Reply, Request, Scripted, error, model, prediction, scripted
from tests.interruptible import heed_sigint
from tests.paths import CLIENT

Out = pytest.CaptureFixture[bytes]


@pytest.fixture(scope="module")
def answering() -> Iterator[Scripted]:
    with scripted(model) as server:
        yield server


@contextmanager
def piped(server: Scripted, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """Run `sentiment score -`; yields the process, its standard input and its standard output."""
    command = [sys.executable, "-m", "sentiment", "score", "-", *options]
    settings = {"SENTIMENT_URL": server.url, "SENTIMENT_MODEL": "mine"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command,
        cwd=CLIENT,
        env=settings,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        preexec_fn=heed_sigint,  # noqa: PLW1509
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process, process.stdin, process.stdout
        finally:
            process.kill()


def cells(*texts: str) -> list[list[str]]:
    return [[text, prediction(text)["label"], str(prediction(text)["score"]), ""] for text in texts]


def packed(sync: bool) -> Callable[[bytes], bytes]:
    """A compressor of a program's output, in parts."""
    packer = zlib.compressobj(wbits=31)
    return lambda content: packer.compress(content) + packer.flush(zlib.Z_SYNC_FLUSH) if sync else content


@pytest.mark.parametrize("kind", ["plain", "gzip", "utf-16"])
def test_a_result_is_written_before_the_next_row_arrives(answering: Scripted, kind: str) -> None:
    written = packed(sync=kind == "gzip")
    encoding = "utf-16-le" if kind == "utf-16" else "utf-8"

    def put(stdin: IO[bytes], text: str) -> None:
        stdin.write(written(text.encode(encoding)))
        stdin.flush()

    options = ["--encoding", "utf-16-le"] if kind == "utf-16" else []
    with piped(answering, *options) as (process, stdin, stdout):
        put(stdin, "text\nlate\nea")
        lines = io.TextIOWrapper(stdout, encoding=encoding, newline="")
        assert lines.readline() == "text,label,score,error\n"
        rows = csv.reader(lines)
        assert [next(rows)] == cells("late")
        put(stdin, 'rly\n"two\nlines"\n')
        assert [next(rows), next(rows)] == cells("early", "two\nlines")
        stdin.write(zlib.compressobj(wbits=31).flush() if kind == "gzip" else b"")
        stdin.close()
        assert lines.read() == ""
        code = process.wait(30)
        assert process.stderr is not None
        errors = process.stderr.read()
    if kind == "gzip":  # the end of the compressed data is missing
        assert (code, b"3 rows are done and written.\n" in errors, b"is not complete gzip" in errors) == (1, True, True)
    else:
        assert (code, errors.startswith(b"standard output: 3 rows, 0 with errors")) == (0, True)


def test_an_interrupted_stream_has_written_its_results(answering: Scripted, tmp_path: Path) -> None:
    output = tmp_path / "labels.jsonl"
    with piped(answering, "--format", "jsonl", "--output", str(output)) as (process, stdin, _):
        stdin.write(b'{"text": "late"}\n')
        stdin.flush()
        while not output.exists() or not output.read_bytes().endswith(b"\n"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"1 rows are done and written.\nInterrupted.\n"
    assert json.loads(output.read_bytes())["label"] == prediction("late")["label"]


def test_a_closed_output_ends_the_stream_silently(answering: Scripted) -> None:
    with piped(answering) as (process, stdin, stdout):
        stdin.write(b"text\nlate\n")
        stdin.flush()
        assert stdout.readline() == b"text,label,score,error\n"
        stdout.close()
        stdin.write(b"late\n" * 100)
        stdin.flush()
        assert process.wait(30) == 1, "while the input goes on"
        assert process.stderr is not None
        assert process.stderr.read() == b""


def score(server: Scripted, monkeypatch: pytest.MonkeyPatch, content: bytes, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    return main(["score", "-", "--url", server.url, "--model", "mine", *options])


@pytest.mark.parametrize(
    ("content", "options", "written", "message"),
    [
        (b"text,n\nlate,1\n\nlate\n", [], 2, "line 4, has 1 cells, but the header has 2"),
        (b"text\nlate\n\nGr\xfc\xdfe\n", [], 2, "line 4, is not UTF-8: invalid start byte. Set the file's encoding"),
        (b"text\nlate\n" + b"late\n" * 9_999 + b"\xff\n", [], 10_001, "line 10002, is not UTF-8"),
        (b'text\nlate\n"open\n' + b"late\n" * 9, [], 2, "line 3, is not valid CSV: unexpected end of data"),
        (gzip.compress(b"text\nlate\n", mtime=0)[:-4], [], 2, "is not complete gzip"),
        (b'{"text": "late"}\n\n{"text": 5}\n', ["--format", "jsonl"], 1, "line 3, is not a JSON object"),
        (b'{"text": "late"}\n{"text": "", "error": 1}\n', ["--format", "jsonl"], 1, "already has a column 'error'"),
        (b"text;n\nlate;1\n", [], 0, "With --delimiter ';', it has one."),
        (
            "text\nlate\n".encode("utf-16"),
            [],
            0,
            "line 1, is not UTF-8: invalid start byte. The file starts like UTF-16",
        ),
        (b"text,label\nlate,x\n", [], 0, "already has a column 'label'"),
        (b'{"tweet": "late"}\n', ["--format", "jsonl"], 0, "has no column 'text'; it has tweet"),
        (b"", [], 0, "has no column 'text'; it has none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_names_its_line_and_follows_all_earlier_rows(
    answering: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: Out,
    content: bytes,
    options: list[str],
    written: int,
    message: str,
) -> None:
    assert score(answering, monkeypatch, content, *options, "--connections", "4") == 1
    output = capsysbinary.readouterr()
    assert output.out.count(b"\n") == written
    assert message in output.err.decode()


TEXTS = st.sampled_from(["late", "early, late", 'half "', "two\nlines", " ", "late " * 60, "✈"])


@settings(max_examples=20)
@given(texts=st.lists(TEXTS, max_size=30), connections=st.integers(1, 3), end=st.sampled_from(["\n", "\r\n"]))
def test_a_stream_is_scored_like_a_file(
    answering: Scripted, tmp_path_factory: pytest.TempPathFactory, texts: list[str], connections: int, end: str
) -> None:
    folder = tmp_path_factory.mktemp("stream")
    content = io.StringIO(newline="")
    csv.writer(content, lineterminator=end).writerows([("text", "n"), *((text, "1") for text in texts)])
    (folder / "a.csv").write_text(content.getvalue(), newline="")
    common = ["--url", answering.url, "--model", "mine", "--scores", "--connections", str(connections)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.getvalue().encode())))
        codes = [
            main(["score", "-", "--output", str(folder / "stream.csv"), *common]),
            main(["score", str(folder / "a.csv"), "--output", str(folder / "file.csv"), *common]),
        ]
    with (folder / "stream.csv").open(newline="") as first, (folder / "file.csv").open(newline="") as second:
        rows, expected = list(csv.DictReader(first)), list(csv.DictReader(second))
    assert codes[0] == codes[1] == (4 if any(row["error"] for row in expected) else 0)
    # A stream's header is written with the first result, so the order of its classes may differ.
    assert rows == [{name: row.get(name, "") for name in rows[0]} for row in expected]


def test_few_rows_are_in_memory_and_in_order_for_slow_requests() -> None:
    taken = 0

    def rows() -> Iterator[tuple[Any, str]]:
        nonlocal taken
        for taken in range(1, 301):
            yield taken, f"flight {taken}"

    def slow(request: Request) -> Reply:
        reply = model(request)
        late = isinstance(request.json, list) and "flight 30" in request.json
        return Reply(reply.status, reply.body, delay_s=0.3 if late else 0)

    connections, done, ahead = 2, 0, []
    with scripted(slow) as server, InferenceClient(server.url, connections=connections) as client:
        for part, answers in answered(client, rows(), TEXTS_BESIDE_LIVE_TRAFFIC):
            assert len(part) == len(answers) <= TEXTS_BESIDE_LIVE_TRAFFIC
            assert [row for row, _ in part] == list(range(done + 1, done + 1 + len(part)))
            done += len(part)
            ahead.append(taken - done)
    assert done == 300
    assert max(ahead) <= 2 * connections * REQUESTS_AHEAD * TEXTS_BESIDE_LIVE_TRAFFIC + 1


def test_a_failed_request_ends_the_stream_after_all_earlier_rows() -> None:
    def answer(request: Request) -> Reply:
        texts = request.json if isinstance(request.json, list) else [request.json["text"]]
        return error(404, "ModelNotFoundException") if "flight 9" in texts else model(request)

    seen: list[int] = []
    with scripted(answer) as server, InferenceClient(server.url, connections=3, retries=0) as client:
        rows = ((number, f"flight {number}") for number in range(100))
        with pytest.raises(RefusedError, match="ModelNotFoundException"):
            seen.extend(part[0][0] for part, _ in answered(client, rows, 1))
    assert seen == list(range(9))


def multi_label(text: str) -> dict[str, Any]:
    return {"labels": ["rude"], "scores": {"rude": 0.75, "late": 0.25}}


def test_the_columns_fit_the_model_if_the_first_rows_have_no_prediction(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: Out
) -> None:
    asked: list[str] = []

    def answer(request: Request) -> Reply:
        texts = request.json if isinstance(request.json, list) else [request.json["text"]]
        asked.extend(texts)
        if not all(text.strip() for text in texts):
            return error(400, "BlankTextError")
        predictions = [multi_label(text) for text in texts]
        return Reply(200, json.dumps(predictions if isinstance(request.json, list) else predictions[0]).encode())

    with scripted(answer) as server:
        assert score(server, monkeypatch, b'text\n" "\n', "--scores") == 4
    assert asked == [" ", PROBE]
    header, row = capsysbinary.readouterr().out.splitlines()
    assert header == b"text,labels,score_rude,score_late,error"
    assert row.startswith(b" ,,,,BlankTextError: ")


def test_a_change_of_the_model_during_a_stream_is_an_error(monkeypatch: pytest.MonkeyPatch, capsysbinary: Out) -> None:
    def answer(request: Request) -> Reply:
        texts = request.json if isinstance(request.json, list) else [request.json["text"]]
        predictions = [{"value": 1.5} if "late" in text else prediction(text) for text in texts]
        return Reply(200, json.dumps(predictions if isinstance(request.json, list) else predictions[0]).encode())

    with scripted(answer) as server:
        content = "text\n" + "early\n" * 200 + "late\n"
        assert score(server, monkeypatch, content.encode()) == 1
    output = capsysbinary.readouterr()
    assert b"The new model's results need the column 'value', which the header lacks" in output.err
    assert b"early,negative" in output.out
