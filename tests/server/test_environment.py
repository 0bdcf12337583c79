"""Tests of `server.environment`: the environment variables of TorchServe and its workers."""

import os
from pathlib import Path

from server import environment


def test_no_variable_of_the_user_changes_the_code_or_the_encoding() -> None:
    users = {
        "HOME": "/home",
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "/foreign",
        "PYTHONHOME": "/foreign",
        "PYTHONWARNINGS": "error",
        "PYTHONIOENCODING": "ascii",
        "PYTHONUTF8": "0",
        "LC_ALL": "C",
        "TMPDIR": "/long",
        "SERVER_CORES": "1000",
        "TS_CONFIG_FILE": "other.properties",
        "LOCAL_RANK": "1",
        "_JAVA_OPTIONS": "-Djava.io.tmpdir=/elsewhere",
    }
    started = environment.torchserves(users, Path("/short"), 2, 2**31, has_own_addresses=False)
    assert started == {
        "HOME": "/home",
        "PATH": f"/bin:{environment.PROGRAMS}",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(map(str, environment.MODULES)),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "LC_ALL": started["LC_ALL"],
        "TMPDIR": "/short",
        "SERVER_CORES": "2",
        "SERVER_MEMORY_BYTES": "2147483648",
    }
    assert started["LC_ALL"] in environment.UTF_8_LOCALES


def test_torchserve_does_not_read_the_users_addresses() -> None:
    """TorchServe would use these variables in place of the private addresses in its configuration."""
    users = {"TS_INFERENCE_ADDRESS": "http://0.0.0.0:8080", "TS_NUMBER_OF_GPU": "0"}
    started = environment.torchserves(users, Path("/short"), 2, 2**31, has_own_addresses=True)
    assert {name for name in started if name.startswith("TS_")} == {"TS_NUMBER_OF_GPU"}
    assert users.items() <= environment.torchserves(users, Path("/short"), 2, 2**31, has_own_addresses=False).items()


def test_variables_that_are_not_passed_on_are_listed() -> None:
    assert environment.not_passed_on({"PYTHONPATH": "/x", "PYTHONUNBUFFERED": "1", "RANK": "0"}) == [
        "PYTHONPATH",
        "RANK",
    ]
