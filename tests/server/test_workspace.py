"""The server's folder in the temporary folder."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server import workspace as module
from server.workspace import NEW_S, PREFIX, NoWorkspaceError, Workspace


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short path, which pytest's own has not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def environment(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name in ("TEMP", "TMP", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "OTHERS", ())


def old(folder: Path) -> None:
    os.utime(folder, times=(time.time() - 2 * NEW_S,) * 2)


def test_it_goes_with_its_server() -> None:
    workspace = Workspace(os.environ, 0)
    (workspace.path / "models").mkdir()
    workspace.close()
    assert not workspace.path.exists()


def test_what_a_killed_server_left_goes_at_the_next_start(temporary: Path) -> None:
    program = (
        "import os; from server.workspace import Workspace;print(Workspace(os.environ, 0).path, flush=True); os.abort()"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    (left / "models").mkdir()
    old(left)
    running = Workspace(os.environ, 0)
    assert not left.exists()
    old(running.path)
    (temporary / f"{PREFIX}of-nobody").write_text("no folder")
    another = Workspace(os.environ, 0)
    assert running.path.exists(), "its server runs"
    assert another.path != running.path
    new = Path(tempfile.mkdtemp(prefix=PREFIX, dir=temporary))
    third = Workspace(os.environ, 0)
    assert new.exists(), "its server may be about to lock it"
    for workspace in (running, another, third):
        workspace.close()


def test_a_path_that_is_too_long_for_a_socket_is_avoided(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = temporary / ("t" * 90)
    long.mkdir()
    monkeypatch.setattr(module, "OTHERS", (str(temporary),))
    workspace = Workspace({"TMPDIR": str(long)}, 0)
    assert workspace.path.parent == temporary
    assert workspace.has_sockets
    [avoided] = workspace.avoided
    assert avoided.startswith(f"{long}: its path has ")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{workspace.path}{module.SOCKET_NAME}")
    workspace.close()


def test_the_longest_path_that_is_taken_has_room_for_a_socket(temporary: Path) -> None:
    length = module.SOCKET_PATH_BYTES - len(f"/{PREFIX}{module.RANDOM_NAME}{module.SOCKET_NAME}")
    root = temporary / ("t" * (length - len(str(temporary)) - 1))
    root.mkdir()
    workspace = Workspace({"TMPDIR": str(root)}, 0)
    assert (workspace.avoided, workspace.has_sockets) == ([], True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{workspace.path}{module.SOCKET_NAME}")
    workspace.close()


def test_a_folder_that_cannot_have_sockets_is_better_than_none(temporary: Path) -> None:
    long = temporary / ("t" * 90)
    long.mkdir()
    workspace = Workspace({"TMPDIR": str(long)}, 0)
    assert workspace.path.parent == long
    assert not workspace.has_sockets
    workspace.close()


def test_a_folder_that_cannot_be_looked_into_is_avoided(temporary: Path) -> None:
    workspace = Workspace({"TMPDIR": str(temporary / ("t" * 300)), "TEMP": str(temporary)}, 0)
    assert workspace.path.parent == temporary
    [avoided] = workspace.avoided
    assert avoided.endswith("t: File name too long")
    workspace.close()


def test_without_room_it_says_so_at_once(temporary: Path) -> None:
    """Folders that are missing, have a name that Java cannot read, or are files, are named as well."""
    (temporary / "file").touch()
    unreadable = os.fsdecode(os.fsencode(temporary) + b"/\xff")
    Path(unreadable).mkdir()
    environment = {"TMPDIR": str(temporary), "TEMP": str(temporary / "none"), "TMP": unreadable}
    with pytest.raises(NoWorkspaceError) as caught:
        Workspace(environment | {"XDG_RUNTIME_DIR": str(temporary / "file")}, 10**18)
    message = str(caught.value)
    assert "1000000000000.0 MB are needed" in message
    assert f"{temporary}/none: No such file or directory" in message
    assert "its name is not UTF-8" in message
    assert f"{temporary}/file: " in message
    assert "TMPDIR names it" in message
    assert not list(temporary.glob(f"{PREFIX}*"))
