"""Texts in batches, as their lengths make them cheap."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_BATCH_TEXTS = 32
"""More at a time are not faster on a processor."""

MAX_BATCH_TOKENS = 16_384
"""Padding included; bounds the memory of the LSTMs' outputs."""

STEP_COST = 0.8
"""Cost of a step through a batch whatever is in it, in tokens, as the weights are read anew each time. Measured on the
embedded model in int8: a step takes 39, 82, 134 and 732 µs for 1, 3, 6 and 32 texts."""

SMALL_BATCH_TOKENS = 1_700
"""Padding included; the tensors of a larger batch take their memory from the system anew."""

LARGE_BATCH_TOKEN_COST = 1.5
"""Cost of a token in a batch of more tokens than `SMALL_BATCH_TOKENS`; in others it is 1."""

Ids = npt.NDArray[np.int64]


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indexes of texts, shortest first, in the batches within the limits that cost least.

    A batch takes as many steps as its longest text has tokens. Few large batches have few steps, many small ones have
    little padding.
    """
    return _cheapest(lengths)[1]


def cost(lengths: Sequence[int]) -> float:
    """Cost of the network's pass over texts of these lengths in the cheapest batches, in tokens of a large batch of
    short texts: 1.03 for a token in a batch of 32 tweets, 2.3 for one of a long text that is read alone."""
    return _cheapest(lengths)[0]


def _cheapest(lengths: Sequence[int]) -> tuple[float, list[list[int]]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, begins = [0.0], [0]  # of the texts before each place; where their last batch begins
    for end, index in enumerate(order, start=1):
        length = lengths[index]
        least, best = costs[end - 1] + _batch_cost(length, 1), end - 1
        for texts in range(2, min(end, MAX_BATCH_TEXTS, MAX_BATCH_TOKENS // length) + 1):
            total = costs[end - texts] + _batch_cost(length, texts)
            if total < least:
                least, best = total, end - texts
        costs.append(least)
        begins.append(best)
    found = []
    end = len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return costs[-1], found[::-1]


def _batch_cost(length: int, texts: int) -> float:
    token_cost = 1 if length * texts <= SMALL_BATCH_TOKENS else LARGE_BATCH_TOKEN_COST
    return length * (STEP_COST + texts * token_cost)


def pad(ids: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Ids of B texts as one array (B, T), padded on the right, and their lengths (B,)."""
    lengths = [len(row) for row in ids]
    padded = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded, np.array(lengths)
