"""Tests of the training command line with missing packages or invalid input: one message, and no traceback."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.e2e.server_process import Server
from tests.interruptible import heed_sigint
from tests.paths import LEARNERS, MODEL, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS, WITH_CLIENT
from training.cli import main
from training.errors import TrainingError
from training.files import replacing
from training.measure.server import TOKEN_VARIABLE, server_predictor

BLOCKED = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
sys.argv[0] = "training"
runpy.run_module("training", run_name="__main__", alter_sys=True)
"""

NEED_MORE: dict[str, list[object]] = {
    "all": ["--data", TOY_TWEETS],
    "fit": ["--data", TOY_TWEETS],
    "general": ["--texts", TOY_TEXTS],
    "language-model": ["--data", TOY_TWEETS],
    "general-teacher": ["--data", TOY_TWEETS, "--labelled-texts", TOY_LABELLED],
    "distil": ["--data", TOY_TWEETS, "--labelled-texts", TOY_LABELLED],
    "teacher": ["--data", TOY_TWEETS],
    "generator": ["--data", TOY_TWEETS],
    "classifier": ["--data", TOY_TWEETS],
    "cross-validate": ["--data", TOY_TWEETS],
    "export": ["--learner", "learner.pkl"],
}


SERVING_IS_ENOUGH = {"archive", "behaviour", "evaluate", "reference"}


def not_served() -> set[str]:
    """Return the import names of all packages that are installed here, but not by `make serve`."""
    served = {
        name.lower().replace("_", "-")
        for name in re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / "serve.lock").read_text(), re.MULTILINE)
    }
    return {
        module
        for module, packages in packages_distributions().items()
        if not served & {package.lower().replace("_", "-") for package in packages}
    } - {"setuptools", "pkg_resources", "pip"}


def run_with_what_serves(*arguments: object) -> "subprocess.CompletedProcess[str]":
    code = BLOCKED.format(names=not_served() - {"handler", "training", "server", "sentiment", "tests"})
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | WITH_CLIENT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", NEED_MORE)
def test_a_command_without_its_packages_says_what_to_install(command: str) -> None:
    result = run_with_what_serves(command, *NEED_MORE[command])
    assert result.returncode == 1
    assert re.fullmatch(
        r"error: the Python package '\w+' is not installed for .*\. `make train-setup` installs .*\n", result.stderr
    ), result.stderr


def test_help_and_archive_need_only_the_packages_of_serving(tmp_path: Path) -> None:
    assert "usage: python -m training" in run_with_what_serves("--help").stdout
    (tmp_path / "texts.csv").write_text("text\nlate again\n")
    model = shutil.copytree(MODEL, tmp_path / "new")  # `archive` stores the measurement there
    result = run_with_what_serves("archive", "--model", model, "--texts", tmp_path / "texts.csv")
    assert (result.returncode, "Measured on texts of texts.csv." in result.stdout) == (0, True), result.stderr
    assert (tmp_path / "new.mar").is_file()


def test_evaluation_needs_only_the_packages_of_serving(tmp_path: Path, server: Server) -> None:
    options = ("evaluate", "--data", TOY_TWEETS, "--split", "train")
    for source in ((), ("--url", server.project.inference, "--model-name", "sentiment")):
        result = run_with_what_serves(*options, *source)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["n"] == 36
    assert "| vocabulary |" in run_with_what_serves("behaviour").stdout
    model = shutil.copytree(MODEL, tmp_path / "new")
    result = run_with_what_serves("reference", "--data", TOY_TWEETS, "--model", model)
    assert result.returncode == 0, result.stderr


