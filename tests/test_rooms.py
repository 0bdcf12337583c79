"""Tests that the imports between the project's folders go in one direction."""

import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.rooms import (
    CLIENT_IMPORTERS,
    ROOMS,
    TORCHSERVE_IMPORTER,
    TORCHSERVE_MODULE,
    Room,
    imported_modules,
    python_files,
    table,
)

FOLDERS = {room.package_name: room.folder for room in ROOMS}


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported_folders(file: Path) -> set[str]:
    """The top-level folders whose code a file imports."""
    packages = {module.partition(".")[0] for module in imported_modules(file)}
    return {folder for package, folder in FOLDERS.items() if package in packages}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.folder)
def test_a_room_imports_only_the_rooms_that_it_may(room: Room) -> None:
    allowed = {room.folder, *room.imports}
    violations = {relative(file): imported_folders(file) - allowed for file in python_files(room.path)}
    assert {file: folders for file, folders in violations.items() if folders} == {}


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.folder)
def test_a_room_imports_all_rooms_that_it_may(room: Room) -> None:
    """The table lists no arrow that does not exist."""
    imported = set().union(*map(imported_folders, python_files(room.path)))
    assert set(room.imports) - imported == set()


def test_the_design_page_has_the_table_of_rooms() -> None:
    """If this fails, copy the output of `table` into the page."""
    assert table() in (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")


def test_only_the_service_imports_torchserve() -> None:
    files = [file for room in ROOMS if room.folder != "tests" for file in python_files(room.path)]
    importers = [
        relative(file)
        for file in files
        if any(module.partition(".")[0] == TORCHSERVE_MODULE for module in imported_modules(file))
    ]
    assert importers == [TORCHSERVE_IMPORTER]


def test_only_the_evaluation_imports_the_client_in_training() -> None:
    files = [file for file in python_files(ROOT / "training") if "client" in imported_folders(file)]
    assert tuple(map(relative, files)) == CLIENT_IMPORTERS


def test_every_tracked_folder_is_a_room() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert folders == {room.folder for room in ROOMS}


def test_an_import_anywhere_in_a_file_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.rooms.ROOT", tmp_path)
    file = tmp_path / "handler" / "steps" / "reply.py"
    file.parent.mkdir(parents=True)
    file.write_text("import a.b, c\ndef f():\n    from d import e\n    from . import g\n    from ..body import h\n")
    modules = {"a.b", "c", "d", "d.e", "handler.steps", "handler.steps.g", "handler.body", "handler.body.h"}
    assert set(imported_modules(file)) == modules
