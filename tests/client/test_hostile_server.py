"""Broken and malicious servers: each costs the client a limited time and memory, and ends in one line of error."""

import gzip
import json
import math
import resource
import socket
import subprocess
import sys
import tracemalloc
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment import bounds, cli
from sentiment.errors import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError
from sentiment.inference import InferenceClient, Prediction
from sentiment.management import ManagementClient
from sentiment.status import status
from sentiment.transport import Transport
from tests.client.fake_torchserve import FakeTorchServe, Registered, serving
from tests.client.raw import BLOCK, Behave, raw, sending
from tests.client.scripted import Reply, Request, Scripted, error, scripted
from tests.paths import CLIENT

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
LIMIT_S = 0.6
"""Timeout of the client in these tests: shorter than the replies of all servers here."""

SLOW = 0.05
MEMORY_BYTES = 700 * 2**20
"""Limit of the program's address space, of which Python with its packages maps about 200 MB."""


def ask(behave: Behave, **settings: Any) -> ClientError:
    """The error of one request."""
    with raw(behave) as server:
        transport = Transport(server.url, retries=0, **({"read_timeout_s": 20.0} | settings))
        with pytest.raises(ClientError) as caught:
            transport.send("POST", "/predictions/sentiment", body={"text": "late"})
        transport.close()
        assert len(server.requests) == 1
    return caught.value


@pytest.mark.parametrize(
    "behave",
    [
        sending(OK + b"\r\n", BLOCK),
        sending(OK + b"Content-Length: 99999999999\r\n\r\n", BLOCK),
        sending(CHUNKED, b"10000\r\n" + BLOCK + b"\r\n"),
        sending(CHUNKED + b"ffffffffff\r\n", BLOCK),
        sending(CHUNKED + b"0\r\n", b"X-Trailer: x\r\n" * 1_000),
        sending(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000),
        sending(OK + b"Content-Type: application/json\r\n\r\n[", b"[],[],[],[],[]," * 4_000),
    ],
    ids=[
        "body until the end",
        "body of a length",
        "chunks",
        "one chunk",
        "trailers",
        "interim replies",
        "JSON",
    ],
)
def test_an_endless_reply_is_refused_and_not_stored(behave: Behave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "MAX_ANSWER_BYTES", 2**20)  # tracing memory makes everything slow
    tracemalloc.start()
    try:
        problem = ask(behave)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(problem, UnexpectedAnswerError)
    assert "sent more than 8 MiB" in str(problem)
    assert peak < 4 * 2**20


