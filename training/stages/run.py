"""What the finished stages of a run have made for the classifier."""

from pathlib import Path

from training.stages.products import GENERATED_FILE, TEACHERS
from training.stages.record import finished_stage


def encoder_of(run: Path) -> Path:
    """Return the folder of a run's encoder: of its distillation, or of its language model if it has no distillation.

    Raises:
        TrainingError: the distillation has started and is not finished.
    """
    return finished_stage(run / "distil") or run / "language-model"


def teachers_of(run: Path) -> list[Path]:
    """Return the folders of a run's teachers; none if it has no teacher.

    Raises:
        TrainingError: a teacher's training has started and is not finished.
    """
    return [folder for name in TEACHERS if (folder := finished_stage(run / name))]


def generated_of(run: Path) -> Path | None:
    """Return the file of a run's generated texts; None if it has none, or no teacher that could label them.

    Raises:
        TrainingError: the generator has started and is not finished.
    """
    folder = finished_stage(run / "generator")
    return folder / GENERATED_FILE if folder and teachers_of(run) else None
