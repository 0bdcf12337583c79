"""Tests of the training command line with missing packages or invalid input: one message, and no traceback."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.e2e.server_process import Server
from tests.paths import LEARNERS, MODEL, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS, WITH_CLIENT
from training.cli import main
from training.errors import TrainingError
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
        (["behaviour", "--url", ""], "--url: '' is not an address"),
        (["cross-validate", "--data", "latin.csv", "--name", "../x"], "--name '../x': expected the name of a file"),
        (["archive", "--to", "folder.mar"], "Is a directory"),
        (["archive", "--to", "bad.pkl/new.mar"], "File exists"),
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
