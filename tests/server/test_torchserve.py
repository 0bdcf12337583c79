"""When the server says that it is ready."""

import pytest

from server.torchserve import _all_ready


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
