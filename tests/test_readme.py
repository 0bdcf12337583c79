"""Every command and every answer in the README is run here.

- `console` blocks are a command after `$ ` and its answer. The server's addresses are those of the tests' server,
  `Tweets.csv` is the real one. Answers are compared as JSON where they are JSON, else as text, with numbers to 0.005:
  on another processor, sums are rounded in another order, and int8 makes of a last digit a step.
- `sh` blocks of training are run with the tests' own tweets and texts, and with the preset `tiny`, and so is
  `make train`, where `make train-setup` was run.
- `make serve` and `make test` are run by `tests/e2e/test_lifecycle.py` and by whoever runs this, `make lint` by every
  run of continuous integration; `make bench` takes too long, `make fault-test` is some of these tests at length, and
  `make image` needs podman or docker.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from handler.limits import ENVIRONMENT_PREFIX, Limits
from tests.approximately import approximately
from tests.e2e.server_process import Server
from tests.paths import CLIENT, REAL_TWEETS, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS
from training import cli
from training.settings import PRESETS

README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = ".venv/bin/python"
SENTIMENT = ".venv/bin/sentiment"
NUMBERS_WITHIN = 0.005
NOT_RUN_HERE = {"serve", "test", "lint", "train", "train-setup", "fault-test", "bench", "image", "image-test"}


@dataclass(frozen=True)
class Example:
    command: str
    answer: str


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def examples() -> list[Example]:
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, answer = part.partition("\n")
            found.append(Example(command, answer.strip()))
    return found


def run(command: str, cwd: Path) -> str:
    # A fixed width, as argparse wraps help to the terminal's.
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": f"{ROOT}{os.pathsep}{CLIENT}"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def test_the_readme_has_examples() -> None:
    assert len(examples()) >= 8
    assert "@@" not in README
    assert all(example.answer for example in examples())


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.command[:70])
def test_an_examples_answer_is_what_the_readme_says(example: Example, server: Server) -> None:
    command = example.command.replace(PYTHON, sys.executable).replace(SENTIMENT, f"{sys.executable} -m sentiment")
    if "Tweets.csv" in command:
        if not REAL_TWEETS.is_file() and os.environ.get("CI") != "true":
            pytest.skip("needs Kaggle's Tweets.csv beside the project")
        command = command.replace("Tweets.csv", str(REAL_TWEETS))
    # The tests' server has another model, too.
    command = command.replace("--url", "--model-name sentiment --url")
    if "-m sentiment" in command:
        command = f"export SENTIMENT_URL={server.project.inference}; {command}"
    answer = run(with_addresses_of(server, command), ROOT)
    assert comparable(answer) == approximately(comparable(example.answer), NUMBERS_WITHIN)


@pytest.mark.parametrize("command", re.findall(r"`(curl [^`]*http[^`]+)`", README.replace("\n", " ")))
def test_a_command_in_the_text_is_answered(command: str, server: Server) -> None:
    assert run(with_addresses_of(server, command.replace("curl", "curl --silent --fail", 1)), ROOT)


def with_addresses_of(server: Server, command: str) -> str:
    command = command.replace("http://127.0.0.1:8080", server.project.inference)
    command = command.replace("http://127.0.0.1:8081", server.project.management)
    return command.replace("http://127.0.0.1:8082", server.project.metrics)


def comparable(answer: str) -> Any:
    try:
        return json.loads(answer)
    except json.JSONDecodeError:
        parts = re.split(r"(?<![\w.])(-?\d+\.\d+)(?![\w.])", answer)
        return [float(part) if index % 2 else part for index, part in enumerate(parts)]


TRAINING_COMMANDS = [
    line for block in blocks("sh") for line in block.splitlines() if line.startswith(f"{PYTHON} -m training")
]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
def test_every_training_command_runs(
    toy_run: Path,
    tmp_path: Path,
    fastai_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In the README's order, in one folder, as a reader would. In this process, which has imported fastai once;
    `toy_run` was made by `python -m training` itself."""
    shutil.copy(TOY_TWEETS, tmp_path / "Tweets.csv")
    labelled = pd.read_csv(TOY_TWEETS, dtype=str).rename(columns={"airline_sentiment": "label"})
    labelled.to_csv(tmp_path / "reviews.csv", index=False)
    shutil.copy(TOY_TEXTS, tmp_path / "texts.txt")
    shutil.copy(TOY_LABELLED, tmp_path / "labelled.tsv")
    shutil.copy(toy_run / "run" / "classifier" / "learner.pkl", tmp_path / "my_learner.pkl")
    # Stands in for fastai's download, where fastai looks for it before it asks the network.
    shutil.copytree(toy_run / "run" / "general", fastai_home / "models" / "wt103-fwd")
    monkeypatch.setitem(PRESETS, "ulmfit", replace(PRESETS["tiny"], start=PRESETS["ulmfit"].start))
    shutil.copytree(toy_run / "model", tmp_path / "model_store" / "general")
    monkeypatch.chdir(tmp_path)
    assert len(TRAINING_COMMANDS) == 14
    for line in TRAINING_COMMANDS:
        command = shlex.split(line.removeprefix(f"{PYTHON} -m training "))
        if "--preset" not in command and command[0] not in {"export", "archive"}:
            command += ["--preset", "tiny"]
        assert cli.main(command) == 0, line
        done = capfd.readouterr().out.count(": already done")
        stage_of_all = "runs/texts" in command and command[0] not in {"all", "export"}
        assert done == stage_of_all, "stage by stage is the same as `all`"
    for made in ("model_store/sentiment/config.json", "model_store/sentiment.mar", "model_store/reviews.mar"):
        assert (tmp_path / made).is_file(), made


@pytest.mark.parametrize("target", sorted({*re.findall(r"`make ([a-z-]+)", README)} - NOT_RUN_HERE))
def test_a_make_target_runs(target: str) -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the tests were not started by `make test`")
    assert run(f"make {target}", ROOT)


def test_make_train_trains(toy_run: Path, tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "train.installed").is_file():
        assert os.environ.get("CI") != "true"
        pytest.skip("`make train-setup` was not run")
    arguments = f"--preset tiny --start {toy_run}/model --run {tmp_path} --to {tmp_path}/model"
    assert run(f"make train DATA={TOY_TWEETS} TRAIN_ARGS='{arguments}'", ROOT)
    assert (tmp_path / "model.mar").is_file()
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["notes"] == (ROOT / "model_store" / "sentiment-notes.md").read_text().strip()


def test_the_configuration_table_is_the_codes() -> None:
    table = dict(re.findall(rf"^\| `{ENVIRONMENT_PREFIX}(\w+)` \| (\d+) \|", README, flags=re.MULTILINE))
    assert table == {name.upper(): str(value) for name, value in vars(Limits()).items()}


def test_the_error_table_is_the_codes() -> None:
    from handler import errors

    kinds = {kind.__name__: kind.status.value for kind in errors.RequestError.__subclasses__()}
    table = {name: int(status) for status, name in re.findall(r"^\| (\d{3}) \| `(\w+)`", README, flags=re.MULTILINE)}
    assert table == kinds


def test_links_lead_somewhere() -> None:
    for page in (
        ROOT / "README.md",
        ROOT / "docs" / "tutorial.md",
        ROOT / "model_store" / "README.md",
        ROOT / "training" / "README.md",
        ROOT / "handler" / "METRICS.md",
    ):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
