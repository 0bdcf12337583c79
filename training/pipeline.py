"""The order of the stages: `train` runs all of them, the functions below it run one stage each.

Each stage is skipped if it is already done, and resumes if it was interrupted (`training.stages.stage`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from training.data import Dataset, labels_of, read_labelled_texts
from training.errors import TrainingError
from training.export.archive import archive, default_destination, report
from training.export.destination import check_apart, check_archive, check_destination
from training.export.folder import export_run
from training.export.precision import measure
from training.export.sample import held_out_sample
from training.settings import WT103, Settings
from training.stages.classifier import check_synthetic_texts, train_classifier
from training.stages.distil import distil
from training.stages.generator import generate
from training.stages.language_model import (
    general_model,
    hashes_of,
    language_model_files,
    read_lines,
    train_general,
    train_on_texts,
)
from training.stages.products import TEACHERS
from training.stages.record import RECORD_FILE
from training.stages.run import encoder_of, generated_of, teachers_of
from training.stages.teacher import train_general_teacher, train_teacher
from training.stages.terms import terms_of
from training.stages.warm_start import start_of, unpack


def train(
    data: Dataset,
    run: Path,
    to: Path,
    settings: Settings,
    *,
    start: Path | None = None,
    general: str | None = None,
    texts: Sequence[Path] = (),
    labelled_texts: Path | None = None,
    transformer: str | None = None,
    notes: str = "",
) -> None:
    """Train a classifier with all stages, export it, and build its archive.

    The encoder is initialized from one of `start`, `general` and `texts`; without them, from `settings.start`.

    Args:
        data: the labelled texts.
        run: folder of the run.
        to: folder of the exported model.
        settings: settings of all stages.
        start: folder of an exported model, whose encoder takes the place of the language model and the distillation.
        general: the general language model: `wt103`, or a folder in fastai's format.
        texts: text files to train a general language model on.
        labelled_texts: file with lines of `label<TAB>text`, to distil a general teacher into the language model.
        transformer: transformer of the only teacher; None: `settings.transformers`.
        notes: see `training.export.card.card_of_run`.

    Raises:
        TrainingError: an input is invalid; it is checked before any stage runs.
    """
    if not (start or general or texts):
        start, general = (None, WT103) if settings.start == WT103 else (Path(settings.start), None)
    _check(data, to, settings, start, general, texts, labelled_texts)
    check_apart(to, run)
    encoder = unpack_start(start, run) if start else None
    if (run / "classifier" / RECORD_FILE).exists() and start_of(run) != encoder:
        raise TrainingError(
            f"The classifier in {run} was initialized from other weights. Choose another folder with --run, or remove "
            f"{run / 'classifier'}."
        )

    # The teacher does not depend on the other stages, and its transformer may be the user's: an error shows early.
    teacher(data, run, settings, transformer)
    if encoder is None:
        if texts:
            train_general(list(texts), settings.general, run / "general")
            general = str(run / "general")
        encoder = language_model(data, run, settings, general or WT103)
        if labelled_texts:
            general_teacher(data, run, settings, labelled_texts)
            encoder = distillation(data, run, settings, texts, labelled_texts)
    generator(data, run, settings, encoder)
    classifier(data, run, settings, encoder, transformer)
    export(data, run, to, notes=notes)
    archive_file = default_destination(to)
    report(archive_file, archive(to, archive_file, version="1.0"))


def _check(
    data: Dataset,
    to: Path,
    settings: Settings,
    start: Path | None,
    general: str | None,
    texts: Sequence[Path],
    labelled_texts: Path | None,
) -> None:
    """Check the inputs of all stages.

    Raises:
        TrainingError: an input is invalid.
    """
    if start and labelled_texts:
        raise TrainingError(
            "--labelled-texts is for the distillation into a language model. Give --texts or --general, too."
        )
    for split in ("train", "validation"):
        data.labelled(split)
    labels = labels_of(data.table())
    check_synthetic_texts(settings.classifier, labels)
    if labelled_texts:
        read_labelled_texts(labelled_texts, labels)
    for path in texts:
        next(read_lines(path))
    hashes_of(list(texts))
    if general:
        language_model_files(general_model(general))
    check_destination(to)
    check_archive(default_destination(to))


def unpack_start(start: Path, run: Path) -> Path:
    """Copy the encoder of an exported model into the run, and print the terms of its weights; return the folder."""
    folder = unpack(start, run)
    print(f"Starting weights: {start}. Their terms: {terms_of(start)}.", file=sys.stderr)
    return folder


def language_model(data: Dataset, run: Path, settings: Settings, general: str) -> Path:
    """Run stage 2: fine-tune the general language model on the data; return the stage's folder.

    Args:
        data: the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        general: `wt103`, or a folder in fastai's format.
    """
    folder = run / "language-model"
    train_on_texts(data.table(), data.sha256, general_model(general), settings.language_model, folder)
    return folder


def general_teacher(
    data: Dataset, run: Path, settings: Settings, labelled_texts: Path, transformer: str | None = None
) -> None:
    """Fine-tune a transformer on labelled texts of another source; None: `settings.general_transformer`."""
    labels = labels_of(data.table())
    transformer = transformer or settings.general_transformer
    train_general_teacher(labelled_texts, labels, settings.general_teacher, run / "general-teacher", transformer)


def distillation(
    data: Dataset,
    run: Path,
    settings: Settings,
    texts: Sequence[Path],
    labelled_texts: Path,
    encoder: Path | None = None,
) -> Path:
    """Distil the general teacher into an encoder; return the stage's folder.

    Args:
        data: the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        texts: text files; the file `labelled_texts` is ignored if it is among them.
        labelled_texts: file of the general teacher's training texts.
        encoder: folder of the encoder; None: the run's language model.
    """
    folder = run / "distil"
    distil(
        data.table(),
        data.sha256,
        texts=[path for path in texts if path.resolve() != labelled_texts.resolve()],
        labelled_texts=labelled_texts,
        encoder_folder=encoder or run / "language-model",
        teacher=run / "general-teacher",
        settings=settings.distil,
        folder=folder,
    )
    return folder


def teacher(data: Dataset, run: Path, settings: Settings, transformer: str | None = None) -> None:
    """Fine-tune the teachers' transformers on the data: `transformer` alone, or those of the settings if it is None."""
    transformers = (transformer,) if transformer else settings.transformers
    for name, one in zip(TEACHERS, transformers, strict=False):
        train_teacher(data.table(), data.sha256, settings.teacher, run / name, one)


