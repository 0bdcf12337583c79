"""ULMFiT's third stage: the classifier on top of the tuned language model's encoder."""

from pathlib import Path
from typing import Any

import pandas as pd
from fastai.text.all import (
    AWD_LSTM,
    CategoryBlock,
    ColReader,
    ColSplitter,
    DataBlock,
    F1Score,
    LabelSmoothingCrossEntropyFlat,
    Learner,
    TextBlock,
    accuracy,
    awd_lstm_clas_config,
    load_pickle,
    set_seed,
    text_classifier_learner,
)

from training.data import labelled, sha256_of
from training.errors import TrainingError
from training.language_model import sizes_of
from training.run import Phase, Stage
from training.settings import ClassifierSettings

LEARNER_FILE = "learner.pkl"


def train_classifier(
    tweets: pd.DataFrame, csv_sha256: str, language_model: Path, settings: ClassifierSettings, folder: Path
) -> None:
    """Stage 3: train on the train split's labels, measuring on the validation split's.

    Writes the learner as fastai's own `export` does, for `training.export` and for the user's own use.

    Raises:
        TrainingError: blank labels, or no language model of stage 2.
    """
    encoder = language_model / "encoder.pth"
    if not encoder.is_file():
        raise TrainingError(f"No {encoder}: run `python -m training language-model` first.")
    stage = Stage(folder, settings, {"tweets": csv_sha256, "encoder": sha256_of(encoder)})
    if stage.done:
        print(f"{folder}: already done")
        return
    set_seed(settings.seed, reproducible=True)
    documents = pd.concat([labelled(tweets, "train"), labelled(tweets, "validation")], ignore_index=True)
    documents["is_valid"] = documents["split"] == "validation"
    data = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=load_pickle(language_model / "vocabulary.pkl")), CategoryBlock),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
    ).dataloaders(documents, bs=settings.batch_size, num_workers=0)
    learner = _learner(data, encoder, settings)
    stage.fit(learner, phases(settings))
    learner.path = folder
    learner.export(LEARNER_FILE)
    stage.finish()


def phases(settings: ClassifierSettings) -> list[Phase]:
    """Gradual unfreezing with discriminative learning rates (ULMFiT, sections 3.2 and 3.3)."""

    def rates(top: float) -> slice:
        return slice(top / settings.decay_per_group**4, top)

    return [
        Phase("head", settings.frozen_epochs, settings.frozen_learning_rate, -1),
        Phase("last two", settings.last_two_epochs, rates(settings.last_two_learning_rate), -2),
        Phase("last three", settings.last_three_epochs, rates(settings.last_three_learning_rate), -3),
        Phase("all", settings.epochs, rates(settings.learning_rate), 0),
    ]


def _learner(data: Any, encoder: Path, settings: ClassifierSettings) -> Learner:
    learner = text_classifier_learner(
        data,
        AWD_LSTM,
        config=awd_lstm_clas_config | sizes_of(encoder, prefix=""),
        drop_mult=settings.drop_mult,
        pretrained=False,
        loss_func=LabelSmoothingCrossEntropyFlat(eps=settings.label_smoothing),
        metrics=[accuracy, F1Score(average="macro")],
        path=encoder.parent,
        model_dir=".",
    )
    learner.load_encoder(encoder.stem)
    return learner