@pytest.mark.parametrize(
    "behave",
    [
        sending(b"", b"H", SLOW),
        sending(OK, b"X", SLOW),
        sending(OK, b"X: y\r\n", SLOW),
        sending(OK + b"\r\n", b" ", SLOW),
        sending(OK + b"Content-Length: 100000\r\n\r\n", b" ", SLOW),
        sending(CHUNKED, b"1\r\n \r\n", SLOW),
        sending(CHUNKED, b"0", SLOW),
        sending(CHUNKED + b"0\r\n", b"X: y\r\n", SLOW),
        sending(b"", b"HTTP/1.1 100 Continue\r\n\r\n", SLOW),
    ],
    ids=[
        "status line",
        "header",
        "headers",
        "body until the end",
        "body of a length",
        "chunks",
        "size of a chunk",
        "trailers",
        "interim replies",
    ],
)
def test_a_slow_reply_has_one_deadline(behave: Behave) -> None:
    """A socket's timeout alone restarts with each byte."""
    problem = ask(behave, read_timeout_s=LIMIT_S)
    assert isinstance(problem, UnreachableError)
    assert "no complete reply after 0.6 s" in str(problem)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"SSH-2.0-OpenSSH_9.2\x1b[31m\r\n", UnexpectedAnswerError),
        (b"\x00\xff\x15\x03\x01\x00\x02\x02\x16" * 20, UnexpectedAnswerError),
        (b"hello", UnexpectedAnswerError),
        (b"HTTP/1.1 abc OK\r\n\r\n", UnexpectedAnswerError),
        (b"HTTP/9.9 200 OK\r\n\r\n{}", UnexpectedAnswerError),
        (OK + b"X: y\r\n" * 200 + b"\r\n", UnexpectedAnswerError),
        (OK + b"X: " + BLOCK * 2 + b"\r\n\r\n", UnexpectedAnswerError),
        (OK + b"Content-Length: 5\r\n\r\n{}", UnreachableError),
        (OK + b"Content-Length: 1\r\n\r\n{}", UnexpectedAnswerError),
        (OK + b"Content-Length: -1\r\n\r\n}", UnexpectedAnswerError),
        (CHUNKED + b"zz\r\n{}", UnexpectedAnswerError),
        (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", UnexpectedAnswerError),
        (CHUNKED + BLOCK * 2, UnreachableError),
        (OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000, UnexpectedAnswerError),
        (
            OK + b'Content-Type: application/json; charset="no such"\r\nContent-Length: 1\r\n\r\n\xff',
            UnexpectedAnswerError,
        ),
        (b"HTTP/1.1 500 No\r\nContent-Type: text/html; charset=\xff\r\nContent-Length: 1\r\n\r\n\xff", RefusedError),
        (b"HTTP/1.1 500 No\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, RefusedError),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", UnexpectedAnswerError),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", UnexpectedAnswerError),
        (b"HTTP/1.1 204 No Content\r\n\r\n", UnexpectedAnswerError),
        (
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\n{}",
            UnexpectedAnswerError,
        ),
        (b"HTTP/1.1 999 \x1b[31m\r\nContent-Length: 2\r\n\r\n{}", RefusedError),
        (b"HTTP/1.1 503 No\r\nRetry-After: " + b"9" * 5_000 + b"\r\nContent-Length: 0\r\n\r\n", ClientError),
        (b"HTTP/1.1 503 No\r\nRetry-After: Thu, 99 Foo 99999 99:99:99\r\nContent-Length: 0\r\n\r\n", ClientError),
        (OK + b"Content-Length: 3\r\n\r\nNaN", UnexpectedAnswerError),
        (OK + b"Content-Length: 7\r\n\r\n[1e999]", UnexpectedAnswerError),
        (OK + b"Content-Length: 5000\r\n\r\n" + b"9" * 5_000, UnexpectedAnswerError),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else value.__name__,
)
def test_an_invalid_reply_is_an_error(content: bytes, kind: type[ClientError]) -> None:
    assert isinstance(ask(sending(content)), kind)


def test_compressed_data_is_not_decompressed() -> None:
    """The client did not request compression, and a megabyte can decompress to a gigabyte."""
    body = gzip.compress(b" " * 50_000_000)
    head = OK + f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    tracemalloc.start()
    try:
        problem = ask(sending(head + body))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(problem, UnexpectedAnswerError)
    assert "gzip data, which was not requested" in str(problem)
    assert peak < bounds.MAX_ANSWER_BYTES


