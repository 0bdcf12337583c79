"""Drift: the population stability index between the training data and the texts of the last requests.

A model's card has the distributions of the training data (`reference`, see `docs/reference/model-format.md`). A worker
keeps the distributions of its last texts. The training data's distribution has the true labels, the worker's has the
predicted labels.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

WINDOW_TEXTS: Final = 1_000

FLOOR: Final = 0.0005
"""Minimum share of a bucket: half a text of the window. The logarithm for an empty bucket would be infinite."""


def stability_index(expected: Sequence[int], actual: Sequence[int]) -> float:
    """Return the population stability index of two distributions over the same buckets.

    The index is the sum of (a - e) ln(a / e) over the buckets, where e is the expected and a the actual share of a
    bucket, each at least `FLOOR`. It is 0 for equal distributions, and never negative. It is the symmetric divergence
    of Kullback and Leibler ("On Information and Sufficiency", 1951, section 2).

    Usual interpretation (Siddiqi, "Credit Risk Scorecards", 2006): below 0.1 there is no significant change, from 0.1
    to 0.25 a moderate change, above 0.25 a large change. Two samples of n and m texts from the same distribution have
    an index of about (buckets - 1) (1 / n + 1 / m).

    Args:
        expected: number of texts in each bucket of the reference.
        actual: number of texts in each bucket of the window.
    """
    shares = [[max(count / sum(counts), FLOOR) for count in counts] for counts in (expected, actual)]
    return math.fsum((a - e) * math.log(a / e) for e, a in zip(*shares, strict=True))


@dataclass(frozen=True)
class Distribution:
    """A histogram of numbers."""

    bounds: tuple[float, ...]
    """Inclusive upper bounds of all buckets except the last, in ascending order. The last bucket has no bound."""

    counts: tuple[int, ...]
    """Number of values in each bucket."""

    @classmethod
    def of(cls, values: Sequence[float], bounds: Sequence[float]) -> "Distribution":
        """Count values in buckets with these upper bounds."""
        counts = [0] * (len(bounds) + 1)
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        return cls(tuple(bounds), tuple(counts))


@dataclass(frozen=True)
class Reference:
    """The training data's distributions."""

    data_sha256: str
    """SHA-256 of the training data's file."""

    labels: Mapping[str, int]
    """Number of texts for each label."""

    tokens: Distribution
    """Distribution of the number of tokens of a text."""

    unknown_tokens: Distribution
    """Distribution of the share of a text's tokens outside the vocabulary, from 0 to 1."""

    @classmethod
    def from_json(cls, value: object, labels: Sequence[str]) -> "Reference":
        """Read the entry `reference` of a model's card.

        Args:
            value: the entry.
            labels: the model's labels.

        Raises:
            ValueError: the entry does not have the form that `docs/reference/model-format.md` defines.
        """
        keys = {"data_sha256", "labels", "tokens", "unknown_tokens"}
        if not isinstance(value, dict) or value.keys() != keys:
            raise ValueError(f"expected an object with the keys {', '.join(sorted(keys))}")
        if not isinstance(value["data_sha256"], str):
            raise ValueError("`data_sha256` is not a string")
        if not isinstance(value["labels"], dict) or value["labels"].keys() != set(labels):
            raise ValueError(f"`labels` are not the model's, {', '.join(labels)}")
        counts = [value["labels"][label] for label in labels]
        tokens, unknown_tokens = (_distribution(value[name], name) for name in ("tokens", "unknown_tokens"))
        if not _are_counts(counts) or not sum(counts) == sum(tokens.counts) == sum(unknown_tokens.counts) > 0:
            raise ValueError("expected the same number of texts, at least one, in each distribution")
        return cls(value["data_sha256"], dict(zip(labels, counts, strict=True)), tokens, unknown_tokens)


def _distribution(value: object, name: str) -> Distribution:
    match value:
        case {"bounds": list() as bounds, "counts": list() as counts, **others} if not others:
            numbers = all(isinstance(bound, (int, float)) and not isinstance(bound, bool) for bound in bounds)
            if numbers and all(lower < upper for lower, upper in pairwise(bounds)):
                if len(counts) != len(bounds) + 1 or not _are_counts(counts):
                    raise ValueError(f"`{name}`: expected {len(bounds) + 1} counts, one more than bounds")
                return Distribution(tuple(bounds), tuple(counts))
    raise ValueError(f"`{name}`: expected an object with `bounds`, ascending numbers, and `counts`")


def _are_counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class Drift:
    """Compares the last texts with a reference. Adding a text takes the same time for every size of the window.

    Args:
        reference: the training data's distributions.
        window_texts: number of texts to compare.
    """

    def __init__(self, reference: Reference, window_texts: int = WINDOW_TEXTS) -> None:
        self._expected = {
            "labels": tuple(reference.labels.values()),
            "tokens": reference.tokens.counts,
            "unknown_tokens": reference.unknown_tokens.counts,
        }
        self._labels = {label: index for index, label in enumerate(reference.labels)}
        self._token_bounds = reference.tokens.bounds
        self._unknown_bounds = reference.unknown_tokens.bounds
        self._counts = [[0] * len(counts) for counts in self._expected.values()]
        self._window: deque[tuple[int, int, int]] = deque(maxlen=window_texts)
        """The bucket of each feature, for each of the last texts."""

    def add(self, label: str, tokens: int, unknown_tokens: int) -> None:
        """Add a text to the window.

        Args:
            label: the predicted label.
            tokens: number of tokens, at least one.
            unknown_tokens: number of tokens outside the vocabulary.
        """
        labels, lengths, shares = self._counts
        if len(self._window) == self._window.maxlen:
            label_bucket, length_bucket, share_bucket = self._window[0]
            labels[label_bucket] -= 1
            lengths[length_bucket] -= 1
            shares[share_bucket] -= 1
        label_bucket = self._labels[label]
        length_bucket = bisect_left(self._token_bounds, tokens)
        share_bucket = bisect_left(self._unknown_bounds, unknown_tokens / tokens)
        labels[label_bucket] += 1
        lengths[length_bucket] += 1
        shares[share_bucket] += 1
        self._window.append((label_bucket, length_bucket, share_bucket))

    def indexes(self) -> dict[str, float]:
        """Return the population stability index of each feature, or an empty dictionary until the window is full."""
        if len(self._window) < (self._window.maxlen or 0):
            return {}
        return {
            feature: stability_index(expected, counts)
            for (feature, expected), counts in zip(self._expected.items(), self._counts, strict=True)
        }
