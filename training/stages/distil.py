"""Distillation: the language model's encoder learns to read as the teacher does, on any number of texts.

For each text it learns the teacher's probabilities (Hinton, Vinyals and Dean, 2015) and the direction of the
teacher's pooled output (Romero et al., "FitNets", ICLR 2015), which says more of a text than three probabilities.

What comes of it is an encoder for the classifier, and a classifier of its own that has seen no label of the tweets,
unless it began with a model that had.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.text.all import AccumMetric, load_pickle, save_pickle
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import existing, labelled, labels_of, read_labelled_texts, sha256_of
from training.settings import DistilSettings, LabelledDistilSettings
from training.stages import tfidf
from training.stages.augmentation import pieces
from training.stages.calibration import calibrate_and_round
from training.stages.classifier import classifier_learner, export, loaders
from training.stages.language_model import ENCODER_FILE, VOCABULARY_FILE, hashes_of, read_lines
from training.stages.stage import Phase, Stage
from training.stages.targets import accuracy as accuracy_of
from training.stages.targets import soft_cross_entropy, to_targets
from training.stages.teacher import WEIGHTS_FILE as TEACHER_FILE
from training.stages.teacher import check_teachers_tweets, load_teacher
from training.stages.transformer import TransformerClassifier

HELD_OUT = 2_000


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
    """Train an encoder on the general teacher's answers.

    Writes the encoder, and with the labels' part of its head a learner, as `train_classifier` does.

    Args:
        texts: text files, one document a line. The train split's texts are read too, without their labels.
        labelled_texts: those that the teacher was trained on; their targets are half label, half answer.
        encoder_folder: of the language model on tweets, or of an exported model to begin with.
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
    answers = stage.keep(documents, partial(_answers, cache(lambda: load_teacher(teacher, labels))))
    answers[:, len(labels) :] -= answers[:, len(labels) :].mean(0)
    targets: NDArray[np.float32] = answers.numpy()
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
    """Train an encoder and a classifier at once, on the labels of the train split and on what its teacher says of its
    texts, of pieces of them, and of other texts. The validation split measures and calibrates it.

    Args:
        texts: text files, one document a line, for which the teacher alone speaks.
        teacher_folder: of a teacher that has seen no label outside the train split.
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
    check_teachers_tweets(teacher_folder, csv_sha256)
    stage = Stage(folder, settings, inputs)
    if not stage.begin():
        return
    own = list(train["text"])
    versions = [own, *(pieces(own, settings.seed + copy) for copy in range(settings.pieces))]
    of_train = [text for version in versions for text in version]
    others = [line for path in texts for line in read_lines(path)]
    documents = [*of_train, *others, *validation["text"]]
    answers = stage.keep(documents, partial(_answers, cache(lambda: load_teacher(teacher_folder, labels)))).numpy()
    answers[:, len(labels) :] -= answers[: len(of_train), len(labels) :].mean(0)
    if settings.tfidf_weight:
        words = tfidf.answers(train, versions, labels).reshape(len(of_train), len(labels))
        mix_in(answers, words, settings.tfidf_weight)
    mix_in(answers, to_targets(train["label"], labels), settings.label_weight)
    answers[len(of_train) + len(others) :, : len(labels)] = to_targets(validation["label"], labels)
    if class_weights:
        answers[:, : len(labels)] *= np.array([class_weights[label] for label in labels], dtype=np.float32)
    _train(
        stage,
        documents,
        answers,
        len(of_train) + len(others),
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
    """Train on the first `train` texts, whose targets are probabilities of the labels and pooled outputs."""
    folder = stage.folder
    vocabulary = load_pickle(encoder_folder / VOCABULARY_FILE)
    data = loaders(texts, targets, train, vocabulary, settings.batch_size)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        of_labels = soft_cross_entropy(outputs[:, : len(labels)], wanted[:, : len(labels)])
        similarity = F.cosine_similarity(outputs[:, len(labels) :], wanted[:, len(labels) :].as_subclass(Tensor))
        return of_labels + settings.feature_weight * (1 - similarity.mean())

    def accuracy(outputs: Tensor, wanted: Tensor) -> Tensor:
        """How often the teacher's most probable label (mixed with the text's own) is met."""
        return accuracy_of(outputs[:, : len(labels)], wanted[:, : len(labels)])

    learner = classifier_learner(
        data,
        targets.shape[1],
        encoder_folder / ENCODER_FILE,
        settings.drop_mult,
        lin_ftrs=[],  # one linear layer: what the teacher says must lie open in the encoder's output
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
    torch.save(learner.model[0].module.state_dict(), folder / ENCODER_FILE)
    save_pickle(folder / VOCABULARY_FILE, vocabulary)
    calibration = calibrate_and_round(learner, len(labels))
    keep_outputs(learner.model, len(labels))
    export(learner.model, known, labels, vocabulary, folder)
    stage.finish(documents=len(texts), **calibration)


def mix_in(answers: NDArray[np.float32], targets: NDArray[np.float32], weight: float) -> None:
    """Replace a share of the first rows' probabilities, the first columns of `answers`, by `targets`, in place."""
    rows, labels = targets.shape
    answers[:rows, :labels] = (1 - weight) * answers[:rows, :labels] + weight * targets


def keep_outputs(model: nn.Module, outputs: int) -> None:
    """Cut the last layer to its first outputs, the labels': what is left is a classifier."""
    [*_, last] = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last.weight = nn.Parameter(last.weight[:outputs])
    last.out_features = outputs


def _answers(teacher: Callable[[], TransformerClassifier], texts: Sequence[str]) -> Tensor:
    """The teacher's probabilities and pooled outputs, (texts, C + D)."""
    return torch.cat(teacher().predict(texts), 1)
