"""The teacher: a transformer whose predictions the AWD-LSTM is trained on (knowledge distillation).

It is fine-tuned, or frozen with logistic regression over its output.

Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015. A teacher is never exported and
never served.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.text.all import DataLoaders, Learner, SortedDL, params
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from training.data import labelled, labels_of, read_labelled_texts, sha256_of
from training.errors import TrainingError
from training.files import reading
from training.settings import FrozenTeacherSettings, TeacherSettings
from training.stages.language_model import callbacks
from training.stages.products import TEACHER_FILE
from training.stages.stage import Phase, Stage, load_tensors, save_tensors
from training.stages.targets import METRICS, soft_cross_entropy, to_targets
from training.stages.transformer import TransformerClassifier, load, weights_sha256

TRANSFORMER_FOLDER = "transformer"
"""Folder of the transformer's configuration and tokenizer, in the format of `transformers`."""

HELD_OUT = 2_000
"""Maximum number of texts that measure the general teacher."""

REGULARIZATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Values of scikit-learn's `C`, over standardized inputs, of which the validation split chooses one."""


def train_general_teacher(
    texts: Path, labels: list[str], settings: TeacherSettings, folder: Path, transformer: str
) -> None:
    """Fine-tune a transformer on labelled texts of another source.

    Args:
        texts: file with lines of `label<TAB>text`.
        labels: labels of the data; the file must have the same labels.
        settings: hyperparameters.
        folder: the stage's folder.
        transformer: see `training.stages.transformer.load`.

    Raises:
        TrainingError: the texts or the transformer cannot be read.
    """
    rows = read_labelled_texts(texts, labels).sample(frac=1, random_state=settings.seed)
    held_out = min(HELD_OUT, len(rows) // 10)
    stage = Stage(folder, settings, {texts.name: sha256_of(texts)} | transformer_input(transformer))
    _train(
        transformer, train=rows[held_out:], validation=rows[:held_out], labels=labels, settings=settings, stage=stage
    )


def train_teacher(
    tweets: pd.DataFrame, csv_sha256: str, settings: TeacherSettings, folder: Path, transformer: str
) -> None:
    """Fine-tune a transformer on the train split.

    Args:
        tweets: the labelled texts (`training.data`).
        csv_sha256: SHA-256 of their file.
        settings: hyperparameters.
        folder: the stage's folder.
        transformer: see `training.stages.transformer.load`.
    """
    labels = labels_of(tweets)
    train, validation = labelled(tweets, "train"), labelled(tweets, "validation")
    stage = Stage(folder, settings, {"data": csv_sha256} | transformer_input(transformer))
    _train(transformer, train=train, validation=validation, labels=labels, settings=settings, stage=stage)


def train_frozen_teacher(
    data: pd.DataFrame, csv_sha256: str, settings: FrozenTeacherSettings, folder: Path, transformer: str
) -> None:
    """Fit logistic regression on the pooled outputs of a transformer that is not fine-tuned.

    For a few hundred texts, which give too few steps to fine-tune a transformer.

    Args:
        data: the labelled texts (`training.data`).
        csv_sha256: SHA-256 of their file.
        settings: hyperparameters.
        folder: the stage's folder.
        transformer: see `training.stages.transformer.load`.
    """
    labels = labels_of(data)
    train, validation = labelled(data, "train"), labelled(data, "validation")
    stage = Stage(folder, settings, {"data": csv_sha256} | transformer_input(transformer))
    if stage.is_done():
        return
    tokenizer, network = _load(transformer, settings.max_pieces)
    stage.begin()
    teacher = TransformerClassifier(len(labels), tokenizer, network)
    if torch.cuda.is_available():
        teacher.cuda()
    features = stage.compute([*train["text"], *validation["text"]], lambda texts: teacher.predict(texts)[1]).numpy()
    inputs, held_out = features[: len(train)], features[len(train) :]
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    ids = [labels.index(label) for label in train["label"]]
    true = [labels.index(label) for label in validation["label"]]
    losses, models = [], []
    for c in REGULARIZATIONS:
        model = LogisticRegression(C=c, max_iter=1_000).fit((inputs - mean) / deviation, ids)
        probabilities = model.predict_proba((held_out - mean) / deviation)
        losses.append(float(log_loss(true, probabilities, labels=range(len(labels)))))
        models.append(model)
    best = models[int(np.argmin(losses))]
    weight, bias = best.coef_ / deviation, best.intercept_ - best.coef_ @ (mean / deviation)
    if len(labels) == 2:  # scikit-learn has one row: the log-odds of the second label
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        teacher.head.weight.copy_(torch.from_numpy(weight))
        teacher.head.bias.copy_(torch.from_numpy(bias))
    _save(teacher, labels, folder)
    stage.finish(
        regularization=REGULARIZATIONS[int(np.argmin(losses))],
        validation={"cross_entropy": min(losses), "accuracy": float(best.score((held_out - mean) / deviation, true))},
    )


def load_teacher(folder: Path, labels: Sequence[str]) -> TransformerClassifier:
    """Load a trained teacher.

    Raises:
        TrainingError: the teacher has other labels, a file is damaged, or an earlier version, which did not store the
            configuration, trained it.
    """
    transformer = folder / TRANSFORMER_FOLDER
    if not transformer.is_dir():
        raise TrainingError(
            f"No {transformer}: an earlier version trained this teacher. Remove {folder} and train it again."
        )
    with reading(transformer):
        config = AutoConfig.from_pretrained(transformer)
        tokenizer = AutoTokenizer.from_pretrained(transformer)
    teacher_labels = [config.id2label[index] for index in sorted(config.id2label)]
    if teacher_labels != list(labels):
        raise TrainingError(
            f"The teacher in {folder} has the labels {', '.join(teacher_labels)}; the data has {', '.join(labels)}. "
            f"Remove {folder} and train it again, or choose another folder with --run."
        )
    network = AutoModel.from_config(config)
    teacher = TransformerClassifier(len(labels), tokenizer, network)
    with reading(folder / TEACHER_FILE):
        teacher.load_state_dict(load_tensors(folder / TEACHER_FILE))
    if torch.cuda.is_available():
        teacher.cuda()
    return teacher


def _train(
    transformer: str,
    *,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    labels: list[str],
    settings: TeacherSettings,
    stage: Stage,
) -> None:
    if stage.is_done():
        return
    # First: if it fails, no record of an unfinished stage is left.
    tokenizer, network = _load(transformer, settings.max_pieces)
    stage.begin()
    teacher = TransformerClassifier(len(labels), tokenizer, network)
    loaders = [
        _loader(teacher, rows, labels, settings.batch_size, shuffle=rows is train) for rows in (train, validation)
    ]
    learner = Learner(
        DataLoaders(*loaders, device=torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        teacher,
        loss_func=soft_cross_entropy,
        splitter=_groups,
        metrics=METRICS,
        cbs=callbacks(),
    )
    stage.fit(learner, [Phase("all but embeddings", settings.epochs, settings.learning_rate, 1)])
    _save(teacher, labels, stage.folder)
    stage.finish()


def _load(transformer: str, max_pieces: int) -> tuple[Any, Any]:
    """Load a transformer's tokenizer and network; the tokenizer truncates a text to `max_pieces` word pieces."""
    tokenizer, network = load(transformer)
    tokenizer.model_max_length = min(max_pieces, tokenizer.model_max_length)
    return tokenizer, network


def _save(teacher: TransformerClassifier, labels: list[str], folder: Path) -> None:
    teacher.network.config.id2label = dict(enumerate(labels))
    for part in (teacher.tokenizer, teacher.network.config):
        part.save_pretrained(folder / TRANSFORMER_FOLDER)
    save_tensors(teacher.state_dict(), folder / TEACHER_FILE)


def _groups(teacher: TransformerClassifier) -> list[list[nn.Parameter]]:
    """Split the parameters into the embeddings, half of all weights, which do not train, and the others."""
    embeddings = params(teacher.network.embeddings)
    return [embeddings, [*params(teacher.network.encoder), *params(teacher.head)]]


def _loader(teacher: TransformerClassifier, rows: pd.DataFrame, labels: list[str], size: int, shuffle: bool) -> Any:
    pieces = teacher.word_pieces(list(rows["text"]))
    targets = to_targets(rows["label"], labels)
    items = list(zip(pieces, targets, strict=True))
    return SortedDL(
        items,
        sort_func=_length,
        res=[len(item) for item in pieces],
        bs=size,
        shuffle=shuffle,
        drop_last=False,
        create_batch=partial(_batch, teacher),
        num_workers=0,
    )


def _length(item: tuple[list[int], "np.ndarray[Any, Any]"]) -> int:
    return len(item[0])


def _batch(
    teacher: TransformerClassifier, items: Sequence[tuple[list[int], "np.ndarray[Any, Any]"]]
) -> tuple[Tensor, Tensor]:
    return teacher.pad([pieces for pieces, _ in items]), torch.from_numpy(np.stack([target for _, target in items]))


def transformer_input(transformer: str) -> dict[str, str]:
    """Return the transformer's entry among the inputs of a teacher's record; see `weights_sha256`."""
    return {"transformer": weights_sha256(transformer)}
