"""Texts in batches, as their lengths make them cheap."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

MAX_BATCH_TEXTS = 32
"""More at a time are not faster on a processor."""

MAX_BATCH_TOKENS = 16_384
"""Padding included; bounds the memory of the LSTMs' outputs."""

STEP_COST = 4
"""What a step through a batch costs whatever is in it, as the weights are read anew each time: as much as so many
texts. Measured on the embedded model in int8; from 3 to 10 makes no difference."""

Ids = npt.NDArray[np.int64]


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Indexes of texts, shortest first, in the batches within the limits that cost least.

    A batch takes as many steps as its longest text has tokens, and a step costs `STEP_COST` and one for each text. Few
    large batches have few steps, many small ones have little padding.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, begins = [0], [0]  # of the texts before each place; where their last batch begins
    for end, index in enumerate(order, start=1):
        length = lengths[index]
        least, best = costs[end - 1] + length * (STEP_COST + 1), end - 1
        for texts in range(2, min(end, MAX_BATCH_TEXTS, MAX_BATCH_TOKENS // length) + 1):
            cost = costs[end - texts] + length * (STEP_COST + texts)
            if cost < least:
                least, best = cost, end - texts
        costs.append(least)
        begins.append(best)
    found = []
    end = len(order)
    while end:
        found.append(order[begins[end] : end])
        end = begins[end]
    return found[::-1]


def pad(ids: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Ids of B texts as one array (B, T), padded on the right, and their lengths (B,)."""
    lengths = [len(row) for row in ids]
    padded = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded, np.array(lengths)
