"""The number of worker processes that start early, and what the command imports before they start."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bulk import workers
from bulk.shards import MIN_SHARD_BYTES
from bulk.workers import LocalOptions, Workers, begin
from tests.bulk.command import with_beam_replaced
from tests.paths import ROOT


def local(*flags: str) -> LocalOptions:
    options = LocalOptions.parse(flags)
    assert options is not None
    return options


@pytest.fixture
def files(tmp_path: Path) -> str:
    """A pattern of files with three shards."""
    (tmp_path / "small.csv").write_bytes(b"text\nlate\n")
    (tmp_path / "larger.csv").write_bytes(b"x" * (MIN_SHARD_BYTES + 1))
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nothing")
    return str(tmp_path / "*.csv")


@pytest.mark.parametrize(
    ("flags", "processes"),
    [
        (["--direct_num_workers", "2"], 2),
        (["--direct_num_workers=64"], 3),
        (["--runner", "DirectRunner", "--direct_num_workers", "1"], 1),
        (["--direct_num_workers", "2", "--direct_running_mode", "multi_threading"], 0),
        (["--direct_num_workers", "-1"], 0),
    ],
)
def test_no_more_processes_start_than_there_are_shards(flags: list[str], processes: int, files: str) -> None:
    assert local(*flags).expected_processes(files) == processes


def test_by_default_a_process_for_each_core_starts(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    assert local().expected_processes(files) == local().workers_for(3) == 2
    assert local().workers_for(1) == 1


@pytest.mark.parametrize("pattern", ["nothing/*.csv", "gs://bucket/*.csv", "a\x00b", "[", ""])
def test_no_process_starts_for_files_that_are_not_here(pattern: str) -> None:
    assert local().expected_processes(pattern) == 0


@pytest.mark.parametrize("flags", [["--runner", "DataflowRunner"], ["--direct_num_workers", "x"], ["--runner"]])
def test_no_process_starts_for_other_machines_or_invalid_options(flags: list[str]) -> None:
    assert LocalOptions.parse(flags) is None


def test_the_workers_run_while_beam_is_imported(files: str, tmp_path: Path) -> None:
    """Beam is replaced by a module that prints the number of child processes."""
    code = "import os, psutil\nprint(len(psutil.Process().children()), flush=True)\nos._exit(0)\n"
    options = ["--input", files, "--output", str(tmp_path / "out"), "--archive", "x.mar", "--direct_num_workers", "2"]
    result = with_beam_replaced(tmp_path, code, *options)
    assert "2" in result.stdout.split()


def test_surplus_workers_end_and_a_worker_that_has_ended_gets_no_work() -> None:
    """Without Beam, a worker ends by itself."""
    started = Workers()
    started.provide(3)
    processes = [psutil.Process(worker.pid) for worker in started._waiting]
    started.provide(1)
    assert [process.is_running() for process in processes[1:]] == [False, False]
    worker = started.take()
    worker.kill()
    worker.wait()
    begin(worker, {"WORKER_ID": "1"})


def test_the_command_line_does_not_import_large_packages() -> None:
    code = "import sys, bulk.cli\nprint(*{'apache_beam', 'grpc', 'onnxruntime', 'pyarrow', 'spacy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
