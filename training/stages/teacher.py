"""The teacher: a transformer, fine-tuned, whose answers the AWD-LSTM learns from (Hinton, Vinyals and Dean,
"Distilling the Knowledge in a Neural Network", 2015). It is never exported and never served."""

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
from training.settings import FrozenTeacherSettings, TeacherSettings
from training.stages.language_model import callbacks
from training.stages.stage import Phase, Stage, record_of
from training.stages.targets import METRICS, soft_cross_entropy, to_targets
from training.stages.transformer import TransformerClassifier, load, weights_sha256

WEIGHTS_FILE = "teacher.pth"
TRANSFORMER_FOLDER = "transformer"
"""Its build and its tokenizer, as `transformers` writes them."""

HELD_OUT = 2_000
REGULARIZATIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""scikit-learn's `C`, over standardized inputs. The validation split chooses one."""


def train_general_teacher(
    texts: Path, labels: list[str], settings: TeacherSettings, folder: Path, transformer: str
) -> None:
    """Fine-tune a transformer on labelled texts from elsewhere.

    Args:
        texts: a line a text, `label<TAB>text`.
        labels: those of the tweets; the file must have the same.
        transformer: see `training.stages.transformer.load`.

    Raises:
        TrainingError: the texts or the transformer are not what they should be.
    """
    rows = read_labelled_texts(texts, labels).sample(frac=1, random_state=settings.seed)
    held_out = min(HELD_OUT, len(rows) // 10)
    stage = Stage(folder, settings, {texts.name: sha256_of(texts)} | beginning_of(transformer))
    _train(
        transformer, train=rows[held_out:], validation=rows[:held_out], labels=labels, settings=settings, stage=stage
    )


def train_teacher(
    tweets: pd.DataFrame, csv_sha256: str, settings: TeacherSettings, folder: Path, transformer: str
) -> None:
    """Fine-tune a transformer on the train split.

    Args:
        transformer: see `training.stages.transformer.load`.
    """
    labels = labels_of(tweets)
    train, validation = labelled(tweets, "train"), labelled(tweets, "validation")
    stage = Stage(folder, settings, {"data": csv_sha256} | beginning_of(transformer))
    _train(transformer, train=train, validation=validation, labels=labels, settings=settings, stage=stage)


def train_frozen_teacher(
    data: pd.DataFrame, csv_sha256: str, settings: FrozenTeacherSettings, folder: Path, transformer: str
) -> None:
    """Fit logistic regression on what the transformer, left as it is, makes of the train split's texts.

    For a few hundred texts: fine-tuning has too few steps with them.

    Args:
        transformer: see `training.stages.transformer.load`.
    """
    labels = labels_of(data)
    train, validation = labelled(data, "train"), labelled(data, "validation")
    stage = Stage(folder, settings, {"data": csv_sha256} | beginning_of(transformer))
    if stage.is_done():
        return
    tokenizer, network = load(transformer)
    tokenizer.model_max_length = min(settings.max_pieces, tokenizer.model_max_length)
    stage.begin()
    teacher = TransformerClassifier(len(labels), tokenizer, network)
    if torch.cuda.is_available():
        teacher.cuda()
    features = stage.keep([*train["text"], *validation["text"]], lambda texts: teacher.predict(texts)[1]).numpy()
    inputs, held_out = features[: len(train)], features[len(train) :]
    mean, deviation = inputs.mean(0), inputs.std(0) + 1e-6
    ids = [labels.index(label) for label in train["label"]]
    true = [labels.index(label) for label in validation["label"]]
    losses, models = [], []
    for c in REGULARIZATIONS:
        model = LogisticRegression(C=c, max_iter=1_000).fit((inputs - mean) / deviation, ids)
        found = model.predict_proba((held_out - mean) / deviation)
        losses.append(float(log_loss(true, found, labels=range(len(labels)))))
        models.append(model)
    best = models[int(np.argmin(losses))]
    weight, bias = best.coef_ / deviation, best.intercept_ - best.coef_ @ (mean / deviation)
    if len(labels) == 2:  # scikit-learn keeps one row, of the second label's odds
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
    """A trained teacher.

    Raises:
        TrainingError: it answers with other labels, or was trained before teachers kept what transformer they are.
    """
    of_it = folder / TRANSFORMER_FOLDER
    if not of_it.is_dir():
        raise TrainingError(f"No {of_it}: an earlier version trained this teacher. Remove {folder} and train it anew.")
    config = AutoConfig.from_pretrained(of_it)
    its_labels = [config.id2label[index] for index in sorted(config.id2label)]
    if its_labels != list(labels):
        raise TrainingError(
            f"The teacher in {folder} answers with the labels {', '.join(its_labels)}; the data has "
            f"{', '.join(labels)}. Remove {folder} and train it anew, or choose another folder with --run."
        )
    network = AutoModel.from_config(config)
    teacher = TransformerClassifier(len(labels), AutoTokenizer.from_pretrained(of_it), network)
    teacher.load_state_dict(torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True))
    if torch.cuda.is_available():
        teacher.cuda()
    return teacher


def check_teachers_tweets(folder: Path, csv_sha256: str) -> None:
    """
    Raises:
        TrainingError: the teacher was trained on other tweets, so it may know labels that these ones hold out.
    """
    if record_of(folder)["inputs"].get("data") != csv_sha256:
        raise TrainingError(
            f"The teacher in {folder} was trained on another CSV file: it may know labels that this one's splits hold "
            f"out. Remove {folder} and train it anew, or choose another folder with --run."
        )


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
    tokenizer, network = load(transformer)  # what is none leaves no record of a stage that was begun
    tokenizer.model_max_length = min(settings.max_pieces, tokenizer.model_max_length)
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


def _save(teacher: TransformerClassifier, labels: list[str], folder: Path) -> None:
    teacher.network.config.id2label = dict(enumerate(labels))
    for part in (teacher.tokenizer, teacher.network.config):
        part.save_pretrained(folder / TRANSFORMER_FOLDER)
    torch.save(teacher.state_dict(), folder / WEIGHTS_FILE)


def _groups(teacher: TransformerClassifier) -> list[list[nn.Parameter]]:
    """The embeddings, which hold half of all weights and do not train, and the rest."""
    embeddings = params(teacher.network.embeddings)
    return [embeddings, [*params(teacher.network.encoder), *params(teacher.head)]]


def _loader(teacher: TransformerClassifier, rows: pd.DataFrame, labels: list[str], size: int, shuffle: bool) -> Any:
    pieces = teacher.pieces(list(rows["text"]))
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


def beginning_of(transformer: str) -> dict[str, str]:
    """What tells a teacher's beginning from another's, for its record; see `weights_sha256`."""
    return {"transformer": weights_sha256(transformer)}
