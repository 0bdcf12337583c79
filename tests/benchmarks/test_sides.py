"""Tests of `benchmarks.sides`: requests to the compared servers."""

import pytest

from benchmarks.sides import Side
from tests.client.scripted import Reply, scripted


@pytest.mark.usefixtures("closed_proxy")
def test_requests_to_this_machine_use_no_proxy() -> None:
    with scripted(lambda _: Reply(body=b'{"label": "negative"}')) as server:
        assert Side("this project", "", [], server.server_address[1]).ask("Late again") == "negative"
