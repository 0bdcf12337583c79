"""Distillation: the language model's encoder learns to read as the teacher does, on any number of texts.

For each text it learns the teacher's probabilities (Hinton, Vinyals and Dean, 2015) and the direction of the
teacher's pooled output (Romero et al., "FitNets", ICLR 2015), which says more of a text than three probabilities.

What comes of it is an encoder for the classifier, and a classifier of its own that has seen no label of the tweets,
unless it began with a model that had.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.text.all import AccumMetric, load_pickle, save_pickle
from numpy.typing import NDArray
from torch import Tensor, nn

from training.calibration import calibrate_and_round
from training.classifier import classifier_learner, export, loaders
from training.data import existing, labels_of, read_labelled_texts, sha256_of
from training.language_model import ENCODER_FILE, VOCABULARY_FILE, hashes_of, read_lines
from training.metrics import accuracy as accuracy_of
from training.metrics import soft_cross_entropy, to_targets
from training.run import Phase, Stage
from training.settings import DistilSettings
from training.teacher import WEIGHTS_FILE as TEACHER_FILE
from training.teacher import load_teacher
from training.transformer import TransformerClassifier

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
        "tweets": csv_sha256,
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
    vocabulary = load_pickle(encoder_folder / VOCABULARY_FILE)
    data = loaders(
        [documents[row] for row in order], targets[order], len(documents) - held_out, vocabulary, settings.batch_size
    )

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
    stage.finish(documents=len(documents), **calibration)


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