def test_every_command_is_tested_without_its_packages() -> None:
    refused = run_with_what_serves("nothing").stderr
    assert set(re.findall(r"'([\w-]+)'", refused.partition("choose from")[2])) == {*NEED_MORE, *SERVING_IS_ENOUGH}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--learner", "bad.pkl", "--to", "new"], "bad.pkl does not load: UnpicklingError"),
        (["export", "--learner", "cut.pkl", "--to", "new"], "cut.pkl does not load"),
        (["export", "--learner", ".", "--to", "new"], ". is a folder, not a file; expected a file that"),
        (["export", "--learner", "bad.pkl", "--to", "bad.pkl"], "expected a folder; there is a file of this name"),
        (["export", "--learner", "bad.pkl"], "--learner: name the folder of your model, for example --to model_store/"),
        (["export", "--learner", "bad.pkl", "--to", "model_store/sentiment"], "`sentiment` came with this project"),
        (["export", "--learner", "bad.pkl", "--to", "general"], "the model `general` came with this project"),
        (["export", "--learner", "bad.pkl", "--to", "bad.pkl/new"], "cannot be written (Not a directory)"),
        (["export", "--learner", "bad.pkl", "--to", "own"], "--to own: the folder is neither empty nor an exported"),
        (["export", "--learner", "bad.pkl", "--to", "new/é"], "--to new/é: the folder's name becomes the model's name"),
        (["export", "--run", "mine"], "--run mine: name the folder of your model, for example --to model_store/NAME"),
        (["export", "--run", "mine", "--to", "sentiment"], "the model `sentiment` came with this project"),
        (["export", "--run", "run"], "no finished stage classifier"),
        (["archive", "--model", "é"], "--model é: the folder's name becomes the model's name"),
        (["export", "--learner", "bad.pkl", "--notes", "latin.csv", "--to", "new"], "latin.csv: expected UTF-8 text"),
        (["reference", "--data", "latin.csv"], "latin.csv"),
        (["reference", "--data", "."], ". is a folder, not a file.\nExpected: CSV with the columns"),
        (["export", "--learner", "bad.pkl", "--notes", "own", "--to", "new"], "--notes own: expected a file; it is a"),
        (["behaviour", "--model", "."], "config.json is missing"),
        (["behaviour", "--url", "http://[::1"], "'http://[::1' is not an address: Invalid IPv6 URL. Expected http"),
        (["behaviour", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
        (["behaviour", "--url", ""], "--url '': expected a value"),
        (["cross-validate", "--data", "latin.csv", "--name", "../x"], "--name '../x': expected letters"),
        (["cross-validate", "--data", "latin.csv", "--name", ".."], "--name '..': expected letters"),
        (["cross-validate", "--data", "latin.csv", "--name", ""], "--name '': expected a value"),
        (["teacher", "--data", "latin.csv", "--transformer", ""], "--transformer '': expected a value"),
        (["language-model", "--data", "latin.csv", "--general", ""], "--general '': expected a value"),
        (["archive", "--to", "folder.mar"], "--to folder.mar: expected a file; there is a folder of this name"),
        (["archive", "--to", "bad.pkl/new.mar"], "--to bad.pkl: expected a folder; there is a file of this name"),
        (["archive", "--to", "/proc/new.mar"], "--to /proc: the folder cannot be written"),
        (["archive", "--to", "y z.mar"], "--to 'y z': expected letters"),
        (["archive", "--to", "é.mar"], "--to 'é': expected letters"),
        (["archive", "--to=-y.mar"], "--to '-y': expected letters"),
        (["archive", "--to", "a'b.mar"], "expected letters"),
        (["archive", "--to", "folder"], "expected a file name that ends in .mar"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_give_one_error_message(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("training.export.archive._choice", None)  # an error comes before the work
    Path("bad.pkl").write_text("not a pickle")
    Path("cut.pkl").write_bytes((LEARNERS / "windows.pkl").read_bytes()[:1000])
    Path("latin.csv").write_bytes(b"tweet_id,airline_sentiment,text\n1,neutral,caf\xe9\n")
    Path("folder.mar").mkdir()
    Path("mine").mkdir()
    Path("mine", "data.csv").write_text("text,label,split,line\n")
    Path("own").mkdir()
    for file in ("README.md", "config.json"):
        Path("own", file).write_text("{}")
    if arguments[0] in ("archive", "reference") and "--model" not in arguments:
        arguments = [*arguments, "--model", str(MODEL)]
    assert main(arguments) == 1
    assert message in capfd.readouterr().err
    assert not Path("new").exists()


ARCHIVE = ("archive", "--model", str(MODEL), "--precision", "int8", "--to")


def test_sigterm_leaves_no_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("training.export.archive.to_onnx", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main([*ARCHIVE, str(tmp_path / "new.mar")]) == 143
    assert capfd.readouterr().err == "\nTerminated. The same command continues from the last checkpoint.\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_parent_alone_ends_its_children(sent: signal.Signals, code: int) -> None:
    """Fastai's tokenizer has child processes, for which Python waits at its end."""
    program = (
        "import multiprocessing, sys, time; from training import cli\n"
        "def command(options):\n"
        "    child = multiprocessing.Process(target=time.sleep, args=(600,)); child.start()\n"
        "    print('ready', flush=True); child.join()\n"
        "cli._behaviour = command; sys.exit(cli.main(['behaviour']))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,  # noqa: PLW1509  # the tests have no other thread here
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert "Traceback" not in said, said


def test_a_full_disk_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("training.export.archive.to_onnx", full)
    assert main([*ARCHIVE, str(tmp_path / "new.mar")]) == 1
    assert capfd.readouterr().err == (
        f"error: No space left on device. Free space on the disk of the temporary folder {tempfile.gettempdir()} "
        f"(TMPDIR names another one), {tmp_path / 'new.mar'} or standard output.\n"
    )
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "card.json"))), replacing(tmp_path / "card.json"):
        full()


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [(">&-", 0, ""), (">/dev/full", 1, r"error: No space left on device\. .* or standard output\.\n")],
)
def test_output_that_is_closed_or_full_gives_no_traceback(redirection: str, code: int, message: str) -> None:
    command = [sys.executable, "-m", "training", "evaluate", "--data", str(TOY_TWEETS), "--split", "validation"]
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command],
        cwd=ROOT,
        env=os.environ | WITH_CLIENT,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    _, _, after_warning = ended.stderr.partition("rows that it was trained on.\n")
    assert ended.returncode == code
    assert re.fullmatch(message, after_warning), ended.stderr


def test_a_file_name_that_is_not_utf_8_can_be_exported(tmp_path: Path) -> None:
    """The card's command contains the file name."""
    name = b"caf\xe9.pkl".decode("utf-8", "surrogateescape")
    (tmp_path / name).symlink_to(LEARNERS / "windows.pkl")
    command = [*(sys.executable, "-m", "training", "export"), "--learner", str(tmp_path / name)]
    command += ["--to", str(tmp_path / "model")]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | WITH_CLIENT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    card = json.loads((tmp_path / "model" / "card.json").read_text(encoding="utf-8"))
    assert r"--learner caf\udce9.pkl" in card["exported"]["command"]


@pytest.mark.parametrize("token", ["abc\ndef", "abc\x1b", "clé"])
def test_an_invalid_token_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(
        TrainingError, match=f"^{TOKEN_VARIABLE}: The token contains a space, a line break or a non-ASCII character"
    ) as refused:
        server_predictor("http://127.0.0.1:9")
    assert token[:3] not in str(refused.value)
