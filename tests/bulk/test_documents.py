"""The commands in the documents of bulk scoring."""

import os
import shutil
from pathlib import Path

from tests.bulk.command import ENVIRONMENT, bulk_python, shards
from tests.bulk.inputs import texts, write_csv
from tests.docs.test_documents import README, blocks
from tests.paths import ROOT
from tests.privacy.test_silence import trapped

GUIDE = ROOT / "docs" / "guides" / "bulk.md"
PYTHON = ".venv-bulk/bin/python"
PROCESSES = " --direct_num_workers 2 --direct_running_mode multi_processing"


def commands(page: Path, beginning: str) -> list[str]:
    """The commands in a document's blocks that begin like this."""
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith(beginning)]


def dataflow_command() -> list[str]:
    """The options of the guide's command for Dataflow."""
    [command] = [command for command in commands(GUIDE, PYTHON) if "DataflowRunner" in command]
    return command.replace("'", "").split()[3:]


def test_the_command_of_the_readme_scores_files_and_speaks_to_nobody(tmp_path: Path, mar: Path) -> None:
    """No process makes a DNS lookup or a connection to another machine, and none leaves a file elsewhere."""
    [command] = commands(README, PYTHON)
    assert commands(GUIDE, PYTHON)[:2] == [command, command + PROCESSES]
    for name in ("home", "model_store"):
        (tmp_path / name).mkdir()
    shutil.copy(mar, tmp_path / "model_store" / "sentiment.mar")
    for number in (1, 2):
        write_csv(tmp_path / f"tweets-{number}.csv", texts(10 * number))
    variables = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | ENVIRONMENT
    environment = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
    script = f"cd '{tmp_path}' && {command.replace(PYTHON, bulk_python())}"
    result, seen = trapped([*environment, "sh", "-c", script], tmp_path / "packets")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith("30 rows = 30 scored + 0 with errors, in ")
    assert seen == set()
    assert list((tmp_path / "home").rglob("*")) == []
    for number in (1, 2):
        assert len(shards(tmp_path / "out" / "scored", f"tweets-{number}.csv")) == 1
