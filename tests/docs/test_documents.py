"""The documents: every command is run by a test, every answer is compared, and every link leads somewhere.

- `console` blocks have a command after `$ `, and its output. The commands use the tests' server and the real
  `Tweets.csv`. Outputs are compared as JSON or as text, and numbers within 0.005: on another processor, sums are
  rounded in another order, and int8 can make a whole step of a last digit.
- Commands of training in `sh` blocks are run with the tests' own tweets and texts, and with the preset `tiny`.
- `ELSEWHERE` names the test that runs each of the other commands.

The tutorial and the documents about Kubernetes have tests of their own: `tests/test_tutorial.py` and `tests/k8s/`.
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

from tests.approximately import approximately
from tests.e2e.server_process import Server
from tests.paths import CLIENT, REAL_TWEETS, ROOT, TOY_LABELLED, TOY_TEXTS, TOY_TWEETS
from training import cli
from training.settings import PRESETS

README = ROOT / "README.md"
GUIDES = [ROOT / "docs" / "guides" / f"{name}.md" for name in ("own-model", "train", "serve", "security")]
REFERENCE = [ROOT / "docs" / "reference" / f"{name}.md" for name in ("api", "commands", "configuration")]
DOCUMENTS = [README, *GUIDES, *REFERENCE]
"""The documents whose commands are run here, or by a test of `ELSEWHERE`, in the order in which training is run."""

MARKDOWN = sorted(
    page
    for pattern in ("*.md", "*/README.md", "*/*/README.md", "docs/**/*.md")
    for page in ROOT.glob(pattern)
    if not page.relative_to(ROOT).parts[0].startswith(".")
)
PYTHON = ".venv/bin/python"
SENTIMENT = ".venv/bin/sentiment"
NUMBERS_WITHIN = 0.005
README_LINES = 150
ELSEWHERE = {
    "make serve": "tests/e2e/test_lifecycle.py",
    "make test": ".ci/run",
    "make serve LEARNER=my_learner.pkl NAME=reviews": "tests/test_tutorial.py",
    "make serve LABELLED=reviews.csv NAME=reviews FIT_ARGS='--text-column text --label-column label'": (
        "tests/e2e/test_lifecycle.py"
    ),
    "make train-setup": ".ci/run",
    "make train": "tests/docs/test_documents.py",
    "make train TRAIN_ARGS='--to model_store/my_model'": "tests/docs/test_documents.py",
    ".venv/bin/python -m server --model sentiment --model reviews": "tests/test_tutorial.py",
    "SENTIMENT_KEY_FILE=keys make serve": "tests/e2e/test_keys.py",
    "make bulk-setup": ".ci/run",
    ".venv-bulk/bin/python -m bulk --input 'tweets-*.csv' --output out/scored --archive model_store/sentiment.mar": (
        "tests/bulk/test_documents.py"
    ),
    ".venv/bin/sentiment score tweets.csv": "tests/client/test_with_a_server.py",
    ".venv/bin/sentiment rollout sentiment-2.mar": "tests/client/test_with_a_server.py",
    ".venv/bin/sentiment rollback sentiment.mar": "tests/client/test_with_a_server.py",
}
"""The file that runs each command, or does what the command does."""


@dataclass(frozen=True)
class Example:
    """A command in a document, and what it prints there."""

    page: Path
    command: str
    answer: str


def blocks(page: Path, kind: str) -> list[str]:
    """The fenced blocks of a kind, such as `sh`, in a document."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def examples() -> list[Example]:
    """The commands with their output in all documents."""
    commands = []
    for page in DOCUMENTS:
        for block in blocks(page, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, answer = part.partition("\n")
                commands.append(Example(page, command, answer.strip()))
    return commands


COMMANDS = [line for page in DOCUMENTS for block in blocks(page, "sh") for line in block.splitlines()]
TRAINING_COMMANDS = [line for line in COMMANDS if line.startswith(f"{PYTHON} -m training")]


def run(command: str, cwd: Path) -> str:
    # A fixed width, as argparse wraps help to the terminal's.
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": f"{ROOT}{os.pathsep}{CLIENT}"}
    result = subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout.strip()


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_command_has_a_test() -> None:
    assert len(examples()) >= 8
    assert all(example.answer for example in examples())
    others = [line for line in COMMANDS if line not in TRAINING_COMMANDS]
    assert set(others) == set(ELSEWHERE)
    assert all((ROOT / test).is_file() for test in ELSEWHERE.values())


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example.page.stem}: {example.command[:60]}")
def test_a_command_prints_what_the_document_shows(example: Example, server: Server) -> None:
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


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            command
            for page in MARKDOWN
            for command in re.findall(r"`(curl '?http://127[^`]+)`", page.read_text(encoding="utf-8"))
        }
    ),
)
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


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fastai's configuration file
def test_every_training_command_runs(
    toy_run: Path,
    tmp_path: Path,
    fastai_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The commands run in the documents' order and in one folder, as a reader would run them.

    They run in this process, which has imported fastai once; `toy_run` was made by `python -m training` itself.
    """
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
    assert len(TRAINING_COMMANDS) == 16
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


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE))
    for page in MARKDOWN:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8")))
        assert named <= targets, page


@pytest.mark.parametrize("target", ["archive", "help", "sbom"])
def test_a_make_target_runs(target: str) -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("the tests were not started by `make test`")
    assert run(f"make {target}", ROOT)


def test_make_train_trains(toy_run: Path, tmp_path: Path) -> None:
    if not (ROOT / ".venv" / "train.installed").is_file():
        assert os.environ.get("CI") != "true"
        pytest.skip("`make teacher-setup` was not run")
    arguments = f"--preset tiny --start {toy_run}/model --run {tmp_path} --to {tmp_path}/model"
    assert run(f"make train DATA={TOY_TWEETS} TRAIN_ARGS='{arguments}'", ROOT)
    assert (tmp_path / "model.mar").is_file()
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["notes"] == (ROOT / "model_store" / "sentiment-notes.md").read_text().strip()


def test_the_error_table_is_the_codes() -> None:
    from handler import errors

    kinds = {kind.__name__: kind.status.value for kind in errors.RequestError.__subclasses__()}
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", page, flags=re.MULTILINE)
    table = {name: int(status) for status, names in rows for name in re.findall(r"`(\w+)`", names) if name in kinds}
    assert table == kinds


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")
    code = "".join(
        path.read_text(encoding="utf-8") for folder in ("client", "server") for path in ROOT.glob(f"{folder}/**/*.py")
    )
    assert set(re.findall(r"`(SENTIMENT_[A-Z_]+)`", page)) == set(re.findall(r'"(SENTIMENT_[A-Z_]+)"', code))


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.relative_to(ROOT)} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.relative_to(ROOT)} links to {link}"


def without_code(markdown: str) -> str:
    """Markdown without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), flags=re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = next(number for number in range(100) if (f"{name}-{number}" if number else name) not in anchors)
        anchors.add(f"{name}-{number}" if number else name)
    return anchors
