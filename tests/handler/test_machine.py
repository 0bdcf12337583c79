"""The machine in a model's description: the resources that the server has counted, and the worker's memory."""

import pytest

from handler.machine import CORES_VARIABLE, MEMORY_VARIABLE, machine
from server import environment
from tests.paths import ROOT


def test_the_servers_resources_and_the_workers_memory_are_reported() -> None:
    started = environment.torchserves({}, ROOT, 3, 2**31, has_own_addresses=True)
    [(name, resources)] = machine(started).items()
    assert name == "machine"
    assert (resources["cores"], resources["memory_bytes"]) == (3, 2**31)
    assert 2**23 < resources["worker_bytes"] < 2**36


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
def test_nothing_is_reported_without_the_servers_variables(variables: dict[str, str]) -> None:
    assert machine(variables) == {}