def generator(data: Dataset, run: Path, settings: Settings, encoder: Path | None = None) -> None:
    """Train the generator and write its texts; nothing if the settings ask for no texts.

    Args:
        data: the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        encoder: see `classifier`.
    """
    if settings.generator.texts:
        generate(
            data.table(),
            data.sha256,
            encoder_folder=encoder or encoder_of(run),
            settings=settings.generator,
            folder=run / "generator",
        )


def classifier(
    data: Dataset, run: Path, settings: Settings, encoder: Path | None = None, transformer: str | None = None
) -> None:
    """Run stage 3: train the classifier, with the run's teachers and its generated texts, as far as it has them.

    Teachers and texts that the settings do not ask for are left out, although the run may have them.

    Args:
        data: the labelled texts.
        run: folder of the run.
        settings: settings of all stages.
        encoder: folder of the encoder; None: the run's distillation, or its language model if it has no distillation.
        transformer: transformer of the only teacher; None: `settings.transformers`.
    """
    train_classifier(
        data.table(),
        data.sha256,
        encoder_folder=encoder or encoder_of(run),
        teachers=teachers_of(run, 1 if transformer else len(settings.transformers)),
        generated=generated_of(run, settings.generator),
        settings=settings.classifier,
        folder=run / "classifier",
    )


def export(data: Dataset | None, run: Path, to: Path, *, notes: str = "", stage: str = "classifier") -> None:
    """Export the learner of a stage, evaluate it, and choose the precision of its archive on the held-out texts.

    Args:
        data: the labelled texts of the run; None: no evaluation and no choice.
        run: folder of the run.
        to: folder of the exported model.
        notes: see `training.export.card.card_of_run`.
        stage: `classifier` or `distil`.
    """
    export_run(run, to, notes=notes, stage=stage, data=data)
    report_export(to, data)


def report_export(to: Path, data: Dataset | None) -> None:
    """Print the folder of an exported model; with held-out texts, choose and print the precision of its archive."""
    print(f"Exported to {to}")
    if data is not None and (sample := held_out_sample(data, data.file.name)):
        print("\n".join(measure(to, sample)))
