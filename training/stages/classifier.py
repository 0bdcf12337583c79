"""ULMFiT's third stage: the classifier on top of a language model's encoder, and the step before it, distillation."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
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
    load_pickle,
    text_classifier_learner,
)
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data import existing, labelled, labels_of, sha256_of
from training.errors import TrainingError
from training.measure.behaviour import LABELS
from training.settings import ClassifierSettings
from training.stages import tfidf
from training.stages.augmentation import OPINIONS, WORDS, made_up, pieces
from training.stages.calibration import calibrate_and_round
from training.stages.language_model import ENCODER_FILE, VOCABULARY_FILE, callbacks, sizes_of
from training.stages.stage import Phase, Stage
from training.stages.targets import METRICS, soft_cross_entropy, to_targets
from training.stages.teacher import WEIGHTS_FILE as TEACHER_FILE
from training.stages.teacher import check_teachers_tweets, load_teacher

LEARNER_FILE = "learner.pkl"
MADE_UP_LABEL_SMOOTHING = 0.05
EXAMPLES = 100
WIDENED_FILE = "widened.pth"
"""Of the stage's folder, until fastai has loaded it."""


def train_classifier(
    tweets: pd.DataFrame,
    csv_sha256: str,
    *,
    encoder_folder: Path,
    teacher_folder: Path | None,
    settings: ClassifierSettings,
    folder: Path,
    class_weights: Mapping[str, float] | None = None,
) -> None:
    """Stage 3: train on the train split's labels and the teacher's answers, measuring on the validation split.

    Writes the learner as fastai's own `export` does, for `training.export.learner` and for the user's own use.

    Args:
        encoder_folder: of the language model on tweets, or of the distillation.
        teacher_folder: of a teacher that has seen no label outside the train split; None: labels alone.
        class_weights: of each label in the loss, and in the likelihood that calibration makes largest; None: all 1.

    Raises:
        TrainingError: blank labels, or no encoder.
    """
    inputs = inputs_of(csv_sha256, encoder_folder, teacher_folder, settings)
    if teacher_folder:
        check_teachers_tweets(teacher_folder, csv_sha256)
    labels = labels_of(tweets)
    check_made_up_texts(settings, labels)
    train, validation = labelled(tweets, "train"), labelled(tweets, "validation")
    stage = Stage(folder, settings, inputs)
    if not stage.begin():
        return
    if teacher_folder is None:
        print(f"{folder}: the run has no teacher, so it learns from the labels alone")
    texts, targets = train_targets(train, labels, teacher_folder, settings, stage.keep)
    encoder, vocabulary = encoder_folder / ENCODER_FILE, load_pickle(encoder_folder / VOCABULARY_FILE)
    if settings.made_up_texts:
        encoder, vocabulary = _widened(encoder, vocabulary, folder / WIDENED_FILE)
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
    (folder / WIDENED_FILE).unlink(missing_ok=True)
    stage.fit(learner, phases(settings))
    calibration = calibrate_and_round(learner, len(labels))
    export(learner.model, train, labels, vocabulary, folder)
    stage.finish(**calibration)


def inputs_of(
    csv_sha256: str, encoder_folder: Path, teacher_folder: Path | None, settings: ClassifierSettings
) -> dict[str, str]:
    """What decides a classifier beside its settings, by hashes; see `train_classifier`.

    Raises:
        TrainingError: no encoder.
    """
    encoder = existing(
        encoder_folder / ENCODER_FILE,
        ": begin with --start model_store/general, or run `python -m training language-model` first.",
    )
    vocabulary = sha256_of(encoder_folder / VOCABULARY_FILE)
    inputs = {"data": csv_sha256, "encoder": sha256_of(encoder), "vocabulary": vocabulary}
    if teacher_folder:
        inputs["teacher"] = sha256_of(teacher_folder / TEACHER_FILE)
    if settings.made_up_texts:
        texts, _ = made_up(settings.made_up_texts, settings.seed)
        inputs["made_up_texts"] = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    return inputs


