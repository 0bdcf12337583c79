"""When the server says that it is ready."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import __main__ as server_main
from server.properties import ConfigurationError, Properties
from server.torchserve import _all_ready, _check_files


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
