"""The files that a run finds at its output: its own, those of other runs, and those of the user."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.bulk.command import ENVIRONMENT, bulk_python
from tests.paths import ROOT

HEX = "0123456789abcdef" * 2
PREPARE = """
import json, os, sys, time
from pathlib import Path
from bulk.errors import BulkError
from bulk.run import _progress, prepare
from bulk.shards import Shard

archive, *cases = json.load(sys.stdin)
results = []
for folder, pattern, output in cases:
    os.chdir(folder)
    try:
        job = prepare(pattern, output, archive, None, "text", False, "", True, print)
    except BulkError as error:
        results.append(str(error))
        continue
    counts = []
    with _progress(job, 0, 0.01, lambda written, _: counts.append(written)):
        while not counts:
            time.sleep(0.01)
    results.append([[source.name for source in job.sources], counts[0]])
    for source in job.sources:
        for index in range(source.shards):
            Path(Shard(source, index, 0, 0).output(job.output, ".csv")).touch()
print(json.dumps(results))
"""


def prepared(mar: Path, *cases: tuple[Path, str, str]) -> list[Any]:
    """Prepare runs one after the other, and write empty files as their shards.

    Args:
        mar: the archive.
        cases: folder, `--input` and `--output` of each run.

    Returns:
        For each run, the names of its input files and the number of shards that were written before; or its error.
    """
    result = subprocess.run(
        [bulk_python(), "-c", PREPARE],
        input=json.dumps([str(mar), *([str(folder), pattern, output] for folder, pattern, output in cases)]),
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    results: list[Any] = json.loads(result.stdout)
    return results


def write_texts(path: Path, count: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text\n" + "late again\n" * count)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_files_of_another_prefix_are_neither_shards_nor_refused_nor_deleted(mar: Path, tmp_path: Path) -> None:
    """The other prefix begins with this one: `scored-2024-in.csv-…` is no shard of `2024-in.csv` for `scored`."""
    write_texts(tmp_path / "in.csv")
    output = tmp_path / "out"
    output.mkdir()
    others = {
        f"scored-2024-in.csv-00000-of-00001.csv.{HEX}.partial",
        f"scored-2024.errors-in.csv-00000-of-00001.csv.{HEX}.partial",
        f"scored-2024.run.json.{HEX}.partial",
        f"scored2-in.csv-00000-of-00001.csv.{HEX}.partial",
        "scored.csv.partial",
        "scored-in.csv-00000-of-00001.csv.partial",
        "scored-in.csv-00000-of-00001.csv.bak",
        f"scored-notes.txt.{HEX}.partial",
    }
    for name in others:
        (output / name).touch()
    assert prepared(mar, (tmp_path, "in.csv", "out/scored-2024"), (tmp_path, "in.csv", "out/scored")) == [
        [["in.csv"], 0],
        [["in.csv"], 0],
    ]
    finished = {"scored-2024-in.csv-00000-of-00001.csv", "scored-2024.run.json"}
    finished |= {"scored-in.csv-00000-of-00001.csv", "scored.run.json"}
    deleted = {name for name in others if name.startswith("scored-2024")}
    assert names(output) == (others - deleted) | finished, "each run deletes its own partial files only"
    for name in others:
        (output / name).touch()
    assert prepared(mar, (tmp_path, "in.csv", "out/scored")) == [[["in.csv"], 1]]
    assert names(output) == others | finished


def test_the_partial_files_of_this_output_are_deleted(mar: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "in[1].csv")
    partial = {
        f"out[1]-in[1].csv-00000-of-00001.csv.{HEX}.partial",
        f"out[1].errors-in[1].csv-00000-of-00001.csv.{HEX}.partial",
        f"out[1]-in[1].csv-00000-of-00001.csv.{HEX[:8]}.partial",
        f"out[1].run.json.{HEX}.partial",
        f"out[1]-earlier.csv-00000-of-00001.csv.{HEX}.partial",
    }
    (tmp_path / "out[1].run.json").write_text(json.dumps({"files": {"earlier.csv": ["csv", 1, 1.0, 1]}}))
    for name in partial:
        (tmp_path / name).touch()
    assert prepared(mar, (tmp_path, "in*.csv", "out[1]")) == [[["in[1].csv"], 0]]
    assert names(tmp_path) == {"in[1].csv", "out[1]-in[1].csv-00000-of-00001.csv", "out[1].run.json"}


def test_the_shards_of_other_input_files_are_refused(mar: Path, tmp_path: Path) -> None:
    def same(folder: Path) -> None:
        """Change nothing."""

    def changed(folder: Path) -> None:
        write_texts(folder / "2024-in.csv", 2)

    def larger(folder: Path) -> None:
        write_texts(folder / "2024-in.csv", 100_000)

    def gone(folder: Path) -> None:
        (folder / "2024-in.csv").unlink()

    def without_record(folder: Path) -> None:
        (folder / "out.run.json").unlink()

    def larger_without_record(folder: Path) -> None:
        larger(folder)
        without_record(folder)

    def with_other_record(folder: Path) -> None:
        (folder / "out.run.json").write_text("[]")

    def with_nested_record(folder: Path) -> None:
        (folder / "out.run.json").write_text("[" * 100_000)

    other = "The output out-* belongs to another run: its {} is not the same. Choose another --output, or delete the "
    other += "files of that run."
    cases = {
        same: [["2024-in.csv", "in.csv"], 2],
        changed: other.format("input file 2024-in.csv"),
        larger: other.format("input file 2024-in.csv"),
        gone: other.format("input file 2024-in.csv"),
        without_record: other.format("archive"),
        larger_without_record: other.format("archive"),
        with_other_record: "out.run.json is not the record of a run. Choose another --output.",
        with_nested_record: "out.run.json is not the record of a run. Choose another --output.",
    }
    runs = [(tmp_path / case.__name__, "*in.csv", "out") for case in cases]
    for folder, _, _ in runs:
        for name in ("in.csv", "2024-in.csv"):
            write_texts(folder / name)
    assert prepared(mar, *runs) == [[["2024-in.csv", "in.csv"], 0]] * len(cases)
    for case, (folder, _, _) in zip(cases, runs, strict=True):
        case(folder)
    for case, result in zip(cases, prepared(mar, *runs), strict=True):
        assert result == cases[case], case.__name__


def test_a_run_is_continued_whatever_the_spelling_of_its_folder(mar: Path, tmp_path: Path) -> None:
    """Its own files match the pattern of the input files."""
    write_texts(tmp_path / "in.csv")
    (tmp_path / "link").symlink_to(tmp_path)
    spellings = [
        ("*.csv", "./scored"),
        ("*.csv", str(tmp_path / "scored")),
        (f"{tmp_path}/*.csv", "scored"),
        (f"{tmp_path.parent}//{tmp_path.name}/*.csv", "scored"),
        ("link/*.csv", f"../{tmp_path.name}//scored"),
    ]
    results = prepared(mar, (tmp_path, "*.csv", "scored"), *((tmp_path, *spelling) for spelling in spellings))
    assert results == [[["in.csv"], 0], *[[["in.csv"], 1]] * len(spellings)]
    assert names(tmp_path) == {"in.csv", "link", "scored-in.csv-00000-of-00001.csv", "scored.run.json"}


def test_input_files_with_the_names_of_shards_are_read(mar: Path, tmp_path: Path) -> None:
    """They come from another program, and their names begin with the prefix by chance."""
    name = "tweets-raw-00000-of-00002.csv"
    write_texts(tmp_path / name)
    assert prepared(mar, (tmp_path, "tweets-*.csv", "tweets")) == [[[name], 0]]
