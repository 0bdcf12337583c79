"""Tests of the tutorial: every command runs in its order, on free ports, and prints the output that the tutorial shows.

The commands of `make` are not run here. A test checks that `make serve` with a learner runs the same steps as the
commands after it.
"""

import contextlib
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest

from tests.approximately import approximately
from tests.docs.test_documents import PYTHON, SENTIMENT, comparable, run, with_addresses_of
from tests.e2e.server_process import Project, Server, serving
from tests.paths import ROOT
from training import cli

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
NUMBERS_WITHIN = 0.15
"""The tolerance of numbers: they depend on the processor in their last digits, and training amplifies differences."""

BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL, flags=re.DOTALL | re.MULTILINE)
TRAIN, ASK = (block for kind, block in BLOCKS if kind == "python")
COMMANDS = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
ONE_COMMAND = "make serve LEARNER=reviews.pkl NAME=reviews TEXTS=reviews.csv"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
def test_every_command_of_the_tutorial_runs(tmp_path: Path, mar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path, mar)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    with contextlib.ExitStack() as servers:
        server: Server | None = None
        for kind, block in BLOCKS:
            for line in block.splitlines() if kind == "sh" else ():
                if line.startswith(f"{PYTHON} -m server"):
                    servers.close()  # the previous server
                    command = [sys.executable, *shlex.split(line)[1:], "--config", str(project.config)]
                    server = servers.enter_context(serving(project, command))
                elif not line.startswith("make"):
                    run_training(line)
            if kind == "console":
                assert server is not None
                check_answer(block, server, tmp_path)
            if block == ASK:
                assert server is not None
                program = block.replace("InferenceClient(", f'InferenceClient("{server.project.inference}", ')
                assert run(f"{sys.executable} - <<'END'\n{program}END", tmp_path) == "good"


def run_training(line: str) -> None:
    """Run a command of training in this process, so that fastai is imported only once."""
    arguments = shlex.split(line)
    assert arguments.pop(0) == PYTHON
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arguments[0] == "-m":
            assert arguments[1] == "training"
            assert cli.main(arguments[2:]) == 0, line
        else:
            runpy.run_path(arguments[0], run_name="__main__")


def check_answer(block: str, server: Server, folder: Path) -> None:
    command, _, answer = block.removeprefix("$ ").partition("\n")
    command = command.replace(PYTHON, sys.executable).replace(SENTIMENT, f"{sys.executable} -m sentiment")
    command = f"export SENTIMENT_URL={server.project.inference}; {command}"
    output = comparable(run(with_addresses_of(server, command), folder))
    assert output == approximately(comparable(answer.strip()), NUMBERS_WITHIN)


def test_make_serve_runs_the_same_steps() -> None:
    assert ONE_COMMAND in COMMANDS
    steps = [line for line in COMMANDS if line.startswith(f"{PYTHON} -m")][:3]
    planned = run(f"{ONE_COMMAND} --no-print-directory --dry-run", ROOT).splitlines()
    assert [words(line) for line in planned[-3:]] == [words(line) for line in steps]


def words(command: str) -> list[str]:
    """The words of a command, without options that make no difference: Python's -E and -s, and the default --config."""
    return shlex.split(re.sub(r"^exec | -E| -s|--config \S+", "", command))
