"""Losses and metrics for soft targets.

A target is a probability distribution over the labels: a plain label (one-hot), a smoothed label, or a teacher's
prediction.
"""

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
    """Return one-hot targets of labels, (n, C), float32; the columns have the order of `order`."""
    ids = {label: index for index, label in enumerate(order)}
    return np.eye(len(order), dtype=np.float32)[[ids[label] for label in labels]]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean over B of the cross-entropy between target distributions (B, C) and logits (B, C)."""
    return F.cross_entropy(logits.float(), targets.as_subclass(torch.Tensor))


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute how often the most probable label of logits (B, C) is that of the targets (B, C)."""
    return (logits.argmax(1) == targets.argmax(1)).float().mean()


def macro_f1(logits: Tensor, targets: Tensor) -> float:
    """Compute the unweighted mean over the labels of F1, of logits (B, C) against the most probable targets (B, C)."""
    return float(f1_score(targets.argmax(1).cpu(), logits.argmax(1).cpu(), average="macro", zero_division=0))


METRICS: list[Any] = [AccumMetric(accuracy, flatten=False), AccumMetric(macro_f1, flatten=False)]
"""fastai metrics of the stages that train a classifier."""
