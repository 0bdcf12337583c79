"""The servers that are compared: how they are asked."""

import pytest

from benchmarks.sides import Side
from tests.client.scripted import Reply, scripted
from tests.e2e.server_process import free_ports


def test_a_server_on_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    [closed] = free_ports(1)
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{closed}")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable)
    with scripted(lambda _: Reply(body=b'{"label": "negative"}')) as server:
        assert Side("this project", "", [], server.server_address[1]).ask("Late again") == "negative"
