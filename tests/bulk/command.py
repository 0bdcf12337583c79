"""Runs `python -m bulk` in the environment that has Apache Beam, which the tests' environment cannot have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import BULK_PYTHON, ROOT

TWO_PROCESSES = ["--direct_num_workers", "2", "--direct_running_mode", "multi_processing"]
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def bulk_python() -> str:
    """The Python of bulk scoring. Without it, the test is skipped, or fails in continuous integration."""
    if not BULK_PYTHON.is_file():
        assert os.environ.get("CI") != "true", "run `make bulk-setup`"
        pytest.skip("`make bulk-setup` was not run")
    return str(BULK_PYTHON)


def command(pattern: Path | str, output: Path | str, archive: Path | str, *options: str) -> list[str]:
    """The command to score files."""
    files = ["--input", str(pattern), "--output", str(output), "--archive", str(archive)]
    return [bulk_python(), "-m", "bulk", *files, *options]


def bulk(
    pattern: Path | str, output: Path | str, archive: Path | str, *options: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Score files, and wait for the end of the command."""
    return subprocess.run(
        command(pattern, output, archive, *options),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def with_beam_replaced(folder: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the tests' environment, with a module in place of Beam.

    Args:
        folder: a folder for the module.
        code: the module's code.
        options: the command's options.
    """
    (folder / "apache_beam.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "bulk", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def summary(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The summary that a command with `--json` has printed."""
    assert result.stderr == "", result.stderr
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def shards(output: Path, name: str) -> list[Path]:
    """The output files of an input file, in the order of its rows."""
    found = sorted(output.parent.glob(f"{output.name}-{name}-*-of-*"))
    assert [path.name.rsplit("-", 3)[1:3] for path in found] == [[f"{index:05}", "of"] for index in range(len(found))]
    return found
