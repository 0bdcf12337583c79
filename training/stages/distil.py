"""Distillation: the language model's encoder is trained on the teacher's outputs for any number of texts.

The targets of a text are the teacher's probabilities (Hinton, Vinyals and Dean, 2015) and the direction of the
teacher's pooled output (Romero et al., "FitNets", ICLR 2015), which has more information than a few probabilities.

The products are an encoder for the stage `classifier`, and a classifier. The classifier of `distil` has seen no label
of the data, unless it was initialized from a model that had; the classifier of `distil_with_labels` has seen them.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.text.all import AccumMetric
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import existing, labelled, labels_of, read_labelled_texts, sha256_of
from training.settings import DistilSettings, LabelledDistilSettings
from training.stages import tfidf
from training.stages.augmentation import spans
from training.stages.calibration import calibrate_and_round
from training.stages.classifier import classifier_learner, export, loaders
from training.stages.language_model import hashes_of, read_lines
from training.stages.products import ENCODER_FILE, TEACHER_FILE, VOCABULARY_FILE
from training.stages.record import check_data
from training.stages.stage import Phase, Stage, load_vocabulary, save_tensors, save_vocabulary
from training.stages.targets import accuracy as label_accuracy
from training.stages.targets import soft_cross_entropy, to_targets
from training.stages.teacher import load_teacher
from training.stages.transformer import TransformerClassifier

HELD_OUT = 2_000
"""Maximum number of texts that measure the stage `distil`."""


def distil(
    tweets: pd.DataFrame,
    csv_sha256: str,
    *,
    texts: list[Path],
    labelled_texts: Path,
    encoder_folder: Path,
    teacher: Path,
    settings: DistilSettings,
    folder: Path,
) -> None:
    """Train an encoder on the general teacher's outputs.

    Writes the encoder, and a learner as `train_classifier` does, whose head is the labels' part of the trained head.

    Args:
        tweets: the labelled texts (`training.data`); the train split's texts are read without their labels.
        csv_sha256: SHA-256 of their file.
        texts: text files with one document per line.
        labelled_texts: file of the teacher's training texts; their targets mix the label and the teacher's prediction.
        encoder_folder: folder of the stage `language-model`, or of an exported model's encoder.
        teacher: folder of the general teacher.
        settings: hyperparameters.
        folder: the stage's folder.

    Raises:
        TrainingError: an earlier stage or a file is missing.
    """
    for product in (encoder_folder / ENCODER_FILE, teacher / TEACHER_FILE):
        existing(product, f": run `python -m training {product.parent.name}` first.")
    labels = labels_of(tweets)
    known = read_labelled_texts(labelled_texts, labels)
    unlabelled = [
        *tweets.loc[tweets["split"] == "train", "text"],
        *(line for path in texts for line in read_lines(path)),
    ]
    inputs = {
        "data": csv_sha256,
        **hashes_of([*texts, labelled_texts]),
        "encoder": sha256_of(encoder_folder / ENCODER_FILE),
        "vocabulary": sha256_of(encoder_folder / VOCABULARY_FILE),
        "teacher": sha256_of(teacher / TEACHER_FILE),
    }
    stage = Stage(folder, settings, inputs)
    if not stage.begin():
        return
    documents = [*known["text"], *unlabelled]
    outputs = stage.compute(documents, partial(_teacher_outputs, cache(lambda: load_teacher(teacher, labels))))
    outputs[:, len(labels) :] -= outputs[:, len(labels) :].mean(0)
    targets: NDArray[np.float32] = outputs.numpy()
    mix_in(targets, to_targets(known["label"], labels), settings.label_weight)
    order = np.random.default_rng(settings.seed).permutation(len(documents))
    held_out = min(HELD_OUT, len(documents) // 10)
    _train(
        stage,
        [documents[row] for row in order],
        targets[order],
        len(documents) - held_out,
        known=known,
        labels=labels,
        encoder_folder=encoder_folder,
        settings=settings,
    )


def distil_with_labels(
    data: pd.DataFrame,
    csv_sha256: str,
    *,
    texts: list[Path],
    encoder_folder: Path,
    teacher_folder: Path,
    settings: LabelledDistilSettings,
    folder: Path,
    class_weights: Mapping[str, float] | None = None,
) -> None:
    """Train an encoder and a classifier at once, on labels and on the outputs of a teacher of the same labels.

    The train split has labels; its texts, spans of them and other texts have the teacher's outputs. The validation
    split measures and calibrates the classifier.

    Args:
        data: the labelled texts (`training.data`).
        csv_sha256: SHA-256 of their file.
        texts: text files with one document per line, without labels.
        encoder_folder: folder of the encoder to initialize from.
        teacher_folder: folder of a teacher that has seen no label outside the train split.
        settings: hyperparameters.
        folder: the stage's folder.
        class_weights: see `training.stages.classifier.train_classifier`.
    """
    labels = labels_of(data)
    train, validation = labelled(data, "train"), labelled(data, "validation")
    inputs = {
        "data": csv_sha256,
        **hashes_of(texts),
        "encoder": sha256_of(encoder_folder / ENCODER_FILE),
        "vocabulary": sha256_of(encoder_folder / VOCABULARY_FILE),
        "teacher": sha256_of(teacher_folder / TEACHER_FILE),
    }
    check_data(teacher_folder, csv_sha256)
    stage = Stage(folder, settings, inputs)
    if not stage.begin():
        return
    own = list(train["text"])
    versions = [own, *(spans(own, settings.seed + copy) for copy in range(settings.pieces))]
    train_texts = [text for version in versions for text in version]
    unlabelled = [line for path in texts for line in read_lines(path)]
    documents = [*train_texts, *unlabelled, *validation["text"]]
    teacher = cache(lambda: load_teacher(teacher_folder, labels))
    targets = stage.compute(documents, partial(_teacher_outputs, teacher)).numpy()
    targets[:, len(labels) :] -= targets[: len(train_texts), len(labels) :].mean(0)
    if settings.tfidf_weight:
        from_tfidf = tfidf.soft_labels(train, versions, labels).reshape(len(train_texts), len(labels))
        mix_in(targets, from_tfidf, settings.tfidf_weight)
    mix_in(targets, to_targets(train["label"], labels), settings.label_weight)
    held_out = len(train_texts) + len(unlabelled)
    targets[held_out:, : len(labels)] = to_targets(validation["label"], labels)
    if class_weights:
        targets[:, : len(labels)] *= np.array([class_weights[label] for label in labels], dtype=np.float32)
    _train(
        stage,
        documents,
        targets,
        held_out,
        known=train,
        labels=labels,
        encoder_folder=encoder_folder,
        settings=settings,
    )


def _train(
    stage: Stage,
    texts: list[str],
    targets: NDArray[np.float32],
    train: int,
    *,
    known: pd.DataFrame,
    labels: list[str],
    encoder_folder: Path,
    settings: DistilSettings,
) -> None:
    """Train on the first `train` texts; targets are label probabilities and a pooled output, (texts, C + D)."""
    folder = stage.folder
    vocabulary = load_vocabulary(encoder_folder / VOCABULARY_FILE)
    data = loaders(texts, targets, train, vocabulary, settings.batch_size)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        cross_entropy = soft_cross_entropy(outputs[:, : len(labels)], targets[:, : len(labels)])
        similarity = F.cosine_similarity(outputs[:, len(labels) :], targets[:, len(labels) :].as_subclass(Tensor))
        return cross_entropy + settings.feature_weight * (1 - similarity.mean())

    def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute how often the most probable label is that of the target."""
        return label_accuracy(outputs[:, : len(labels)], targets[:, : len(labels)])

    learner = classifier_learner(
        data,
        targets.shape[1],
        encoder_folder / ENCODER_FILE,
        settings.drop_mult,
        lin_ftrs=[],  # one linear layer, so that the encoder's output itself must contain the teacher's outputs
        loss_func=loss,
        metrics=[AccumMetric(accuracy, flatten=False)],
    )
    stage.fit(
        learner,
        [
            Phase("head", settings.frozen_epochs, settings.frozen_learning_rate, -1),
            Phase("all", settings.epochs, settings.learning_rate, 0),
        ],
    )
    save_tensors(learner.model[0].module.state_dict(), folder / ENCODER_FILE)
    save_vocabulary(vocabulary, folder / VOCABULARY_FILE)
    calibration = calibrate_and_round(learner, len(labels))
    truncate_outputs(learner.model, len(labels))
    export(learner.model, known, labels, vocabulary, folder)
    stage.finish(documents=len(texts), **calibration)


def mix_in(targets: NDArray[np.float32], distributions: NDArray[np.float32], weight: float) -> None:
    """Mix label distributions (n, C) into the first n rows and C columns of the targets, in place.

    Args:
        targets: at least n rows and C columns; changed in place.
        distributions: label distributions of the first n rows.
        weight: share of `distributions` in the mixture.
    """
    rows, labels = distributions.shape
    targets[:rows, :labels] = (1 - weight) * targets[:rows, :labels] + weight * distributions


def truncate_outputs(model: nn.Module, outputs: int) -> None:
    """Cut the last layer to its first outputs, the labels' logits, which makes the network a classifier."""
    [*_, last] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last.weight = nn.Parameter(last.weight[:outputs])
    last.out_features = outputs


def _teacher_outputs(teacher: Callable[[], TransformerClassifier], texts: Sequence[str]) -> Tensor:
    """Compute the teacher's probabilities and pooled outputs, (texts, C + D)."""
    return torch.cat(teacher().predict(texts), 1)
