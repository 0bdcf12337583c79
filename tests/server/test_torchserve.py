"""When the server says that it is ready."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server import __main__ as server_main
from server.properties import ConfigurationError, Properties
from server.torchserve import _all_ready, _check_files, _work_done
from tests.e2e.traffic import wait_until


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back how this process takes signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_what_nohup_has_ignored_stays_ignored(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["server", "--config", "missing.properties"])
    assert server_main.main() == 1
    assert "missing.properties" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)


def test_a_list_of_metrics_that_cannot_be_looked_for_is_named(tmp_path: Path) -> None:
    properties = Properties(tmp_path / "config.properties", {"metrics_config": "t" * 300})
    with pytest.raises(ConfigurationError, match=r"t: File name too long; expected the list of metrics"):
        _check_files(properties)


@pytest.mark.parametrize(
    ("states", "least", "expected"),
    [
        (["READY"], 1, True),
        (["READY", "READY"], 2, True),
        (["READY", "UNLOADING"], 2, False),
        (["READY"], 2, False),
        ([], 0, False),
    ],
)
def test_ready_means_every_worker_of_the_start(states: list[str], least: int, expected: bool) -> None:
    model = {"minWorkers": least, "workers": [{"status": state} for state in states]}
    assert _all_ready(model) is expected


def described(*pids: int, pending: int = 0) -> list[dict[str, Any]]:
    return [{"jobQueueStatus": {"pendingRequests": pending}, "workers": [{"pid": pid} for pid in pids]}]


def work(models: list[dict[str, Any]] | None, *pids: int) -> tuple[tuple[int, float], ...] | None:
    return _work_done(models, [psutil.Process(pid) for pid in pids])


def test_workers_at_work_or_about_to_start_are_waited_for() -> None:
    """Before Java ends with what they hold."""
    with subprocess.Popen(["sleep", "60"]) as waits:
        wait_until(lambda: work(described(), waits.pid) is not None, "the start of a process")
        assert work(described(), waits.pid) == work(described(), waits.pid)
        assert work(described(pending=1), waits.pid) is None
        assert work(described(), waits.pid, os.getpid()) is None
        assert work(described(-1), waits.pid) is None
        ended = psutil.Process(waits.pid)
        waits.kill()
    assert _work_done(described(), [ended]) == (), "one that has ended holds nothing"
    assert work(None) is None
