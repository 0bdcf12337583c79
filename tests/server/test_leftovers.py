"""Unpacked archives that no version uses are removed, and no other."""

import os
import time
from pathlib import Path

import pytest

from server import leftovers as module
from server.leftovers import OLD_S, Leftovers

ONE, TWO = ("sentiment", "1.0"), ("sentiment", "2.0")


def unpacked(folder: Path, age_s: float = 2 * OLD_S) -> Path:
    """As TorchServe unpacks an archive."""
    file = folder / "model" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    for path in (file, file.parent, folder):
        os.utime(path, times=(time.time() - age_s,) * 2)
    return folder


@pytest.fixture
def leftovers(tmp_path: Path) -> Leftovers:
    return Leftovers(tmp_path)


def test_what_no_worker_works_in_goes(tmp_path: Path, leftovers: Leftovers) -> None:
    used, left = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    broken = unpacked(tmp_path / "models123.download")
    other = unpacked(tmp_path / "other")
    leftovers.remove(leftovers.suspects(), {ONE: [used]})
    assert used.exists()
    assert not left.exists()
    assert not broken.exists()
    assert other.exists()
    assert leftovers.suspects() == [], "nobody has to be asked again"


def test_what_is_new_stays(tmp_path: Path, leftovers: Leftovers) -> None:
    """It may be an archive that is being registered."""
    used = unpacked(tmp_path / "models" / "a")
    new, download = unpacked(tmp_path / "models" / "b", age_s=0), unpacked(tmp_path / "models1.download", age_s=0)
    os.utime(new, times=(0, 0))  # the folder's own time is not that of what is in it
    leftovers.remove(leftovers.suspects(), {ONE: [used]})
    assert all(folder.exists() for folder in (used, new, download))


def test_nothing_goes_while_a_version_may_be_using_it(tmp_path: Path, leftovers: Leftovers) -> None:
    """A version that has never had a worker: nobody knows where it is."""
    used, unknown = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: []})
    assert used.exists()
    assert unknown.exists()
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: [unknown]})
    left = unpacked(tmp_path / "models" / "c")
    leftovers.remove(leftovers.suspects(), {ONE: [], TWO: [unknown / "model"]})
    assert used.exists(), "its workers are gone for a moment, or scaled to none"
    assert unknown.exists()
    assert not left.exists()


def test_nobody_is_asked_each_second_about_what_has_to_stay(
    tmp_path: Path, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = unpacked(tmp_path / "models" / "a")
    leftovers.remove(leftovers.suspects(), {ONE: []})
    assert leftovers.suspects() == []
    more = unpacked(tmp_path / "models" / "b")
    assert set(leftovers.suspects()) == {unknown, more}
    leftovers.remove(leftovers.suspects(), {ONE: []})
    assert leftovers.suspects() == []
    monkeypatch.setattr(module, "AGAIN_S", 0)
    assert set(leftovers.suspects()) == {unknown, more}, "the version may have had a worker since"


def test_what_a_version_used_goes_when_the_version_has_gone(tmp_path: Path, leftovers: Leftovers) -> None:
    used, other = unpacked(tmp_path / "models" / "a"), unpacked(tmp_path / "models" / "b")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: [other]})
    left = unpacked(tmp_path / "models" / "c")
    leftovers.remove([*leftovers.suspects(), other], {ONE: [used]})
    assert used.exists()
    assert not other.exists()
    assert not left.exists()
    again = unpacked(tmp_path / "models" / "d")
    leftovers.remove(leftovers.suspects(), {ONE: [used], TWO: []})
    assert again.exists(), "the version is there again, elsewhere"
