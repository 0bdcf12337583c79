"""Tests of the door's processes: their start and their log."""

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.door.conftest import FOLDER, Door
from tests.door.stub import Reply, request
from tests.door.test_limits import head

SECRET = "Lovelace"


@pytest.fixture
def start(program: str) -> Iterator[Callable[..., Door]]:
    """A function that starts a door; its arguments are a command that runs the command in its arguments."""
    started: list[Door] = []
    with tempfile.TemporaryDirectory(prefix="door") as folder:

        def run(*prefix: str) -> Door:
            started.append(Door(program, Path(folder), prefix))
            return started[-1]

        yield run
        for door in started:
            door.stop()


@pytest.mark.parametrize("keys", [False, True], ids=["without keys", "with keys"])
@pytest.mark.parametrize("file", ["haproxy.cfg", "large.cfg"])
def test_the_configuration_has_no_warning(running: Door, program: str, file: str, keys: bool, tmp_path: Path) -> None:
    hashes = tmp_path / "keys"
    hashes.write_text(64 * "0" + "\n")
    variables = running.variables | ({"KEY_HASHES": str(hashes)} if keys else {})
    command = [program, "-c", "-f", "shared.cfg", "-f", file]
    checked = subprocess.run(command, cwd=FOLDER, env=variables, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("descriptors", [256, 1024, 4096])
def test_the_door_starts_with_few_file_descriptors(start: Callable[..., Door], descriptors: int) -> None:
    """The door then accepts fewer connections."""
    door = start("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh")
    for size in (4, 100_000):
        with door.connect(request(b"x" * size)) as client:
            assert client.reply().status == 200
    assert door.output == ""


def test_the_log_has_failures_and_no_request_content(start: Callable[..., Door]) -> None:
    door = start()
    path = f"/predictions/{SECRET}?{SECRET}"
    headers = f"{SECRET}: {SECRET}\r\nContent-Type: {SECRET}\r\nAuthorization: Bearer {SECRET}\r\n"
    for size in (1, 10_000):
        body = SECRET.encode() * size
        with door.connect(request(body, path=path, headers=headers)) as client:
            assert client.reply().status == 200
        with door.connect(request(body, method=SECRET, path=f"/{SECRET}", headers=headers)) as client:
            assert client.reply().status == 404
    assert door.output == "", "successes and errors of clients are not logged"
    for failing in (None, Reply(500)):
        door.stub.answer = lambda _, failing=failing: failing  # type: ignore[misc]
        for size in (1, 10_000):
            with door.connect(request(SECRET.encode() * size, path=path, headers=headers)) as client:
                assert client.reply().status in (500, 502)
    with door.connect(head(100, path) + SECRET.encode()), door.connect(f"GET {SECRET}\r\n\r\n".encode()) as client:
        assert client.reply().status == 400
    lines = door.output.splitlines()
    assert sum(" small 502 " in line for line in lines) == 1
    assert sum(" small 500 " in line for line in lines) == 1
    assert SECRET not in door.output
