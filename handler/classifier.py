"""The steps between a request's texts and its reply, without a server: what the tests and evaluation drive.

One text, one answer: a text's probabilities depend neither on its neighbours nor on what came before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from handler import exported
from handler.exported import ExportedModel
from handler.network import pad

Probabilities = npt.NDArray[np.float32]

MAX_BATCH_TEXTS = 32
"""More texts at a time are not faster on a CPU."""

MAX_BATCH_TOKENS = 16_384
"""Padding included; bounds the memory of the LSTMs' outputs."""


@dataclass(frozen=True)
class Explanation:
    """How much each token of a text speaks for a label."""

    label: int
    tokens: tuple[str, ...]
    weights: tuple[float, ...]
    """By how much the label's probability falls when the token is replaced by `xxunk`."""


class TextClassifier:
    """Texts to probabilities, with an exported model."""

    def __init__(self, model: ExportedModel) -> None:
        self.labels = model.config.labels
        self.card = model.card
        self._backwards = model.config.backwards
        self._tokenizer = model.tokenizer()
        self._network = model.network()

    @classmethod
    def load(cls, folder: Path) -> "TextClassifier":
        """Read an exported model's folder.

        Raises:
            ExportedModelError: see `exported.read`.
        """
        return cls(exported.read(folder))

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, in its own order."""
        return self._tokenizer.tokens(text)

    def ids(self, text: str) -> list[int]:
        """The ids of a text's tokens, in the order in which the network reads them; at least one."""
        return self._ordered(self._tokenizer.ids(self.tokens(text)))

    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts given as ids."""
        results = np.empty((len(ids), len(self.labels)), dtype=np.float32)
        with torch.inference_mode():
            for rows in _batches([len(row) for row in ids]):
                results[rows] = self._network(*pad([ids[row] for row in rows])).numpy()
        return results

    def predict(self, texts: Sequence[str]) -> Probabilities:
        """The labels' probabilities, (N, C), of N texts."""
        return self.probabilities([self.ids(text) for text in texts])

    def explain(self, text: str) -> Explanation:
        """The most probable label's probability with and without each token (occlusion; Zeiler and Fergus,
        "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2)."""
        tokens = self.tokens(text)
        ids = self._tokenizer.ids(tokens)
        occluded = [[*ids[:i], self._tokenizer.unknown_id, *ids[i + 1 :]] for i in range(len(ids))]
        probabilities = self.probabilities([self._ordered(row) for row in (ids, *occluded)])
        label = int(probabilities[0].argmax())
        weights = probabilities[0, label] - probabilities[1:, label]
        return Explanation(label, tuple(tokens), tuple(map(float, weights)))

    def _ordered(self, ids: list[int]) -> list[int]:
        # A rule set without `lowercase` adds no beginning, and may leave a text with no token at all.
        return (ids[::-1] if self._backwards else ids) or [self._tokenizer.unknown_id]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indexes of texts, shortest first, in batches within the limits: alike in length, so little is padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == MAX_BATCH_TEXTS or lengths[index] * (len(batch) + 1) > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
