"""Build a model archive from an exported model and the folder `handler/`, with torch-model-archiver."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import onnx

from handler import exported
from handler.engine import graph_file
from handler.exported import ExportedModel
from handler.service import MODEL_FOLDER
from training.errors import TrainingError
from training.export.destination import NAME
from training.export.graph import to_onnx
from training.export.precision import Choice, choose, forced, is_close, read_choice, write_choice
from training.export.sample import Sample, synthetic_sample
from training.settings import MAX_DIFFERENCE, Precision

HANDLER = Path(__file__).parents[2] / "handler"


def archive(
    model: Path, destination: Path, version: str, precision: Precision | None = None, sample: Sample | None = None
) -> Choice:
    """Write `destination` (`NAME.mar`); the file's name is the model's name in TorchServe.

    Args:
        model: folder of the exported model.
        destination: path of the archive.
        version: the model's version: letters, digits, points, hyphens and underscores, as in its name.
        precision: precision of the network in the archive; None: see `training.export.precision.choose`.
        sample: texts that decide the precision. If None, an earlier measurement on real texts decides
            (`training.export.precision.read_choice`), or else synthetic texts do. A given precision is measured only if
            there is a sample or an earlier measurement.

    Returns:
        The precision and its measurement, as in the archive's card.

    Raises:
        ExportedModelError: `model` is not an exported model.
        TrainingError: the name or the version is invalid, or torch-model-archiver failed.
    """
    for option, name in (("--version", version), ("--to", destination.stem)):
        if not NAME.fullmatch(name):
            raise TrainingError(f"{option} {name!r}: expected letters, digits, points, hyphens and underscores.")
    source = exported.read(model)
    destination.parent.mkdir(parents=True, exist_ok=True)
    choice = _choice(model, source, precision, sample)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".archive-") as workspace:
        content = Path(workspace, "content")
        # `network.py` is the reference network, which needs torch.
        ignored = shutil.ignore_patterns("__pycache__", "service.py", "network.py", "*.md")
        shutil.copytree(HANDLER, content / "handler", ignore=ignored)
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
        # torch-model-archiver deletes the folder with the model's name in TMPDIR, so it gets a TMPDIR of its own.
        result = subprocess.run(
            command, env=os.environ | {"TMPDIR": workspace}, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            # The last line is that of the error, after its traceback.
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise TrainingError(f"torch-model-archiver cannot write {destination}: {reason}")
        os.replace(Path(workspace, destination.name), destination)
    return choice


def _choice(folder: Path, model: ExportedModel, precision: Precision | None, sample: Sample | None) -> Choice:
    """Choose the precision, and store a choice on real texts with the exported model.

    The choice is stored before the archive is written: `make` rebuilds an archive that is older than a file of its
    model.
    """
    earlier = read_choice(folder) if sample is None or sample.is_synthetic else None
    if precision is not None:
        return forced(model, precision, sample, earlier)
    if earlier is not None:
        return earlier
    choice = choose(model, sample or synthetic_sample(model))
    if not choice.is_synthetic:
        write_choice(choice, folder)
    return choice


def default_destination(model: Path) -> Path:
    """Return the path of a model's archive if no option names it: beside the folder, with the folder's name."""
    # The resolved name, so that a name with points and the path `.` work, too.
    return Path(os.path.normpath(model / ".." / f"{model.resolve().name}.mar"))


def report(destination: Path, choice: Choice) -> None:
    """Print the size and the precision of an archive, the reason for the precision, and its measurement."""
    size_mb = destination.stat().st_size / 1e6
    print(f"Archived as {destination} ({size_mb:.1f} MB) in {choice.precision}: {choice.reason}.")
    for line in choice.describe():
        print(line)
    measured = choice.differences.get(choice.precision)
    if measured is not None and not is_close(measured, choice.is_synthetic):
        print(
            f"warning: in {choice.precision}, a probability may differ by more than {MAX_DIFFERENCE}. Without "
            f"--precision, archive chooses another precision.",
            file=sys.stderr,
        )
