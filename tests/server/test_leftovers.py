"""Tests of `server.leftovers`: unpacked archives that no version uses are removed, and no other folder is."""

import os
import time
from pathlib import Path

import pytest

from server import leftovers as module
from server.leftovers import MIN_AGE_S, Leftovers

ONE, TWO = ("sentiment", "1.0"), ("sentiment", "2.0")


def unpacked(folder: Path, age_s: float = 2 * MIN_AGE_S) -> Path:
    """A folder such as TorchServe creates for an archive."""
    file = folder / "model" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    for path in (file, file.parent, folder):
        os.utime(path, times=(time.time() - age_s,) * 2)
    return folder


@pytest.fixture
def leftovers(tmp_path: Path) -> Leftovers:
    return Leftovers(tmp_path)


def test_folders_without_a_worker_are_removed(tmp_path: Path, leftovers: Leftovers) -> None:
    used, left = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    broken = unpacked(tmp_path / "models123.download")
    other = unpacked(tmp_path / "other")
    leftovers.remove(leftovers.suspects(), {ONE: [used]})
    assert used.exists()
    assert not left.exists()
    assert not broken.exists()
    assert other.exists()
    assert leftovers.suspects() == [], "no further request to TorchServe is needed"


def test_new_folders_are_kept(tmp_path: Path, leftovers: Leftovers) -> None:
    """TorchServe may be registering the archive in a new folder."""
    used = unpacked(tmp_path / "models" / "a")
    new, download = unpacked(tmp_path / "models" / "b", age_s=0), unpacked(tmp_path / "models1.download", age_s=0)
    os.utime(new, times=(0, 0))  # the folder itself is old, but not its content
    leftovers.remove(leftovers.suspects(), {ONE: [used]})
    assert all(folder.exists() for folder in (used, new, download))


def test_a_folder_is_kept_while_a_version_may_use_it(tmp_path: Path, leftovers: Leftovers) -> None:
    """The folder of a version that has never had a worker is unknown."""
    used, unknown = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: []})
    assert used.exists()
    assert unknown.exists()
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: [unknown]})
    left = unpacked(tmp_path / "models" / "c")
    leftovers.remove(leftovers.suspects(), {ONE: [], TWO: [unknown / "model"]})
    assert used.exists(), "its workers restart, or the version is scaled to zero"
    assert unknown.exists()
    assert not left.exists()


def test_folders_that_cannot_be_removed_are_not_checked_each_time(
    tmp_path: Path, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = unpacked(tmp_path / "models" / "a")
    leftovers.remove(leftovers.suspects(), {ONE: []})
    assert leftovers.suspects() == []
    more = unpacked(tmp_path / "models" / "b")
    assert set(leftovers.suspects()) == {unknown, more}
    leftovers.remove(leftovers.suspects(), {ONE: []})
    assert leftovers.suspects() == []
    monkeypatch.setattr(module, "RECHECK_INTERVAL_S", 0)
    assert set(leftovers.suspects()) == {unknown, more}, "the version may have had a worker meanwhile"


def test_the_folder_of_an_unregistered_version_is_removed(tmp_path: Path, leftovers: Leftovers) -> None:
    used, other = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: [other]})
    left = unpacked(tmp_path / "models" / "c")
    leftovers.remove([*leftovers.suspects(), other], {ONE: [used]})
    assert used.exists()
    assert not other.exists()
    assert not left.exists()
    registered_again = unpacked(tmp_path / "models" / "d")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: []})
    assert registered_again.exists(), "the version is registered again, in another folder"
