"""The server's folder in the temporary folder."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from server.workspace import NEW_S, PREFIX, Workspace


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def old(folder: Path) -> None:
    os.utime(folder, times=(time.time() - 2 * NEW_S,) * 2)


def test_it_goes_with_its_server() -> None:
    workspace = Workspace()
    (workspace.path / "models").mkdir()
    workspace.close()
    assert not workspace.path.exists()


def test_what_a_killed_server_left_goes_at_the_next_start(temporary: Path) -> None:
    program = "import os; from server.workspace import Workspace; print(Workspace().path, flush=True); os.abort()"
    environment = os.environ | {"TMPDIR": str(temporary)}
    killed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    left = Path(killed.stdout.strip())
    (left / "models").mkdir()
    old(left)
    running = Workspace()
    assert not left.exists()
    old(running.path)
    (temporary / f"{PREFIX}of-nobody").write_text("no folder")
    another = Workspace()
    assert running.path.exists(), "its server runs"
    assert another.path != running.path
    new = Path(tempfile.mkdtemp(prefix=PREFIX))
    third = Workspace()
    assert new.exists(), "its server may be about to lock it"
    for workspace in (running, another, third):
        workspace.close()
