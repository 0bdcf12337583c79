"""Files that cannot be read, written or deleted, and file systems that are not known."""

import json
import os
import subprocess
from pathlib import Path

from tests.bulk.command import bulk_python
from tests.paths import ROOT

FILES = """
import errno, json, sys, time
from types import SimpleNamespace
from unittest import mock
from bulk import run
from bulk.archive import read_archive
from bulk.errors import BulkError
from bulk.files import check_name, delete_file, exists, read_file, write_file

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

def unpack_in_full_folder(path):
    with mock.patch("zipfile.ZipFile.extract", full):
        read_archive(path, with_check=False)

def unpack_without_folder(path):
    with mock.patch("tempfile.tempdir", None), mock.patch("tempfile._get_default_tempdir", full):
        read_archive(path, with_check=False)

def write(path):
    write_file(path, b"late")

folder, archive = sys.argv[1:]
results = {}
calls = {
    "gone": (delete_file, f"{folder}/gone"),
    "folder": (delete_file, folder),
    "name that fits": (write, f"{folder}/{'x' * 235}"),
    "fitting name": (check_name, f"{folder}/{'x' * 235}"),
    "long name": (check_name, f"{folder}/{'y' * 250}"),
    "full temporary folder": (unpack_in_full_folder, archive),
    "no temporary folder": (unpack_without_folder, archive),
    "unknown to exist": (exists, "nowhere://bucket/file"),
    "unknown to read": (read_file, "nowhere://bucket/file"),
    "unknown to write": (write, "nowhere://bucket/file"),
}
for name, (call, path) in calls.items():
    try:
        call(path)
        results[name] = ""
    except BulkError as error:
        results[name] = str(error)

counts = []
written = mock.Mock(side_effect=[BulkError("no answer"), *[["in.csv"]] * 100_000])
job = SimpleNamespace(sources=[], output="out")
with mock.patch.object(run, "_written", written), run._progress(job, 1, 0.01, lambda *shards: counts.append(shards)):
    end = time.monotonic() + 10
    while not counts and time.monotonic() < end:
        time.sleep(0.01)
results["progress"] = counts[:1]
print(json.dumps(results))
"""


def test_an_error_of_a_file_system_is_one_line(mar: Path, tmp_path: Path) -> None:
    """All calls are in one process, which imports Beam once."""
    result = subprocess.run(
        [bulk_python(), "-c", FILES, str(tmp_path), str(mar)],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    assert results["gone"] == "", "a file that has vanished meanwhile is no error"
    assert results["folder"] == f"{tmp_path} cannot be deleted: Is a directory."
    assert results["name that fits"] == results["fitting name"] == ""
    assert results["long name"] == (
        f"{tmp_path}/{'y' * 250} cannot be written: File name too long. Expected a shorter name."
    )
    assert results["full temporary folder"] == (
        f"{mar} cannot be unpacked: the temporary folder {tmp_path} is full. Free some space, or choose another folder "
        "with TMPDIR."
    )
    assert results["no temporary folder"] == (
        f"{mar} cannot be unpacked: the temporary folder is full. Free some space, or choose another folder with "
        "TMPDIR."
    )
    for verb, participle in (("exist", "read"), ("read", "read"), ("write", "written")):
        error = results[f"unknown to {verb}"]
        assert error.startswith(f"nowhere://bucket/file cannot be {participle}: Unable to get filesystem"), error
    assert results["progress"] == [[1, 1]], "a listing that fails once does not end the progress"
