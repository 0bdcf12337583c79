"""Tests of `server.workspace`: the server's folder for temporary files."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server import workspace as module
from server.workspace import PREFIX, NoWorkspaceError, Workspace


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short path; the path of pytest's `tmp_path` is too long for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def environment(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name in ("TEMP", "TMP", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "OTHERS", ())


def test_close_removes_the_folder() -> None:
    workspace = Workspace(os.environ, 0)
    (workspace.path / "models").mkdir()
    workspace.close()
    assert not workspace.path.exists()


def test_a_start_removes_the_folder_of_a_killed_server(temporary: Path) -> None:
    program = (
        "import os; from server.workspace import Workspace;print(Workspace(os.environ, 0).path, flush=True); os.abort()"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    (left / "models").mkdir()
    running = Workspace(os.environ, 0)
    assert not left.exists()
    (temporary / f"{PREFIX}file").write_text("not a folder")
    second = Workspace(os.environ, 0)
    assert running.path.exists(), "its server runs"
    assert second.path != running.path
    for workspace in (running, second):
        workspace.close()


@pytest.mark.parametrize("step", ["open", "flock"])
def test_a_folder_that_another_start_removes_before_it_is_locked_is_replaced(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The other server starts just before this one opens the folder, or before it locks it."""
    place = os if step == "open" else fcntl
    original, others = getattr(place, step), []

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(place, step, original)
        others.append(Workspace(os.environ, 0))
        return original(*arguments)

    monkeypatch.setattr(place, step, interrupted)
    workspace = Workspace(os.environ, 0)
    [other] = others
    assert set(temporary.iterdir()) == {workspace.path, other.path}
    third = Workspace(os.environ, 0)
    assert workspace.path.exists(), "it is locked"
    for each in (workspace, other, third):
        each.close()


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


def test_a_folder_without_room_for_sockets_is_the_last_resort(temporary: Path) -> None:
    long = temporary / ("t" * 90)
    long.mkdir()
    workspace = Workspace({"TMPDIR": str(long)}, 0)
    assert workspace.path.parent == long
    assert not workspace.has_sockets
    workspace.close()


def test_an_unreadable_folder_is_avoided(temporary: Path) -> None:
    workspace = Workspace({"TMPDIR": str(temporary / ("t" * 300)), "TEMP": str(temporary)}, 0)
    assert workspace.path.parent == temporary
    [avoided] = workspace.avoided
    assert avoided.endswith("t: File name too long")
    workspace.close()


def test_the_error_gives_the_reason_for_each_folder(temporary: Path) -> None:
    """Missing folders, folders whose name Java cannot read, and files are in the error as well."""
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
    assert "Set TMPDIR to a writable folder" in message
    assert not list(temporary.glob(f"{PREFIX}*"))
