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
