"""Tests of `benchmarks.sides`: requests to the compared servers."""

import socket
from pathlib import Path

import pytest

from benchmarks.sides import BenchmarkError, Side, running
from tests.client.scripted import Reply, scripted


@pytest.mark.usefixtures("closed_proxy")
def test_requests_to_this_machine_use_no_proxy() -> None:
    with scripted(lambda _: Reply(body=b'{"label": "negative"}')) as server:
        assert Side("this project", "", [], server.server_address[1]).ask("Late again") == "negative"


def test_a_server_whose_port_is_in_use_is_not_measured(tmp_path: Path) -> None:
    with scripted(lambda _: Reply(body=b"{}")) as server:
        side = Side("this project", "", ["false"], server.server_address[1])
        with pytest.raises(BenchmarkError, match="Another program listens"), running(side, tmp_path / "log"):
            pass


def test_a_server_that_does_not_start_is_not_measured(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        pytest.raises(BenchmarkError, match="does not respond"),
        running(Side("none", "", ["false"], port), tmp_path / "log"),
    ):
        pass
