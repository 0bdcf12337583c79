"""Losses and metrics over distributions: a target is a probability for each label, of which a plain label is the
simplest kind, a smoothed one and a teacher's answer others."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.text.all import AccumMetric
from numpy.typing import NDArray
from sklearn.metrics import f1_score
from torch import Tensor


def to_targets(labels: Iterable[str], order: Sequence[str]) -> NDArray[np.float32]:
    """Labels as distributions, (n, C), float32."""
    ids = {label: index for index, label in enumerate(order)}
    return np.eye(len(order), dtype=np.float32)[[ids[label] for label in labels]]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over B of the cross-entropy of logits (B, C) under target distributions (B, C)."""
    return F.cross_entropy(logits.float(), targets.as_subclass(torch.Tensor))


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(1) == targets.argmax(1)).float().mean()


def macro_f1(logits: Tensor, targets: Tensor) -> float:
    return float(f1_score(targets.argmax(1).cpu(), logits.argmax(1).cpu(), average="macro", zero_division=0))


METRICS: list[Any] = [AccumMetric(accuracy, flatten=False), AccumMetric(macro_f1, flatten=False)]
