"""Several learners to one exported model, which answers with the mean of their outputs: a forward and a backward
learner, as in ULMFiT.

The learners' vocabularies may differ, as those of other splits or other runs do. The model has all their tokens, and
a learner's embedding of a token that it does not know is that of `xxunk`, so that each network answers as its learner.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from handler.exported import ExportedModel, Member, check, prefix_of
from handler.tokens import UNKNOWN
from training.errors import TrainingError

EMBEDDING = "embedding.weight"


def joined(models: Sequence[ExportedModel], names: Sequence[str]) -> ExportedModel:
    """One model of several; the model itself, if it is one.

    Args:
        models: exported learners, the first of which gives the card.
        names: of the learners, for errors.

    Raises:
        TrainingError: the models differ in their labels, their task or their tokenizer.
    """
    first, *others = models
    if not others:
        return first
    for model, name in zip(others, names[1:], strict=True):
        _check_alike(first, model, names[0], name)
    vocabulary = list(first.vocabulary)
    for model in others:
        known = set(vocabulary)
        vocabulary += [token for token in model.vocabulary if token is not None and token not in known]
    widened = [_widened(model, vocabulary) for model in models]
    weights = {
        prefix_of(index) + name: value for index, model in enumerate(widened) for name, value in model.weights.items()
    }
    ensemble = tuple(Member(model.config.backwards, model.config.network) for model in widened[1:])
    config = replace(widened[0].config, ensemble=ensemble)
    model = replace(first, config=config, vocabulary=tuple(vocabulary), weights=weights)
    check(model)
    return model


def _check_alike(first: ExportedModel, other: ExportedModel, first_name: str, name: str) -> None:
    parts: dict[str, tuple[Any, Any]] = {
        "task": (first.config.task, other.config.task),
        "labels": (first.config.labels, other.config.labels),
        "thresholds": (first.config.thresholds, other.config.thresholds),
        "range of values": (first.config.value_range, other.config.value_range),
        "tokenizer": (first.config.tokenizer, other.config.tokenizer),
        "SentencePiece model": (first.pieces, other.pieces),
    }
    for part, (expected, found) in parts.items():
        if found != expected:
            shown = "" if part in ("tokenizer", "SentencePiece model") else f" ({expected!s:.200} and {found!s:.200})"
            raise TrainingError(
                f"{first_name} and {name} differ in their {part}{shown}, so that their predictions cannot be averaged. "
                f"Train both on the same data and labels, with the same tokenizer; only `backwards` may differ."
            )


def _widened(model: ExportedModel, vocabulary: Sequence[str | None]) -> ExportedModel:
    """The model with another vocabulary, which has all of its tokens."""
    ids = {token: index for index, token in enumerate(model.vocabulary) if token is not None}
    rows = [ids.get(token, ids[UNKNOWN]) if token is not None else ids[UNKNOWN] for token in vocabulary]
    embedding: npt.NDArray[Any] = np.ascontiguousarray(model.weights[EMBEDDING][rows])
    network = replace(model.config.network, vocabulary_size=len(vocabulary))
    return replace(model, config=replace(model.config, network=network), weights=model.weights | {EMBEDDING: embedding})
