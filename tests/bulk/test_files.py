"""Files that cannot be deleted, and file systems that are not known."""

import json
import subprocess
from pathlib import Path

from tests.bulk.command import bulk_python
from tests.paths import ROOT

FILES = """
import json, sys
from bulk.errors import BulkError
from bulk.files import delete_file, exists, read_file, write_file

folder = sys.argv[1]
results = []
calls = [(delete_file, f"{folder}/gone"), (delete_file, folder)]
calls += [(call, "nowhere://bucket/file") for call in (exists, read_file, lambda path: write_file(path, b""))]
for call, path in calls:
    try:
        call(path)
        results.append("")
    except BulkError as error:
        results.append(str(error))
print(json.dumps(results))
"""


def test_an_error_of_a_file_system_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [bulk_python(), "-c", FILES, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    gone, folder, *nowhere = json.loads(result.stdout)
    assert gone == "", "a file that has vanished meanwhile is no error"
    assert folder == f"{tmp_path} cannot be deleted: Is a directory."
    for error, verb in zip(nowhere, ("read", "read", "written"), strict=True):
        assert error.startswith(f"nowhere://bucket/file cannot be {verb}: Unable to get filesystem"), error
