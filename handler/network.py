"""The third step: token ids to probabilities. The whole network is in this file.

An AWD-LSTM (Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018) under
the concat-pooling classifier of ULMFiT (Howard and Ruder, ACL 2018, section 3.3), as fastai builds it
(fastai.text.models.core: `SentenceEncoder`, `masked_concat_pool`, `PoolingLinearClassifier`), for inference:

- Dropout of every kind is gone, so the LSTMs are plain.
- Texts are padded on the right and their lengths are given. A left-to-right LSTM's outputs up to a text's
  length do not depend on what follows, and pooling looks at nothing else, so padding changes no answer.
- No state is kept between calls.

Shapes: B texts, T tokens (the longest text's), E embedding size, H hidden size, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes, under the names of `config.json`."""

    vocabulary_size: int
    embedding_size: int
    """E; the last LSTM's size too."""

    hidden_size: int
    """H, of every LSTM but the last."""

    layers: int
    head_sizes: tuple[int, ...]
    """Inputs of each block of the head, then its outputs: (3 E, ..., C)."""

    chunk_tokens: int = 72
    """fastai reads a text in chunks of this many tokens (`bptt`)."""

    pooled_tokens: int | None = 1440
    """fastai pools over the chunks that begin within this many tokens of the end (`max_len`); None: over all."""

    normalization_epsilon: float = 1e-5


class HeadBlock(nn.Module):
    """BatchNorm with fixed statistics and a linear layer without bias (fastai.layers, `LinBnDrop`)."""

    def __init__(self, inputs: int, outputs: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("variance", torch.ones(inputs))
        self.scale = nn.Parameter(torch.ones(inputs))
        self.shift = nn.Parameter(torch.zeros(inputs))
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        x = F.batch_norm(x, mean, variance, self.scale, self.shift, training=False, eps=self.epsilon)
        return F.linear(x, self.weight)


class TextNetwork(nn.Module):
    """Token ids to the probabilities of the labels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        sizes = [config.embedding_size, *[config.hidden_size] * (config.layers - 1), config.embedding_size]
        self.lstm = nn.ModuleList(nn.LSTM(inputs, outputs, batch_first=True) for inputs, outputs in pairwise(sizes))
        self.head = nn.ModuleList(
            HeadBlock(inputs, outputs, config.normalization_epsilon) for inputs, outputs in pairwise(config.head_sizes)
        )

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Probabilities, (B, C), of texts.

        Args:
            ids: token ids, (B, T); what stands after a text's length is any valid id.
            lengths: tokens of each text, (B,), from 1 to T.
        """
        x = self.embedding(ids)  # (B, T, E)
        for layer in self.lstm:
            x, _ = layer(x)  # (B, T, H); (B, T, E) after the last
        x = self._pool(x, lengths)  # (B, 3 E)
        for block in self.head[:-1]:
            x = F.relu(block(x))
        return torch.softmax(self.head[-1](x), dim=1)  # (B, C)

    def _pool(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Each text's last output, and the maximum and the mean of its pooled outputs: (B, T, E) to (B, 3 E)."""
        starts = self._pooling_starts(lengths)
        positions = torch.arange(x.shape[1], device=x.device)
        pooled = (positions >= starts[:, None]) & (positions < lengths[:, None])  # (B, T)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        maximum = x.masked_fill(~pooled[:, :, None], -torch.inf).amax(dim=1)
        mean = x.masked_fill(~pooled[:, :, None], 0).sum(dim=1) / (lengths - starts)[:, None]
        return torch.cat([last, maximum, mean], dim=1)

    def _pooling_starts(self, lengths: Tensor) -> Tensor:
        """The first pooled position of each text, which is always the beginning of a chunk."""
        if self.config.pooled_tokens is None:
            return torch.zeros_like(lengths)
        chunk = self.config.chunk_tokens
        before = (lengths - self.config.pooled_tokens).clamp(min=0)
        # Where `pooled_tokens` is under a chunk, fastai pools over a last chunk only if it is short enough; the
        # last chunk is taken here in any case, so that there is always something to pool.
        last_chunk = torch.div(lengths - 1, chunk, rounding_mode="floor") * chunk
        starts = torch.div(before + chunk - 1, chunk, rounding_mode="floor") * chunk
        return torch.minimum(starts, last_chunk)


def pad(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids of B texts as one tensor (B, T), padded on the right, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in ids])
    padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = torch.tensor(values)
    return padded, lengths
