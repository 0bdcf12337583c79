"""Tests of `server.torchserve` and of the signals of `server.cli`."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import cli as server_main
from server.properties import ConfigurationError, Properties
from server.torchserve import _all_ready, _check_files


@pytest.fixture
def handlers() -> Iterator[None]:
    """Restores the signal handlers of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_nohup_ignores_stays_ignored(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(sys, "argv", ["server", "--config", "missing.properties"])
    assert server_main.main() == 1
    assert "missing.properties" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)


def test_the_error_for_an_unreadable_list_of_metrics_names_it(tmp_path: Path) -> None:
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
def test_a_model_has_started_when_all_its_workers_are_ready(states: list[str], least: int, expected: bool) -> None:
    model = {"minWorkers": least, "workers": [{"status": state} for state in states]}
    assert _all_ready(model) is expected
