"""The complete network in float32. Training and evaluation use it, and tests compare `handler.engine` with it.

The network is an AWD-LSTM (Merity, Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018)
with ULMFiT's concat-pooling classifier (Howard and Ruder, ACL 2018, section 3.3), as fastai builds it
(fastai.text.models.core: `SentenceEncoder`, `masked_concat_pool`, `PoolingLinearClassifier`). For inference, it
differs:

- It has no dropout, so the LSTMs are plain.
- Texts are padded on the right, and their lengths are an input. The outputs of a left-to-right LSTM up to a text's
  length do not depend on later positions, and pooling ignores later positions. Padding therefore changes no result.
- It keeps no state between calls.

Shapes: B texts, T tokens of the longest text, E embedding size, H hidden size, C labels.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from handler.exported import ExportedModel, NetworkConfig, Probabilities
from handler.padding import forward_passes, pad
from handler.task import Task


class HeadBlock(nn.Module):
    """Batch normalization with fixed statistics, and a linear layer without bias (fastai.layers, `LinBnDrop`)."""

    def __init__(self, inputs: int, outputs: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("variance", torch.ones(inputs))
        self.scale = nn.Parameter(torch.ones(inputs))
        self.shift = nn.Parameter(torch.zeros(inputs))
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block: (B, inputs) to (B, outputs)."""
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        x = F.batch_norm(x, mean, variance, self.scale, self.shift, training=False, eps=self.epsilon)
        return F.linear(x, self.weight)


class TextNetwork(nn.Module):
    """Computes the probabilities of the labels, or the value of a regression, from token ids."""

    def __init__(self, config: NetworkConfig, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_size)
        self.lstm = nn.ModuleList(nn.LSTM(inputs, outputs, batch_first=True) for inputs, outputs in config.lstm_sizes)
        self.head = nn.ModuleList(
            HeadBlock(inputs, outputs, config.normalization_epsilon) for inputs, outputs in pairwise(config.head_sizes)
        )

    @classmethod
    def of(cls, model: ExportedModel) -> "TextNetwork":
        """Build the network of an exported model for inference."""
        network = cls(model.config.network, model.config.predicts)
        # The conversion of weights in half precision to float32 is exact.
        network.load_state_dict({name: torch.tensor(value) for name, value in model.weights.items()})
        return network.eval()

    @torch.inference_mode()
    def probabilities(self, ids: Sequence[Sequence[int]]) -> Probabilities:
        """Compute the probabilities of the labels, (N, C), for the token ids of N texts."""
        results = np.empty((len(ids), self.config.head_sizes[-1]), dtype=np.float32)
        for indexes in forward_passes([len(row) for row in ids]):
            padded, lengths = pad([ids[index] for index in indexes])
            results[indexes] = self(torch.from_numpy(padded), torch.from_numpy(lengths)).numpy()
        return results

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Compute the probabilities of the labels, (B, C).

        Args:
            ids: token ids, (B, T); positions after a text's length may have any valid id.
            lengths: number of tokens of each text, (B,), from 1 to T.
        """
        x = self.embedding(ids)  # (B, T, E)
        for layer in self.lstm:
            x, _ = layer(x)  # (B, T, H); (B, T, E) after the last layer
        x = self._pool(x, lengths)  # (B, 3 E)
        for block in self.head[:-1]:
            x = F.relu(block(x))
        return self._activated(self.head[-1](x))  # (B, C)

    def _activated(self, x: Tensor) -> Tensor:
        """Apply the task's activation to the outputs of the last layer."""
        match self.task.name:
            case "single-label":
                return torch.softmax(x, dim=1)
            case "multi-label":
                return torch.sigmoid(x)
            case "regression" if self.task.value_range:
                low, high = self.task.value_range
                return torch.sigmoid(x) * (high - low) + low  # fastai.layers, `sigmoid_range`
            case "regression":
                return x

    def _pool(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Concatenate each text's last output, and maximum and mean of its pooled outputs: (B, T, E) to (B, 3 E)."""
        starts = torch.tensor([self.config.pooling_start(length) for length in lengths.tolist()], device=x.device)
        positions = torch.arange(x.shape[1], device=x.device)
        pooled = (positions >= starts[:, None]) & (positions < lengths[:, None])  # (B, T)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        maximum = x.masked_fill(~pooled[:, :, None], -torch.inf).amax(dim=1)
        mean = x.masked_fill(~pooled[:, :, None], 0).sum(dim=1) / (lengths - starts)[:, None]
        return torch.cat([last, maximum, mean], dim=1)
