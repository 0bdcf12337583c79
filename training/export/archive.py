"""The exported model and `handler/` to one model archive, with torch-model-archiver."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx

from handler import exported
from handler.engine import graph_file
from handler.exported import ExportedModel
from handler.service import MODEL_FOLDER
from training.errors import TrainingError
from training.export.graph import Precision, to_onnx
from training.export.precision import Choice, choose, forced, keep, kept
from training.export.sample import Sample, made_up

HANDLER = Path(__file__).parents[2] / "handler"

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""The names and versions that stand in an address as they are, and that a file can have."""


def archive(
    model: Path, destination: Path, version: str, precision: Precision | None = None, sample: Sample | None = None
) -> Choice:
    """Write `destination` (`NAME.mar`), whose name is the model's name in TorchServe.

    Args:
        model: an exported model's folder.
        version: letters, digits, points, hyphens and underscores, like the model's name: they stand in addresses.
        precision: of the network in the archive; None: see `training.export.precision.choose`.
        sample: the texts that decide on it. Where there are none, what real texts decided before does (see
            `training.export.precision.kept`), else texts made up of the vocabulary. A precision that is given is not measured
            on those.

    Returns:
        The precision, and what was measured, as in the archive's card.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: such a name or version cannot be, or torch-model-archiver failed.
    """
    for option, name in (("--version", version), ("--to", destination.stem)):
        if not NAME.fullmatch(name):
            raise TrainingError(f"{option} {name!r}: expected letters, digits, points, hyphens and underscores.")
    source = exported.read(model)
    destination.parent.mkdir(parents=True, exist_ok=True)
    choice = _choice(model, source, precision, sample)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".archive-") as workspace:
        content = Path(workspace, "content")
        # `network.py` is the reference, which needs torch.
        left_out = shutil.ignore_patterns("__pycache__", "service.py", "network.py", "*.md")
        shutil.copytree(HANDLER, content / "handler", ignore=left_out)
        card = source.card | {"archive": choice.to_json() | {"identity": exported.identity(model)}}
        exported.write_description(replace(source, card=card), content / MODEL_FOLDER)
        for index, member in enumerate(source.members):
            onnx.save(to_onnx(member, choice.precision), content / MODEL_FOLDER / graph_file(index))
        command = [
            sys.executable,
            "-c",
            "from model_archiver.model_packaging import generate_model_archive as main; main()",
            *("--model-name", destination.stem, "--version", version),
            *("--handler", str(HANDLER / "service.py"), "--extra-files", str(content)),
            *("--export-path", workspace),
        ]
        # torch-model-archiver empties the folder of the model's name in the temporary folder: give it one of its own.
        result = subprocess.run(
            command, env=os.environ | {"TMPDIR": workspace}, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise TrainingError(f"torch-model-archiver failed:\n{result.stderr}")
        os.replace(Path(workspace, destination.name), destination)
    return choice


def _choice(folder: Path, model: ExportedModel, precision: Precision | None, sample: Sample | None) -> Choice:
    """Before the archive is written: `make` would build an archive again that is older than a file of its model."""
    before = kept(folder) if sample is None or sample.made_up else None
    if precision is not None:
        return forced(model, precision, sample, before)
    if before is not None:
        return before
    choice = choose(model, sample or made_up(model))
    if not choice.made_up:
        keep(choice, folder)
    return choice
