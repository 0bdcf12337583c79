"""Files that cannot be deleted, and file systems that are not known."""

import json
import subprocess
from pathlib import Path

from tests.bulk.command import bulk_python
from tests.paths import ROOT

FILES = """
import json, sys
from bulk.errors import BulkError
from bulk.files import delete_file, exists

folder = sys.argv[1]
results = []
for call, path in ((delete_file, f"{folder}/gone"), (delete_file, folder), (exists, "nowhere://bucket/file")):
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
    gone, folder, nowhere = json.loads(result.stdout)
    assert gone == "", "a file that has vanished meanwhile is no error"
    assert folder == f"{tmp_path} cannot be deleted: Is a directory."
    assert nowhere.startswith("nowhere://bucket/file cannot be read: Unable to get filesystem"), nowhere
