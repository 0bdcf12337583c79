"""Products of a run's finished stages that the classifier needs."""

from pathlib import Path

from training.settings import GeneratorSettings
from training.stages.products import GENERATED_FILE, TEACHERS
from training.stages.record import finished_stage, record_of


def encoder_of(run: Path) -> Path:
    """Return the folder of a run's encoder: of its distillation, or of its language model if it has no distillation.

    Raises:
        TrainingError: the distillation has started and is not finished.
    """
    return finished_stage(run / "distil") or run / "language-model"


def teachers_of(run: Path, count: int = len(TEACHERS)) -> list[Path]:
    """Return the folders of a run's teachers; none if it has no teacher.

    Args:
        run: folder of the run.
        count: number of transformers that the options ask for; further teachers of the run are left out.

    Raises:
        TrainingError: a teacher's training has started and is not finished.
    """
    return [folder for name in TEACHERS[:count] if (folder := finished_stage(run / name))]


def generated_of(run: Path, settings: GeneratorSettings) -> Path | None:
    """Return the file of a run's generated texts.

    Args:
        run: folder of the run.
        settings: settings of the generator.

    Returns:
        None if the settings ask for no texts, the run has none, or it has no teacher that could label them.

    Raises:
        TrainingError: the generator has started and is not finished.
    """
    folder = finished_stage(run / "generator") if settings.texts else None
    return folder / GENERATED_FILE if folder and record_of(folder).get("texts") and teachers_of(run) else None
