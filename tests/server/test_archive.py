"""Tests of `server.archive`: an archive's properties, read before TorchServe unpacks it."""

import json
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile

import pytest

from server.archive import MANIFEST, Archive
from server.properties import ConfigurationError


def test_read_returns_name_version_and_unpacked_size(mar: Path) -> None:
    archive = Archive.read(mar)
    with ZipFile(mar) as opened:
        size = sum(len(opened.read(name)) for name in opened.namelist())
    assert archive == Archive("sentiment", "1.0", size)


def manifest(content: str) -> dict[str, str]:
    return {MANIFEST: content}


@pytest.mark.parametrize(
    "files",
    [{}, manifest("no JSON"), manifest("[]"), manifest("{}"), manifest('{"model": []}'), manifest('{"model": {}}')],
)
def test_a_zip_without_a_manifest_is_rejected(tmp_path: Path, files: dict[str, str]) -> None:
    with ZipFile(tmp_path / "a.mar", "w") as written:
        for name, content in files.items():
            written.writestr(name, content)
    with pytest.raises(ConfigurationError, match=r"a\.mar is not a model archive"):
        Archive.read(tmp_path / "a.mar")


def test_a_text_a_truncated_archive_a_folder_and_a_missing_file_are_rejected(tmp_path: Path, mar: Path) -> None:
    (tmp_path / "a.mar").write_text("a text")
    (tmp_path / "cut.mar").write_bytes(mar.read_bytes()[:-1_000])
    for name in ("a.mar", "cut.mar"):
        with pytest.raises(ConfigurationError, match=r"is not a model archive .*build one with `make archive MODEL="):
            Archive.read(tmp_path / name)
    with pytest.raises(ConfigurationError, match="Is a directory"):
        Archive.read(tmp_path)
    with pytest.raises(ConfigurationError, match=r"No file at .*; build it with `make archive MODEL=.*`"):
        Archive.read(tmp_path / "none.mar")


@pytest.mark.parametrize("compression", [ZIP_STORED, ZIP_DEFLATED, ZIP_LZMA])
def test_the_error_for_a_damaged_archive_names_the_file(tmp_path: Path, compression: int) -> None:
    """Each byte is damaged in turn, as in a broken transfer, including the flags that mark a file as encrypted."""
    path = tmp_path / "a.mar"
    with ZipFile(path, "w", compression) as written:
        written.writestr(MANIFEST, json.dumps({"model": {"modelName": "a"}}))
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        for flipped in (1, 255):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flipped]) + whole[at + 1 :])
            try:
                Archive.read(path)
            except ConfigurationError as error:
                refused += 1
                assert str(path) in str(error)
                assert "()" not in str(error)
    assert refused > len(whole) / 2


def test_an_archive_with_another_damaged_file_is_rejected(tmp_path: Path, mar: Path) -> None:
    content = mar.read_bytes()
    middle = len(content) // 2
    (tmp_path / "a.mar").write_bytes(content[:middle] + bytes(2_000) + content[middle + 2_000 :])
    with pytest.raises(ConfigurationError, match=r"a\.mar is not a model archive"):
        Archive.read(tmp_path / "a.mar")


def test_a_manifest_that_is_nested_too_deeply_is_rejected(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "a.mar", "w") as written:
        written.writestr(MANIFEST, "[" * 100_000)
    with pytest.raises(ConfigurationError, match=r"a\.mar is not a model archive"):
        Archive.read(tmp_path / "a.mar")


def test_a_missing_version_defaults_to_1_0(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "a.mar", "w") as written:
        written.writestr(MANIFEST, json.dumps({"model": {"modelName": "a"}}))
    assert Archive.read(tmp_path / "a.mar").model_version == "1.0"
