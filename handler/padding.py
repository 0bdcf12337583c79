"""Texts in batches, padded as little as can be."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

MAX_BATCH_TOKENS = 16_384
"""Padding included; bounds the memory of the LSTMs' outputs."""

Ids = npt.NDArray[np.int64]


def batches(lengths: Sequence[int], max_texts: int) -> Iterator[list[int]]:
    """Indexes of texts, shortest first, in batches within the limits: alike in length, so little is padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == max_texts or lengths[index] * (len(batch) + 1) > MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def pad(ids: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
    """Ids of B texts as one array (B, T), padded on the right, and their lengths (B,)."""
    lengths = [len(row) for row in ids]
    padded = np.zeros((len(ids), max(lengths)), dtype=np.int64)
    for row, values in zip(padded, ids, strict=True):
        row[: len(values)] = values
    return padded, np.array(lengths)
