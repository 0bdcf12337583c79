"""ULMFiT's stage 3: the classifier on top of a language model's encoder."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.text.all import (
    AWD_LSTM,
    CategoryBlock,
    ColReader,
    ColSplitter,
    CrossEntropyLossFlat,
    DataBlock,
    GradientClip,
    Learner,
    TextBlock,
    TextLearner,
    TransformBlock,
    accuracy,
    awd_lstm_clas_config,
    text_classifier_learner,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import labelled, labels_of, sha256_of
from training.errors import TrainingError
from training.files import reading, replacing
from training.settings import ClassifierSettings
from training.stages import tfidf
from training.stages.augmentation import OPINIONS, WORDS, spans, synthetic_texts
from training.stages.calibration import calibrate_and_round
from training.stages.language_model import callbacks, existing_encoder, read_lines, sizes_of
from training.stages.predictions import predictions
from training.stages.products import ENCODER_FILE, LEARNER_FILE, TEACHER_FILE, TEACHERS, VOCABULARY_FILE
from training.stages.record import check_data
from training.stages.stage import Phase, Stage, load_tensors, load_vocabulary, save_tensors
from training.stages.targets import METRICS, soft_cross_entropy, to_targets
from training.templates import LABELS

SYNTHETIC_LABEL_SMOOTHING = 0.05
EXAMPLES = 100
"""Number of rows with which fastai makes the data loaders of an exported learner; the export has no row."""

EXTENDED_FILE = "widened.pth"
"""Temporary file in the stage's folder: the encoder with the synthetic texts' words, until fastai has loaded it."""


def train_classifier(
    tweets: pd.DataFrame,
    csv_sha256: str,
    *,
    encoder_folder: Path,
    teachers: Sequence[Path],
    generated: Path | None = None,
    settings: ClassifierSettings,
    folder: Path,
    class_weights: Mapping[str, float] | None = None,
) -> None:
    """Stage 3: train on the labels of the train split and the teachers' predictions; measure on the validation split.

    Writes the learner in the format of fastai's `Learner.export`, for `training.export.learner` and for the user.

    Args:
        tweets: the labelled texts (`training.data`).
        csv_sha256: SHA-256 of their file.
        encoder_folder: folder of the stage `language-model` or `distil`, or of an exported model's encoder.
        teachers: folders of teachers that have seen no label outside the train split; none: labels only.
        generated: file of generated texts, on which the teachers' predictions are learned, too.
        settings: hyperparameters.
        folder: the stage's folder.
        class_weights: weight of each label in the loss and in the calibration's likelihood; None: 1 for all.

    Raises:
        TrainingError: a label is blank, or there is no encoder.
    """
    inputs = inputs_of(csv_sha256, encoder_folder, teachers, generated, settings)
    for stage_folder in (*teachers, *([generated.parent] if generated else [])):
        check_data(stage_folder, csv_sha256)
    labels = labels_of(tweets)
    check_synthetic_texts(settings, labels)
    train, validation = labelled(tweets, "train"), labelled(tweets, "validation")
    stage = Stage(folder, settings, inputs)
    if not stage.begin():
        return
    if not teachers:
        print(f"{folder}: the run has no teacher; the classifier learns from the labels only")
    texts, targets = train_targets(train, labels, teachers, generated, settings)
    stage.seed()
    encoder, vocabulary = encoder_folder / ENCODER_FILE, load_vocabulary(encoder_folder / VOCABULARY_FILE)
    if settings.made_up_texts:
        encoder, vocabulary = _extended(encoder, vocabulary, folder / EXTENDED_FILE)
    targets = np.concatenate([targets, to_targets(validation["label"], labels)])
    if class_weights:
        # The cross-entropy is linear in the targets.
        targets *= np.array([class_weights[label] for label in labels], dtype=np.float32)
    data = loaders(
        [*texts, *validation["text"]],
        targets,
        len(texts),
        vocabulary,
        settings.batch_size,
    )
    learner = classifier_learner(data, len(labels), encoder, settings.drop_mult)
    learner.add_cb(GradientClip(settings.max_gradient_norm))
    (folder / EXTENDED_FILE).unlink(missing_ok=True)
    stage.fit(learner, phases(settings))
    calibration = calibrate_and_round(learner, len(labels))
    export(learner.model, train, labels, vocabulary, folder)
    stage.finish(**calibration)


def inputs_of(
    csv_sha256: str,
    encoder_folder: Path,
    teachers: Sequence[Path],
    generated: Path | None,
    settings: ClassifierSettings,
) -> dict[str, str]:
    """Return the SHA-256 of each input that determines a classifier, for its record; see `train_classifier`.

    Raises:
        TrainingError: there is no encoder.
    """
    encoder = existing_encoder(encoder_folder)
    vocabulary = sha256_of(encoder_folder / VOCABULARY_FILE)
    inputs = {"data": csv_sha256, "encoder": sha256_of(encoder), "vocabulary": vocabulary}
    inputs |= {name: sha256_of(teacher / TEACHER_FILE) for name, teacher in zip(TEACHERS, teachers, strict=False)}
    if generated:
        inputs["generated_texts"] = sha256_of(generated)
    if settings.made_up_texts:
        texts, _ = synthetic_texts(settings.made_up_texts, settings.seed)
        inputs["made_up_texts"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return inputs


def train_targets(
    train: pd.DataFrame,
    labels: list[str],
    teachers: Sequence[Path],
    generated: Path | None,
    settings: ClassifierSettings,
) -> tuple[list[str], NDArray[np.float32]]:
    """Collect the texts to train on, and for each text its target: a probability distribution over the labels.

    The target of a labelled text is a mixture of its label and the teachers' prediction; the label's weight is
    `label_weight`, times the agreement of its annotators. Without a teacher, the target is the label, smoothed by
    `label_smoothing`. The target of a span of a text and of a generated text is the teachers' prediction only.

    Args:
        train: rows of the train split.
        labels: labels in the order of the targets' columns.
        teachers: see `train_classifier`.
        generated: see `train_classifier`.
        settings: hyperparameters.

    Returns:
        The texts, and the targets (texts, C).
    """
    texts = list(train["text"])
    share, rest = 1 - settings.label_smoothing, np.full((1, len(labels)), 1 / len(labels), dtype=np.float32)
    more_texts: list[str] = []
    if teachers:
        versions = [texts, *(spans(texts, settings.seed + copy) for copy in range(settings.pieces))]
        new = list(read_lines(generated)) if generated else []
        more_texts = [*(text for version in versions[1:] for text in version), *new]
        soft_labels = np.mean([predictions(teacher, labels, [*texts, *more_texts]) for teacher in teachers], axis=0)
        if settings.tfidf_weight:
            of_versions = tfidf.soft_labels(train, versions, labels).reshape(-1, len(labels))
            of_new = tfidf.probabilities(train, new, labels)
            share_of_tfidf = settings.tfidf_weight
            soft_labels = (1 - share_of_tfidf) * soft_labels + share_of_tfidf * np.concatenate([of_versions, of_new])
        share, rest = settings.label_weight, soft_labels[: len(texts)]
    weight = np.full((len(texts), 1), share, dtype=np.float32)
    if settings.use_confidence:
        weight *= train["confidence"].to_numpy(dtype=np.float32)[:, None]
    targets = weight * to_targets(train["label"], labels) + (1 - weight) * rest
    if more_texts:
        targets = np.concatenate([targets, soft_labels[len(texts) :]])
        texts += more_texts
    if settings.made_up_texts:
        synthetic, synthetic_labels = synthetic_texts(settings.made_up_texts, settings.seed)
        texts += synthetic
        smoothing = SYNTHETIC_LABEL_SMOOTHING
        smoothed = (1 - smoothing) * to_targets(synthetic_labels, labels) + smoothing / len(labels)
        targets = np.concatenate([targets, smoothed])
    return texts, targets.astype(np.float32)


def with_opinions(embeddings: Tensor, vocabulary: list[str]) -> tuple[Tensor, list[str]]:
    """Add a row to the embeddings (V, D), and a token to the vocabulary, for each opinion word of the synthetic texts.

    Without these rows, the synthetic texts would teach the sentiment of words such as "detested" to the token of
    unknown words. A new row is the mean of the known words for the same placeholder.
    """
    rows = {token: row for row, token in enumerate(vocabulary)}
    new: dict[str, Tensor] = {}
    for placeholder in OPINIONS:
        words = [word for word in WORDS[placeholder] if word.isalpha()]
        known = [rows[word] for word in words if word in rows] or list(rows.values())
        new |= {word: embeddings[known].mean(0) for word in words if word not in rows | new}
    return torch.stack([*embeddings, *new.values()]), [*vocabulary, *new]


def _extended(encoder: Path, vocabulary: list[str], file: Path) -> tuple[Path, list[str]]:
    with reading(encoder):
        state = load_tensors(encoder)
        embeddings, vocabulary = with_opinions(state["encoder.weight"], vocabulary)
    # fastai stores the embedding under two names.
    state["encoder.weight"] = state["encoder_dp.emb.weight"] = embeddings
    save_tensors(state, file)
    return file, vocabulary


def check_synthetic_texts(settings: ClassifierSettings, labels: list[str]) -> None:
    """Check that the data has the labels of the synthetic texts, if the settings ask for such texts.

    Raises:
        TrainingError: the data does not have these labels.
    """
    if settings.made_up_texts and not set(LABELS) <= set(labels):
        raise TrainingError(
            f"The synthetic texts have the labels {', '.join(LABELS)}; the data has {', '.join(labels)}. Train without "
            f"synthetic texts: --set classifier.made_up_texts=0."
        )


def phases(settings: ClassifierSettings) -> list[Phase]:
    """Return the phases of gradual unfreezing with discriminative learning rates (ULMFiT, sections 3.2 and 3.3)."""

    def rates(top: float) -> slice:
        return slice(top / settings.decay_per_group**4, top)

    return [
        Phase("head", settings.frozen_epochs, settings.frozen_learning_rate, -1),
        Phase("last two", settings.last_two_epochs, rates(settings.last_two_learning_rate), -2),
        Phase("last three", settings.last_three_epochs, rates(settings.last_three_learning_rate), -3),
        Phase("all", settings.epochs, rates(settings.learning_rate), 0),
    ]


def loaders(
    texts: Sequence[str], targets: NDArray[np.float32], train: int, vocabulary: list[str], batch_size: int
) -> Any:
    """Make fastai data loaders of texts and their targets (texts, C); the first `train` texts are the train split."""
    table = pd.DataFrame({"text": texts, "row": np.arange(len(texts))})
    table["is_valid"] = table["row"] >= train

    def target(row: pd.Series) -> Tensor:
        return torch.from_numpy(targets[row["row"]])

    data = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=vocabulary), TransformBlock),
        get_x=ColReader("text"),
        get_y=target,
        splitter=ColSplitter("is_valid"),
    ).dataloaders(table, bs=batch_size, num_workers=0)
    for loader in data.loaders:
        # fastai builds every item anew in every epoch: 10 of the 16 milliseconds that loading a batch of 64 takes.
        loader.create_item = [loader.dataset[row] for row in range(len(loader.dataset))].__getitem__
    return data


def classifier_learner(data: Any, outputs: int, encoder: Path, drop_mult: float, **options: Any) -> Learner:
    """Make fastai's text classifier over soft targets, with a loaded encoder."""
    learner = text_classifier_learner(
        data,
        AWD_LSTM,
        config=awd_lstm_clas_config | sizes_of(encoder, prefix=""),
        drop_mult=drop_mult,
        n_out=outputs,
        pretrained=False,
        **{"loss_func": soft_cross_entropy, "metrics": METRICS} | options,
        cbs=callbacks(),
        path=encoder.parent,
        model_dir=".",
    )
    with reading(encoder):
        learner.load_encoder(encoder.stem)
    return learner


def export(model: nn.Module, rows: pd.DataFrame, labels: list[str], vocabulary: list[str], folder: Path) -> None:
    """Write the model as a learner over plain labels, in the format of fastai's `Learner.export`.

    Args:
        model: the trained network.
        rows: texts with labels, from which fastai makes data loaders; the exported learner has none of them.
        labels: the labels in the order of the outputs.
        vocabulary: the tokens in the order of their ids.
        folder: the stage's folder.
    """
    data = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=vocabulary), CategoryBlock(vocab=labels)),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
    ).dataloaders(rows[:EXAMPLES], bs=8, num_workers=0)
    # A TextLearner has the callbacks that fastai needs to predict with this model.
    learner = TextLearner(data, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=folder)
    with replacing(folder / LEARNER_FILE) as partial:
        learner.export(partial.name)
