"""The process of the command, without Apache Beam: its standard output, and signals while Beam is imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bulk.process import FAILED, INTERRUPTED, OK, TERMINATED
from tests.bulk.command import with_beam_replaced
from tests.paths import ROOT

ARGUMENTS = ["--input", "in.csv", "--output", "out-✈", "--archive", "sentiment.mar"]

COMPLETED = """
import sys
from types import SimpleNamespace

counts = dict(rows=1, scored=1, errors=0, errors_by_type={}, labels={"✈": 1}, shards=1, earlier_shards=0)
summary = SimpleNamespace(**counts, tokens=1, engine_ms=1, tokenizer_ms=1)
sys.modules["bulk.run"] = SimpleNamespace(
    flag_error=lambda *_: None, hide_messages=lambda **_: None, prepare=lambda *_: None, run=lambda *_: summary
)
from bulk.__main__ import run
sys.exit(run())
"""
"""The command with a run that has completed."""


def completed(*before: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    """Print the summary of a run; `before` starts the command."""
    return subprocess.run(
        [*before, sys.executable, "-c", COMPLETED, *ARGUMENTS],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **streams,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_summary_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = completed(stdout=full)
    expected = "error: The run has completed, but its summary cannot be printed: No space left on device.\n"
    assert (result.returncode, result.stderr) == (FAILED, expected)


def test_a_summary_that_nobody_reads_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    result = completed(stdout=write)
    os.close(write)
    assert (result.returncode, result.stderr) == (FAILED, "")


def test_a_closed_standard_output_is_one_line() -> None:
    result = completed("sh", "-c", '"$@" >&-', "sh")
    assert (result.returncode, result.stderr) == (FAILED, "error: Standard output is closed.\n")


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    result = completed(stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii:strict"})
    assert (result.returncode, result.stderr) == (OK, "")
    assert "labels: \\u2708 1\n" in result.stdout
    assert "out-\\u2708-*: 1 file\n" in result.stdout


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, INTERRUPTED, "Interrupted"), (signal.SIGTERM, TERMINATED, "Terminated")],
)
def test_a_signal_while_beam_is_imported_is_one_line(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    result = with_beam_replaced(tmp_path, f"import os\nos.kill(os.getpid(), {number:d})\n", *ARGUMENTS)
    assert (result.returncode, result.stderr) == (code, f"{word}. Run the same command again to continue.\n")