def train_targets(
    train: pd.DataFrame,
    labels: list[str],
    teacher_folder: Path | None,
    settings: ClassifierSettings,
    keep: Callable[[Sequence[str], Callable[[Sequence[str]], Tensor]], Tensor] = lambda texts, compute: compute(texts),
) -> tuple[list[str], NDArray[np.float32]]:
    """The texts to train on, and for each a probability of every label.

    A tweet's target is its label, as far as `label_weight` and its annotators' agreement go, and the teacher's answer
    for the rest; without a teacher, the rest is `label_smoothing`. A piece of a tweet has the teacher's answer alone.

    Args:
        keep: `Stage.keep`, for the transformer's answers, which take minutes.
    """
    texts = list(train["text"])
    share, rest = 1 - settings.label_smoothing, np.full((1, len(labels)), 1 / len(labels), dtype=np.float32)
    more_texts: list[str] = []
    if teacher_folder:
        versions = [texts, *(pieces(texts, settings.seed + copy) for copy in range(settings.pieces))]
        teacher = cache(lambda: load_teacher(teacher_folder, labels))
        found = keep([text for version in versions for text in version], lambda texts: teacher().predict(texts)[0])
        if settings.tfidf_weight:
            words = torch.from_numpy(tfidf.answers(train, versions, labels)).reshape(found.shape)
            found = (1 - settings.tfidf_weight) * found + settings.tfidf_weight * words
        answers = found.numpy()
        more_texts = [text for version in versions[1:] for text in version]
        share, rest = settings.label_weight, answers[: len(texts)]
    weight = np.full((len(texts), 1), share, dtype=np.float32)
    if settings.use_confidence:
        weight *= train["confidence"].to_numpy(dtype=np.float32)[:, None]
    targets = weight * to_targets(train["label"], labels) + (1 - weight) * rest
    if more_texts:
        targets = np.concatenate([targets, answers[len(texts) :]])
        texts += more_texts
    if settings.made_up_texts:
        more, their_labels = made_up(settings.made_up_texts, settings.seed)
        texts += more
        smoothing = MADE_UP_LABEL_SMOOTHING
        smoothed = (1 - smoothing) * to_targets(their_labels, labels) + smoothing / len(labels)
        targets = np.concatenate([targets, smoothed.astype(np.float32)])
    return texts, targets


def with_opinions(embeddings: Tensor, vocabulary: list[str]) -> tuple[Tensor, list[str]]:
    """Embeddings (V, D) and vocabulary, with a row for each of the made-up texts' words for opinions.

    Without them those texts would teach that an unknown word says what "detested" says. A new word begins at the mean
    of the known words that can stand in its place.
    """
    rows = {token: row for row, token in enumerate(vocabulary)}
    new: dict[str, Tensor] = {}
    for place in OPINIONS:
        words = [word for word in WORDS[place] if word.isalpha()]
        known = [rows[word] for word in words if word in rows] or list(rows.values())
        new |= {word: embeddings[known].mean(0) for word in words if word not in rows | new}
    return torch.stack([*embeddings, *new.values()]), [*vocabulary, *new]


def _widened(encoder: Path, vocabulary: list[str], to: Path) -> tuple[Path, list[str]]:
    state = torch.load(encoder, map_location="cpu", weights_only=True)
    wider, vocabulary = with_opinions(state["encoder.weight"], vocabulary)
    # fastai keeps the embedding under two names.
    state["encoder.weight"] = state["encoder_dp.emb.weight"] = wider
    torch.save(state, to)
    return to, vocabulary


def check_made_up_texts(settings: ClassifierSettings, labels: list[str]) -> None:
    """
    Raises:
        TrainingError: made-up texts are wanted, and their labels are not among the tweets'.
    """
    if settings.made_up_texts and not set(LABELS) <= set(labels):
        raise TrainingError(
            f"The made-up texts have the labels {', '.join(LABELS)}, the data has {', '.join(labels)}: "
            f"leave them out with --set classifier.made_up_texts=0."
        )


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


def loaders(
    texts: Sequence[str], targets: NDArray[np.float32], train: int, vocabulary: list[str], batch_size: int
) -> Any:
    """fastai's data loaders of texts and a row of targets for each; the first `train` of them are trained on."""
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
    """fastai's text classifier over soft targets, its encoder loaded."""
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
    learner.load_encoder(encoder.stem)
    return learner


def export(model: nn.Module, rows: pd.DataFrame, labels: list[str], vocabulary: list[str], folder: Path) -> None:
    """The model as a learner over plain labels, as fastai exports one.

    Args:
        rows: texts with their labels. What is exported has none of them; fastai wants some to begin with.
    """
    data = DataBlock(
        blocks=(TextBlock.from_df("text", vocab=vocabulary), CategoryBlock(vocab=labels)),
        get_x=ColReader("text"),
        get_y=ColReader("label"),
    ).dataloaders(rows[:EXAMPLES], bs=8, num_workers=0)
    # A TextLearner has the callbacks without which fastai cannot predict with this model.
    TextLearner(data, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=folder).export(LEARNER_FILE)