def test_the_command_line_survives_an_endless_reply_with_little_memory() -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    with raw(sending(OK + b"\r\n[", b"[],[],[],[],[]," * 4_000)) as server:
        command = [sys.executable, "-m", "sentiment", "predict", "late", "--url", server.url]
        result = subprocess.run(
            command,
            cwd=CLIENT,
            preexec_fn=limited,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == f"error: {server.url} sent more than 8 MiB, more than any reply of TorchServe.\n"


def test_connections_are_reused() -> None:
    """The limits do not prevent the reuse of connections."""
    ports = set()

    def answer(connection: socket.socket) -> None:
        ports.add(connection.getpeername()[1])
        while True:
            connection.sendall(OK + b"Content-Length: 2\r\n\r\n{}")
            if not connection.recv(65_536):
                return

    with raw(answer) as server:
        transport = Transport(server.url)
        for _ in range(5):
            assert transport.send("GET", "/ping").value == {}
        transport.close()
    assert len(ports) == 1


def test_an_expired_deadline_does_not_shorten_the_next_request() -> None:
    """A pooled connection still has the timeout of its last request."""
    with scripted(lambda _: Reply(delay_s=0.4)) as server:
        transport = Transport(server.url, retries=0, read_timeout_s=0.7)
        for _ in range(3):
            assert transport.send("GET", "/ping").value == {}
        transport.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["label", "scores", "a"]), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def scripted_values() -> Iterator[tuple[Scripted, list[object]]]:
    """A server that answers every request with the last value of a list."""
    values: list[object] = [None]
    with scripted(lambda _: Reply(200, json.dumps(values[-1]).encode())) as server:
        yield server, values


KINDS = st.fixed_dictionaries({"label": JSON, "score": JSON, "scores": JSON})
KINDS |= st.fixed_dictionaries({"labels": JSON | st.lists(st.text(max_size=3)), "scores": JSON | st.just({})})
KINDS |= st.fixed_dictionaries({"value": JSON | st.floats() | st.just(10**400)})


@given(value=KINDS | JSON, texts=st.integers(1, 2))
def test_a_prediction_has_the_types_of_the_api_or_is_an_error(
    scripted_values: tuple[Scripted, list[object]], value: object, texts: int
) -> None:
    server, values = scripted_values
    values.append([value] * texts if texts > 1 else value)
    with InferenceClient(server.url, retries=0) as client:
        try:
            predictions = client.predict_many(["late"] * texts)
        except UnexpectedAnswerError:
            return
    for prediction in predictions:
        assert isinstance(prediction, Prediction)
        check_kind(prediction)
        assert all(name.encode() is not None and 0 <= value <= 1 for name, value in prediction.scores.items())


def check_kind(prediction: Prediction) -> None:
    """Check that a prediction has the fields of its kind, and no others."""
    match prediction.label, prediction.score, prediction.labels, prediction.value:
        case str() as label, float() as score, None, None:
            assert 0 <= score <= 1
            assert label.encode() is not None
        case None, None, tuple() as labels, None:
            assert all(label.encode() is not None for label in labels)
        case None, None, None, float() as value:
            assert math.isfinite(value)
        case _:
            pytest.fail(repr(prediction))
    assert isinstance(prediction.predicted, str)
    json.dumps(prediction.to_json())


DESCRIBED = {
    "modelVersion": "1.0",
    "modelUrl": "sentiment.mar",
    "minWorkers": 1,
    "batchSize": 16,
    "maxBatchDelay": 1,
    "responseTimeout": 30,
    "jobQueueStatus": {"pendingRequests": 0},
    "workers": [{"status": "READY", "startTime": "2026-11-28T12:00:00.000Z", "pid": 7}],
    "customizedMetadata": {"notes": "A model.", "metrics": {"test": {"accuracy": 0.8, "macro_f1": 0.7, "n": 9}}},
}


@given(st.data())
def test_the_status_can_be_shown_for_any_description(
    scripted_values: tuple[Scripted, list[object]], data: st.DataObject
) -> None:
    server, values = scripted_values
    described: dict[str, Any] = json.loads(json.dumps(DESCRIBED))
    places = [described, described["jobQueueStatus"], described["workers"][0], described["customizedMetadata"]]
    places += [described["customizedMetadata"]["metrics"], described["customizedMetadata"]["metrics"]["test"]]
    place = data.draw(st.sampled_from(places))
    place[data.draw(st.sampled_from([*place, "exported", "archive"]))] = data.draw(JSON)
    values.append([described])
    with InferenceClient(server.url, retries=0) as client, ManagementClient(server.url) as management:
        state = status(client, management)
    assert all(line.isprintable() for line in str(state).split("\n"))
    json.loads(json.dumps(state.to_json(), allow_nan=False))


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\u2028\r\n\ud800x"


