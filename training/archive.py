"""The exported model and `handler/` to one model archive, with torch-model-archiver."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from handler import exported
from handler.service import MODEL_FOLDER
from training.errors import TrainingError

HANDLER = Path(__file__).parent.parent / "handler"


def archive(model: Path, destination: Path, version: str) -> None:
    """Write `destination` (`NAME.mar`), whose name is the model's name in TorchServe.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: torch-model-archiver failed.
    """
    exported.read(model)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".archive-") as workspace:
        content = Path(workspace, "content")
        shutil.copytree(HANDLER, content / "handler", ignore=shutil.ignore_patterns("__pycache__", "service.py"))
        shutil.copytree(model, content / MODEL_FOLDER, ignore=lambda _, names: set(names) - set(exported.FILES))
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
