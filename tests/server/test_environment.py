"""What TorchServe and its workers get of the user's environment."""

import os
from pathlib import Path

from server import environment


def test_nothing_of_the_users_changes_whose_code_runs_or_how_text_is_read() -> None:
    users = {
        "HOME": "/home",
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "/strangers",
        "PYTHONHOME": "/strangers",
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


def test_the_users_addresses_are_the_doors() -> None:
    """TorchServe would read them instead of its own."""
    users = {"TS_INFERENCE_ADDRESS": "http://0.0.0.0:8080", "TS_NUMBER_OF_GPU": "0"}
    started = environment.torchserves(users, Path("/short"), 2, 2**31, has_own_addresses=True)
    assert {name for name in started if name.startswith("TS_")} == {"TS_NUMBER_OF_GPU"}
    assert users.items() <= environment.torchserves(users, Path("/short"), 2, 2**31, has_own_addresses=False).items()


def test_what_is_kept_back_is_named() -> None:
    assert environment.not_passed_on({"PYTHONPATH": "/x", "PYTHONUNBUFFERED": "1", "RANK": "0"}) == [
        "PYTHONPATH",
        "RANK",
    ]