def answer_evil(request: Request) -> Reply:
    """A reply in which every string contains control characters of terminals."""
    if request.path == "/refused/predictions/sentiment":
        return error(400, f"Some{EVIL}Error", EVIL)
    if request.path == "/failing/predictions/sentiment":
        return error(404, f"Some{EVIL}Error", EVIL)
    if request.path == "/other/predictions/sentiment":
        return Reply(200, EVIL.encode("utf-8", "replace"))
    label = EVIL.replace("\ud800", "")
    value = {"label": label, "score": 0.5, "scores": {label: 0.5}}
    body = json.dumps([value] * len(request.json) if isinstance(request.json, list) else value).encode()
    return Reply(200, body, {"X-Model-Version": "1.0\x1b[31m\x9b"})


def steers(text: str) -> list[str]:
    """The characters of an output that would control a terminal, or change the order of its text."""
    return [
        character
        for character in text
        if character != "\n" and unicodedata.category(character)[0] in "CZ" and character != " "
    ]


@pytest.mark.parametrize("path", ["", "/refused", "/failing", "/other"])
@pytest.mark.parametrize(
    "command", [["predict", "late"], ["predict", "late", "--json"], ["score"], ["score", "--json"]], ids=" ".join
)
def test_no_prediction_and_no_refusal_controls_a_terminal(
    path: str, command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tweets.csv").write_text("text\nlate\n")
    if command[0] == "score":
        command = [*command, str(tmp_path / "tweets.csv")]
    with scripted(answer_evil) as server:
        code = cli.main([*command, "--url", server.url + path])
    output = capsys.readouterr()
    assert code == {"": 0, "/refused": 4, "/failing": 1, "/other": 1}[path], output.err
    assert (steers(output.out), steers(output.err)) == ([], [])
    if "--json" in command:
        assert output.out.isascii()


@pytest.mark.parametrize("failing", ["", "POST /models", "set-default", "GET /ping", "DELETE", "all"])
@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["scale", "1"],
        ["register", "sentiment-2.mar"],
        ["rollout", "sentiment-2.mar", "--drain", "0", "--max-changed", "1"],
        ["rollback", "--drain", "0"],
        ["unregister", "0.9", "--drain", "0"],
    ],
    ids=" ".join,
)
def test_no_description_controls_a_terminal(
    command: list[str], failing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def before(line: str) -> Reply | None:
        fails = failing and (line.endswith(failing) or line.startswith(failing))
        return error(400, EVIL, EVIL) if fails else None

    versions = {
        name: Registered(f"{name}{EVIL}.mar", 1, started=started) for started, name in enumerate(["0.9", "1.0"])
    }
    fake = FakeTorchServe(versions=versions, label=lambda version, _: f"{version}{EVIL[:-2]}", before=before)
    with serving(fake) as server:
        addresses = ["--management-url", server.url]
        addresses += [] if command[0] in ("scale", "register", "unregister") else ["--url", server.url]
        cli.main([*command, *addresses])
    output = capsys.readouterr()
    assert output.out + output.err
    assert (steers(output.out), steers(output.err)) == ([], [])


def test_csv_and_parquet_can_hold_any_reply(tmp_path: Path) -> None:
    """A message with an unpaired surrogate cannot be encoded in a file."""
    import pandas as pd

    frame = pd.DataFrame({"text": ["late", "early"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    with scripted(answer_evil) as server:
        for suffix in ("csv", "parquet", "jsonl"):
            assert cli.main(["score", str(tmp_path / f"a.{suffix}"), "--url", f"{server.url}/refused"]) == 4
    assert list(pd.read_parquet(tmp_path / "a.scored.parquet")["error"].str.startswith("Some")) == [True, True]
