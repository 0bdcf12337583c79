"""What a worker says of its machine: what the server that started it has counted, and its own memory."""

import pytest

from handler.machine import CORES_VARIABLE, MEMORY_VARIABLE, machine
from server import environment
from tests.paths import ROOT


def test_what_the_server_has_counted_is_reported_with_the_workers_own_memory() -> None:
    started = environment.torchserves({}, ROOT, 3, 2**31, has_own_addresses=True)
    [(name, found)] = machine(started).items()
    assert name == "machine"
    assert (found["cores"], found["memory_bytes"]) == (3, 2**31)
    assert 2**23 < found["worker_bytes"] < 2**36


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {CORES_VARIABLE: "2"},
        {CORES_VARIABLE: "2", MEMORY_VARIABLE: ""},
        {CORES_VARIABLE: "all", MEMORY_VARIABLE: "1"},
    ],
    ids=repr,
)
def test_without_a_server_that_says_it_nothing_is_reported(variables: dict[str, str]) -> None:
    assert machine(variables) == {}
