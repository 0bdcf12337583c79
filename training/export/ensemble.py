"""Ensembles: several learners as one exported model, which predicts the mean of their outputs.

ULMFiT averages a forward and a backward classifier. The vocabularies of the learners may differ, as those of different
splits or runs do. The exported model has the tokens of all learners. For a token that a learner does not know, its
network has the embedding of `xxunk`, so that it predicts as the learner does.
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
    """Join models to an ensemble; a single model is returned as it is.

    Args:
        models: exported learners; the ensemble has the card of the first one.
        names: names of the learners for error messages.

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
        tokens = set(vocabulary)
        vocabulary += [token for token in model.vocabulary if token is not None and token not in tokens]
    members = [_with_vocabulary(model, vocabulary) for model in models]
    weights = {
        prefix_of(index) + name: value for index, model in enumerate(members) for name, value in model.weights.items()
    }
    ensemble = tuple(Member(model.config.backwards, model.config.network) for model in members[1:])
    config = replace(members[0].config, ensemble=ensemble)
    model = replace(first, config=config, vocabulary=tuple(vocabulary), weights=weights)
    check(model)
    return model


def _check_alike(first: ExportedModel, second: ExportedModel, first_name: str, name: str) -> None:
    """Check that two models can be averaged.

    Raises:
        TrainingError: the models differ in a part that must be equal.
    """
    parts: dict[str, tuple[Any, Any]] = {
        "task": (first.config.task, second.config.task),
        "labels": (first.config.labels, second.config.labels),
        "thresholds": (first.config.thresholds, second.config.thresholds),
        "range of values": (first.config.value_range, second.config.value_range),
        "tokenizer": (first.config.tokenizer, second.config.tokenizer),
        "SentencePiece model": (first.pieces, second.pieces),
    }
    for part, (expected, actual) in parts.items():
        if actual != expected:
            shown = "" if part in ("tokenizer", "SentencePiece model") else f" ({expected!s:.200} and {actual!s:.200})"
            raise TrainingError(
                f"{first_name} and {name} differ in their {part}{shown}, so their predictions cannot be averaged. "
                f"Train both on the same data and labels, with the same tokenizer; only `backwards` may differ."
            )


def _with_vocabulary(model: ExportedModel, vocabulary: Sequence[str | None]) -> ExportedModel:
    """Return the model with a larger vocabulary, which contains all tokens of the model."""
    ids = {token: index for index, token in enumerate(model.vocabulary) if token is not None}
    rows = [ids.get(token, ids[UNKNOWN]) if token is not None else ids[UNKNOWN] for token in vocabulary]
    embedding: npt.NDArray[Any] = np.ascontiguousarray(model.weights[EMBEDDING][rows])
    network = replace(model.config.network, vocabulary_size=len(vocabulary))
    return replace(model, config=replace(model.config, network=network), weights=model.weights | {EMBEDDING: embedding})
