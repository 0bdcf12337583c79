"""Tests of the notebook: it runs from top to bottom and prints its saved outputs.

Its cells are plain Python, so a new process runs them in order without Jupyter, whose kernel would need twenty further
packages. To save new outputs, run the notebook in Jupyter.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.approximately import approximately
from tests.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "your_own_model.ipynb"
NUMBERS_WITHIN = 0.1
"""The tolerance of numbers: they depend on the processor in their last digits, and training amplifies differences."""

RUN = """
import contextlib, io, json, sys

cells, printed, names = json.load(sys.stdin), [], {"__name__": "__main__"}
try:
    for number, cell in enumerate(cells, start=1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(cell, f"<cell {number}>", "exec"), names)
        printed.append(out.getvalue())
finally:
    if "server" in names:
        names["server"].terminate()
print(json.dumps(printed))
"""


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_prints_its_saved_outputs(tmp_path: Path) -> None:
    sources = ["".join(cell["source"]) for cell in cells()]
    # As in Jupyter, the working folder is that of the notebook.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", RUN],
        input=json.dumps(sources),
        cwd=NOTEBOOK.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for cell, printed in zip(cells(), json.loads(result.stdout), strict=True):
        lines = [in_parts(line) for line in printed.splitlines()]
        for line in saved_lines(cell):
            assert approximately(in_parts(line), NUMBERS_WITHIN) in lines, (line, printed)
    assert not list(tmp_path.iterdir()), "The last cell removes the notebook's files."


def test_every_cell_has_run_once_in_order() -> None:
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    kinds = [output["output_type"] for cell in cells() for output in cell["outputs"]]
    assert "error" not in kinds
    assert any("image/png" in output.get("data", {}) for cell in cells() for output in cell["outputs"])


@pytest.mark.parametrize("folder", ["/tmp/", "/home/", "/root/", "/Users/"])
def test_no_saved_output_contains_a_local_path(folder: str) -> None:
    assert folder not in json.dumps([cell["outputs"] for cell in cells()])


def saved_lines(cell: dict[str, Any]) -> list[str]:
    """The lines in the cell's saved output."""
    text = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    return text.splitlines()


def in_parts(line: str) -> list[float | str]:
    parts = re.split(r"(-?\d+\.\d+)", line)
    return [float(part) if index % 2 else part for index, part in enumerate(parts)]
