"""Groups texts by length into the network's forward passes, and pads the texts of a pass."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_PASS_TEXTS = 32
"""Maximum number of texts in a forward pass. More texts in one pass are not faster on a CPU."""

MAX_PASS_TOKENS = 16_384
"""Maximum number of tokens in a forward pass, including padding. It bounds the memory for the LSTMs' outputs."""

STEP_COST = 0.8
"""Fixed cost of a time step, in tokens: the weights are read from memory again in each step.

Measured on the embedded model in int8: a step takes 39, 82, 134 and 732 µs for 1, 3, 6 and 32 texts.
"""

SMALL_PASS_TOKENS = 1_700
"""Maximum number of tokens in a small forward pass, including padding. For the tensors of a larger pass, the system
has to provide memory each time."""

LARGE_PASS_TOKEN_COST = 1.5
"""Cost of a token in a forward pass of more than `SMALL_PASS_TOKENS` tokens; in a small pass the cost is 1."""

REFERENCE_LSTM_WEIGHTS = 3_240_000
"""Number of LSTM weights of the embedded model, for which the costs above were measured."""

PRECISION_COST = {"int8": 1.0, "int8-fine": 2.2, "float32": 5.0}
"""Cost of a token by the precision of the weights, relative to int8.

CPU time of a token in microseconds, in a text of 4,500 tokens, and in texts of 150 tokens together (AVX-512 VNNI):

| network | int8 | int8-fine | float32 |
|---|---|---|---|
| 300/600/2 | 45, 23 | 105, 50 | 135, 65 |
| 400/600/3 | 80, 48 | | 277, 138 |
| 400/1152/3 | 259, 129 | 478, 302 | 1,441, 519 |
"""

LARGER_NETWORK_TIME = 2
"""A request to a larger network may take this multiple of the time of the largest request to the embedded model.

The limits would otherwise refuse long texts that a large network can still answer before the response timeout.
"""

Ids = npt.NDArray[np.int64]


def forward_passes(lengths: Sequence[int]) -> list[list[int]]:
    """Group texts into the forward passes with the lowest total cost, in ascending order of length.

    A pass takes as many time steps as its longest text has tokens. A few large passes need few steps; many small passes
    need little padding.

    Args:
        lengths: number of tokens of each text.

    Returns:
        the indexes of the texts in each pass.
    """
    return _cheapest(lengths)[1]


def cost(lengths: Sequence[int]) -> float:
    """Compute the lowest total cost of forward passes over texts of these lengths.

    The unit is a token of a short text in a large pass: a token costs 1.03 in a pass of 32 tweets, and 2.3 in a long
    text that has a pass of its own.
    """
    return _cheapest(lengths)[0]


def network_cost(lstm_weights: int, precision: str) -> float:
    """Compute the factor by which the limits count a token more than for the embedded model; at least 1.

    Args:
        lstm_weights: number of LSTM weights of the network, or of all networks of an ensemble.
        precision: a key of `PRECISION_COST`; an unknown precision counts as the slowest.
    """
    relative = lstm_weights / REFERENCE_LSTM_WEIGHTS * PRECISION_COST.get(precision, max(PRECISION_COST.values()))
    return max(1.0, relative / LARGER_NETWORK_TIME)


def _cheapest(lengths: Sequence[int]) -> tuple[float, list[list[int]]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, begins = [0.0], [0]  # for the first texts up to each end: lowest cost, and begin of the last pass
    for end, index in enumerate(order, start=1):
        length = lengths[index]
        least, best = costs[end - 1] + _pass_cost(length, 1), end - 1
        for texts in range(2, min(end, MAX_PASS_TEXTS, MAX_PASS_TOKENS // length) + 1):
            total = costs[end - texts] + _pass_cost(length, texts)
            if total < least:
                least, best = total, end - texts
        costs.append(least)
        begins.append(best)
    passes = []
    end = len(order)
    while end:
        passes.append(order[begins[end] : end])
        end = begins[end]
    return costs[-1], passes[::-1]


def _pass_cost(length: int, texts: int) -> float:
    token_cost = 1 if length * texts <= SMALL_PASS_TOKENS else LARGE_PASS_TOKEN_COST
    return length * (STEP_COST + texts * token_cost)


def pad(ids: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Pad the ids of B texts on the right to one array (B, T).

    Returns:
        the array, and the lengths of the texts, (B,).
    """
    lengths = [len(row) for row in ids]
    padded = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded, np.array(lengths)
