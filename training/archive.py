"""The exported model and `handler/` to one model archive, with torch-model-archiver."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import graph_file
from handler.service import MODEL_FOLDER
from training.errors import TrainingError
from training.graph import PRECISIONS, Precision, to_onnx
from training.probes import probes

HANDLER = Path(__file__).parent.parent / "handler"


def archive(model: Path, destination: Path, version: str, precision: Precision) -> None:
    """Write `destination` (`NAME.mar`), whose name is the model's name in TorchServe.

    Args:
        model: an exported model's folder.
        version: letters, digits, points, hyphens and underscores, like the model's name: they stand in addresses.
        precision: of the network in the archive.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: such a name or version cannot be, or torch-model-archiver failed.
    """
    for option, name in (("--version", version), ("--to", destination.stem)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise TrainingError(f"{option} {name!r}: expected letters, digits, points, hyphens and underscores.")
    source = exported.read(model)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".archive-") as workspace:
        content = Path(workspace, "content")
        # `network.py` is the reference, which needs torch.
        left_out = shutil.ignore_patterns("__pycache__", "service.py", "network.py", "*.md")
        shutil.copytree(HANDLER, content / "handler", ignore=left_out)
        card = source.card | {"archive": {"precision": precision, "identity": exported.identity(model)}}
        exported.write_description(replace(source, card=card), content / MODEL_FOLDER)
        for index, member in enumerate(source.members):
            onnx.save(to_onnx(member, precision), content / MODEL_FOLDER / graph_file(index))
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


def rounding_error(model: Path) -> float:
    """How far int8 is from float32: the largest difference in a probability, over the texts of `training.probes`.

    Raises:
        ExportedModelError: `model` is not an exported model.
    """
    source = exported.read(model)
    texts = probes(source)
    with tempfile.TemporaryDirectory() as workspace:
        answers = {}
        for precision in PRECISIONS:
            for index, member in enumerate(source.members):
                onnx.save(to_onnx(member, precision), Path(workspace, graph_file(index)))
            exported.write_description(source, Path(workspace))
            answers[precision] = TextClassifier.load_archived(Path(workspace), threads=1).predict(texts)
    return float(np.abs(answers["int8"] - answers["float32"]).max())
