"""Any input gives a documented exit code and one line with the error, without a traceback."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sentiment import cli
from sentiment.inference import MAX_CONNECTIONS
from sentiment.management import MAX_WORKERS
from tests.client.fake_torchserve import FakeTorchServe, serving
from tests.client.scripted import Reply, Request, Scripted, model, scripted
from tests.e2e.server_process import free_ports
from tests.interruptible import heed_sigint
from tests.paths import CLIENT

CODES = {0, 1, 2, 3, 4, 130, 143}
ODD = [
    "",
    " ",
    ".",
    "..",
    "/",
    "-",
    "--",
    "a/b",
    "%2f",
    "\n",
    "\x1b[31m",
    "\udcff",
    "é",
    "nan",
    "inf",
    "-1",
    "0",
    "1e999",
]
ODD += [
    "4294967297",
    "1000000",
    "9" * 5_000,
    "٣",
    "²",
    "1_0",
    " 1",
    "http://[::1",
    "ftp://x",
    "http://127.0.0.1:1",
    "x" * 300,
]
OPTIONS = [
    "--url",
    "--management-url",
    "--model",
    "--version",
    "--file",
    "--sample",
    "--drain",
    "--max-changed",
    "--json",
]
OPTIONS += ["--connections", "--workers", "--output", "--overwrite", "--text-column", "--keep-old", "--help"]
COMMANDS = ["predict", "score", "status", "scale", "register", "unregister", "rollout", "rollback"]


@pytest.fixture(scope="module")
def answering() -> Iterator[Scripted]:
    with scripted(model) as server:
        yield server


def run(
    arguments: list[str | bytes],
    *,
    url: str = "http://127.0.0.1:1",
    stdin: int | IO[Any] | None = subprocess.DEVNULL,
    stdout: int | IO[Any] | None = subprocess.PIPE,
    environment: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Run the command line as a process; returns its exit code and its standard error."""
    result = subprocess.run(
        [sys.executable, "-m", "sentiment", *arguments],
        env={"SENTIMENT_URL": url, "SENTIMENT_MANAGEMENT_URL": url} | (environment or {}),
        cwd=CLIENT,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    errors = result.stderr.decode()
    check(result.returncode, errors)
    return result.returncode, errors


def check(code: int, errors: str) -> None:
    assert code in CODES, errors
    for word in ("Traceback", "Exception ignored", "Error:"):
        assert word not in errors, errors


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    start=st.lists(st.sampled_from(["--every-pod", "--namespace", "--selector", "--context", *ODD]), max_size=2),
    command=st.sampled_from(COMMANDS),
    rest=st.lists(st.sampled_from(OPTIONS) | st.sampled_from(ODD) | st.text(max_size=5), max_size=6),
    variables=st.fixed_dictionaries(
        {name: st.sampled_from(ODD[:12]).filter(str.isascii) for name in ("SENTIMENT_MODEL", "SENTIMENT_TOKEN")}
    ),
)
def test_any_arguments_give_an_exit_code_and_a_message(
    start: list[str],
    command: str,
    rest: list[str],
    variables: dict[str, str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(here))  # without kubectl
    monkeypatch.setattr(sys, "stdin", open(os.devnull, encoding="utf-8"))  # noqa: SIM115
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = call([*start, command, *rest])
    sys.stdin.close()
    output = capsys.readouterr()
    assert code in CODES
    assert code == 0 or output.err or "does not answer" in output.out
    assert list(here.iterdir()) == []


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory, and addresses without a server."""
    [port] = free_ports(1)
    for name in ("SENTIMENT_URL", "SENTIMENT_MANAGEMENT_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.setattr(random, "uniform", lambda *_: 0)  # no pauses before retries
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_an_invalid_file_is_an_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(here / "pipe.csv")
    (here / "folder.csv").mkdir()
    (here / "binary.csv").write_bytes(bytes(range(256)))
    (here / "text.csv").write_text("text\nlate\n")
    (here / "plain").write_text("text\nlate\n")
    for arguments, message in [
        (["score", "."], ". is a folder"),
        (["score", ".."], "The format of .. is unknown. Expected the ending .csv, .tsv"),
        (["score", "/"], "/ is a folder"),
        (["score", ""], ". is a folder"),
        (["score", "folder.csv"], "folder.csv is not a regular file"),
        (["score", "pipe.csv"], "pipe.csv is not a regular file"),
        (["score", "missing.csv"], "No file at missing.csv"),
        (["score", "plain"], "The format of plain is unknown"),
        (["score", "/dev/null"], "The format of /dev/null is unknown"),
        (["score", "binary.csv"], "binary.csv has no column 'text'"),
        (["score", "text.csv/x.csv"], "No file at text.csv/x.csv"),
        (["score", "x" * 300 + ".csv"], "File name too long"),
        (["score", "text.csv", "--output", "missing/out.csv"], "missing/out.csv.journal: No such file"),
        (["score", "text.csv", "--output", "text.csv/out.csv"], "Not a directory"),
        (["score", "text.csv", "--output", "folder.csv"], "folder.csv is a folder"),
        (["score", "text.csv", "--output", "."], ". is a folder"),
        (["score", "text.csv", "--output", ""], ". is a folder"),
        (["score", "text.csv", "--output", "text.csv"], "text.csv already exists"),
        (["score", "text.csv", "--output", "text.csv", "--overwrite"], "text.csv already exists"),
        (["predict", "--file", "."], "error: .: Is a directory"),
        (["predict", "--file", "missing"], "error: missing: No such file or directory"),
        (["predict", "--file", "/dev/zero"], "/dev/zero has a line of more than 1,000,000 characters"),
        (["rollout", "a.mar", "--sample", "/dev/null"], "/dev/null contains no text"),
        (["rollout", "a.mar", "--sample", "."], "error: .: Is a directory"),
    ]:
        code, errors = call(arguments), capsys.readouterr().err
        assert (code, message in errors) == (1, True), (arguments, errors)
    assert not list(here.glob("*.journal"))


CELLS = st.binary(max_size=12) | st.sampled_from(
    [b"text", b"label", b",", b"\n", b"\r", b'"', b"\x00", b"\xef\xbb\xbf", b"\xff"]
)
LINES = st.sampled_from(
    [
        b'{"text": "late"}',
        b'{"text": "\\ud800"}',
        b'{"text": "late"',
        b"{}",
        b"[]",
        b"null",
        b'{"n": 1e999}',
        b"[" * 9_999,
    ]
)
LINES |= st.just(b'{"n": ' + b"9" * 5_000 + b"}") | CELLS


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    suffix=st.sampled_from(["csv", "jsonl", "parquet"]),
    start=st.sampled_from([b"", b"text\n", b"\xef\xbb\xbfid,text\r\n", b'{"text": "late"}\n', b"PAR1"]),
    parts=st.lists(LINES, max_size=6),
    between=st.sampled_from([b"\n", b",", b""]),
    end=st.sampled_from([b"", b"\n", b"\x10\x00\x00\x00PAR1"]),
)
def test_a_file_of_any_bytes_is_scored_or_refused(
    answering: Scripted,
    suffix: str,
    start: bytes,
    parts: list[bytes],
    between: bytes,
    end: bytes,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for left in here.iterdir():
        left.unlink()
    (here / f"a.{suffix}").write_bytes(start + between.join(parts) + end)
    code = call(["score", f"a.{suffix}", "--url", answering.url])
    errors = capsys.readouterr().err
    assert code in (0, 4) or (code == 1 and errors.startswith("error: ")), errors
    written = {path.name for path in here.iterdir()}
    assert written == {f"a.{suffix}"} | ({f"a.scored.{suffix}"} if code != 1 else set())


def test_invalid_usage_is_explained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        (["scale", "4294967297"], f"from 1 to {MAX_WORKERS}"),
        (["scale", "9" * 5_000], f"from 1 to {MAX_WORKERS}"),
        (["scale", "1.5"], f"from 1 to {MAX_WORKERS}"),
        (["register", "a.mar", "--workers", "1025"], f"from 1 to {MAX_WORKERS}"),
        (["score", "a.csv", "--connections", "1000000"], f"from 1 to {MAX_CONNECTIONS}"),
        (["score", "a.csv", "--delimiter", ""], "'' is not a delimiter"),
        (["score", "a.csv", "--delimiter", ";;"], "';;' is not a delimiter"),
        (["score", "a.csv", "--delimiter", '"'], "is not a delimiter"),
        (["score", "a.csv", "--encoding", "utf-9"], "'utf-9' is not a text encoding"),
        (["score", "a.csv", "--encoding", "hex"], "'hex' is not a text encoding"),
        (["score", "a.csv", "--encoding", "\udcff"], "is not a text encoding"),
        (["score", "a.csv", "--format", "xlsx"], "invalid choice: 'xlsx'"),
        (["rollout", "a.mar", "--max-changed", "nan"], "'nan' is not a number from 0 to 1"),
        (["rollout", "a.mar", "--max-changed", "x"], "'x' is not a number from 0 to 1"),
        (["rollout", "a.mar", "--drain", "nan"], "'nan' is not a number of seconds"),
        (["rollout", "a.mar", "--drain", "1e308"], "from 0 to 86400"),
        (["status", "--url", "ftp://x"], "Expected http://HOST:PORT"),
        (["status", "--url", "http://[::1"], "Expected http://HOST:PORT"),
        (["status", "--url", "http://user:SECRET@x"], "contains a user name or a password"),
        (["predict", "late", "--model", ".."], "cannot be the name of a model"),
        (["predict", "late", "--version", "a/b"], "cannot be the name of a model or a version"),
        (["unregister", ""], "cannot be the name of a model or a version"),
        (["predict", "late", "--model", "\udcff"], "cannot be the name of a model"),
        (["status", "--url", "http://\udcff"], "Expected http://HOST:PORT"),
    ]:
        code, errors = call(arguments), capsys.readouterr().err
        assert (code, message in errors, "SECRET" in errors) == (2, True, False), (arguments, errors)


def test_an_archives_name_that_is_not_unicode_is_refused() -> None:
    with serving(FakeTorchServe()) as server:
        for archive in (b"\xff.mar", b""):
            code, errors = run(["register", archive], url=server.url)
            assert (code, "cannot be an archive's name" in errors) == (1, True), errors


def test_empty_variables_count_as_unset(answering: Scripted) -> None:
    variables = {"SENTIMENT_MODEL": "", "SENTIMENT_TOKEN": " \n", "SENTIMENT_MANAGEMENT_URL": ""}
    assert run(["predict", "late"], url=answering.url, environment=variables) == (0, "")
    assert answering.requests[-1].path == "/predictions/sentiment"


def test_help_works_with_any_environment() -> None:
    variables = {"SENTIMENT_URL": "http://%s\udcff", "SENTIMENT_MODEL": "%(default)s \udcff", "LC_ALL": "C"}
    assert run(["predict", "--help"], environment=variables) == (0, "")


def test_the_error_of_a_text_that_is_not_unicode_is_in_its_line(answering: Scripted) -> None:
    assert run([b"predict", b"Gr\xfc\xdfe"], url=answering.url)[0] == 4


def test_a_byte_order_mark_is_not_part_of_a_text(answering: Scripted, tmp_path: Path) -> None:
    """Standard input and a file are read in the same way, with the same line ends."""
    content = b"\xef\xbb\xbflate again\na\rb\r\nlast"
    (tmp_path / "texts.txt").write_bytes(content)
    asked: list[object] = []
    for arguments in (["predict"], ["predict", "--file", str(tmp_path / "texts.txt")]):
        with (tmp_path / "texts.txt").open("rb") as file:
            assert run([*arguments], url=answering.url, stdin=file)[0] == 0
        asked.append(answering.requests[-1].json)
    assert asked == [["late again", "a\rb", "last"]] * 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments", [["predict", "late"], ["predict", "--help"], ["predict", "late", "--json"]], ids=" ".join
)
def test_an_output_on_a_full_disk_causes_no_traceback(answering: Scripted, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        code, errors = run([*arguments], url=answering.url, stdout=full)
    if "--help" not in arguments:
        assert (code, errors) == (1, "error: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
@pytest.mark.parametrize("arguments", ["predict", "predict late", "score {}", "fly"])
def test_closed_streams_cause_no_traceback(answering: Scripted, closed: str, arguments: str, tmp_path: Path) -> None:
    source = tmp_path / "tweets.csv"
    source.write_text("text\nlate\n")
    command = f"exec {sys.executable} -m sentiment {arguments.format(source)} {closed}"
    environment = {
        "SENTIMENT_URL": answering.url,
        "SENTIMENT_MANAGEMENT_URL": answering.url,
        "PATH": os.environ["PATH"],
    }
    result = subprocess.run(
        ["sh", "-c", command],
        cwd=CLIENT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    check(result.returncode, result.stderr)
    if ">&-" in closed.split() or (closed == "<&-" and arguments == "predict"):
        assert result.returncode in (1, 2)


@contextmanager
def started(arguments: list[str], url: str, **settings: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "sentiment", *arguments],
        cwd=CLIENT,
        env={"SENTIMENT_URL": url, "SENTIMENT_MANAGEMENT_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,  # noqa: PLW1509
        **settings,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Terminated.")]
)
@pytest.mark.parametrize("command", ["predict", "score", "rollout"])
def test_a_signal_ends_a_command_at_once_and_cleanly(
    command: str, number: signal.Signals, code: int, message: str, tmp_path: Path
) -> None:
    """The command does not wait for pending requests to a server that does not answer."""
    hanging = threading.Event()
    fake = FakeTorchServe()

    def answer(request: Request) -> Reply:
        if request.method == "POST" and "predictions" in request.path and b'"flight 0"' not in request.body:
            hanging.set()
            return Reply(delay_s=30)
        return fake(request)

    source = tmp_path / "tweets.csv"
    source.write_text("text\n" + "".join(f"flight {number}\n" for number in range(6_400)))
    arguments = {
        "predict": ["predict", "--file", str(source)],
        "score": ["score", str(source)],
        "rollout": ["rollout", "sentiment-2.mar"],
    }[command]
    with scripted(answer) as server, started(arguments, server.url) as process:
        assert hanging.wait(30)
        if command == "score":
            wait_for_a_row(tmp_path / "tweets.scored.csv.journal")
        process.send_signal(number)
        output, errors = process.communicate(timeout=15)  # far below the 30 s
    assert process.returncode == code, errors
    check(process.returncode, errors)
    assert errors.endswith(f"{message}\n")
    if command == "score":
        assert "8 of 6,400 rows are done and stored in" in errors
        assert not (tmp_path / "tweets.scored.csv").exists()
    if command == "rollout":
        assert "Version 1.0 is still the default." in output
        assert list(fake.versions) == ["1.0"]


def wait_for_a_row(journal: Path) -> None:
    deadline = time.monotonic() + 30
    while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_closed_standard_error_causes_no_traceback(answering: Scripted) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "sentiment", "score", "."],
        cwd=CLIENT,
        stdout=subprocess.PIPE,
        stderr=writer,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert result.returncode == 1
