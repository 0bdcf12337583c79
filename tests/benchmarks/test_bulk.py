"""The benchmark of bulk scoring: the guide quotes its results, and what fails is not measured."""

import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.bulk import PAGE, RESULTS, bulk, loop, measure, score, table, with_table
from benchmarks.sides import BenchmarkError
from handler.service import MODEL_FOLDER
from tests.paths import TOY_TWEETS

PYTHON = ".venv-bulk/bin/python"


def test_the_guide_has_the_table_of_the_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_table(page, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_the_table_compares_the_rates() -> None:
    def size(texts: int, seconds: float) -> dict[str, object]:
        figures = {
            "seconds": seconds,
            "processor_seconds": 2 * seconds,
            "engine_ms": texts // 2,
            "starter_megabytes": 240.0,
            "worker_megabytes": 290.0,
            "worker_megabytes_by_quarter": [280.0, 290.0, 290.0, 290.0],
        }
        loop = {"tokenizer_us": 100.0, "engine_us": 500.0}
        return {"texts": texts, "loop": loop, "bulk": figures, "score": {"seconds": 2 * seconds}}

    text = table({"date": "2026-11-29", "cores": 2, "sizes": [size(10_000, 5.0), size(110_000, 35.0)]})
    assert "| a loop around the engine, tokens given | 2,000 | 2,000 |" in text
    assert "| **`python -m bulk`**, the whole command | 1,000 | 1,571 |" in text
    assert "| `sentiment score` with one server | 500 | 786 |" in text
    assert "| bulk against the engine's loop (goal: 85 %) | 50 % | 79 % |" in text
    assert "| bulk: share of the run in the engine | 50 % | 79 % |" in text
    assert "without the start of the command: 1,667 texts per second and core, 83 % of the engine's loop" in text


def test_a_page_without_the_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected once"):
        with_table("# A page", json.loads(RESULTS.read_text(encoding="utf-8")))


def test_ctrl_c_ends_the_measured_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the end of the measurements of memory, the benchmark itself would never end."""
    started = []

    def interrupted(process: "subprocess.Popen[str]", *_: object) -> None:
        started.append(process)
        raise KeyboardInterrupt

    command(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        bulk(tmp_path / "tweets.csv", tmp_path / "out", tmp_path / "sentiment.mar")
    assert threading.active_count() == threads
    assert [process.returncode for process in started] == [-signal.SIGTERM]


def test_a_command_that_fails_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(tmp_path, "exit 4", monkeypatch)
    with pytest.raises(BenchmarkError, match=r"^python -m bulk ended with 4\.$"):
        bulk(tmp_path / "tweets.csv", tmp_path / "out", tmp_path / "sentiment.mar")
    monkeypatch.setattr("benchmarks.bulk.running", lambda *_: nullcontext())
    monkeypatch.setattr(sys, "executable", str(tmp_path / PYTHON))
    (tmp_path / "client").mkdir()
    with pytest.raises(BenchmarkError, match=r"^sentiment score ended with 4\.$"):
        score(tmp_path / "tweets.csv", tmp_path / "score.csv", 2)


def command(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a script in place of the Python of bulk scoring."""
    path = folder / PYTHON
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr("benchmarks.bulk.ROOT", folder)


def test_a_lost_process_of_the_loop_ends_the_measurement(
    mar: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other process waits for it, and ends too."""
    monkeypatch.setattr("benchmarks.bulk.TIMEOUT_S", 20)
    shutil.unpack_archive(mar, tmp_path, "zip")

    def kill() -> None:
        while len(multiprocessing.active_children()) < 2:
            time.sleep(0.01)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BenchmarkError, match=r"^A process of the loop around the model ended with -9\.$"):
        loop(tmp_path / MODEL_FOLDER, TOY_TWEETS, 2)
    killer.join()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"id,tweet\n1,late\n", "has no column 'text'"),
        (b"id,text\n", "has no rows"),
        (b"", "has no rows"),
        (b"id,text\n1,sp\xe4t\n", "is not CSV in UTF-8"),
    ],
)
def test_data_without_texts_are_an_error(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "Tweets.csv"
    path.write_bytes(content)
    with pytest.raises(BenchmarkError, match=reason):
        measure(path, [10], tmp_path / "none.mar", with_server=False)
