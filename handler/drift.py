"""How far what is asked is from what was trained on: the population stability index of the last texts.

A model's card holds the training data's distributions (`reference`, see `docs/reference/model-format.md`); a worker
holds those of its last texts. Labels are the texts' own in the former, the predicted ones in the latter.
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
"""The least share of a bucket, half a text of a window's: an empty bucket's logarithm would be infinite."""


def stability_index(expected: Sequence[int], actual: Sequence[int]) -> float:
    """The population stability index of two distributions, given as counts in the same buckets.

    The sum over the buckets of (a - e) ln(a / e), where e and a are the expected and the actual share, each at least
    `FLOOR`; 0 where they are the same, never negative. It is the symmetrical divergence of Kullback and Leibler ("On
    Information and Sufficiency", 1951, section 2). The usual reading (Siddiqi, "Credit Risk Scorecards", 2006): under
    0.1 no change to speak of, to 0.25 some, over it a large one. Chance alone makes about (buckets - 1) (1 / n + 1 / m)
    of n and m texts.
    """
    shares = [[max(count / sum(counts), FLOOR) for count in counts] for counts in (expected, actual)]
    return math.fsum((a - e) * math.log(a / e) for e, a in zip(*shares, strict=True))


@dataclass(frozen=True)
class Distribution:
    """Numbers counted in buckets."""

    bounds: tuple[float, ...]
    """The most that each bucket but the last takes, ascending; the last takes what is above."""

    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float], bounds: Sequence[float]) -> "Distribution":
        counts = [0] * (len(bounds) + 1)
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        return cls(tuple(bounds), tuple(counts))


@dataclass(frozen=True)
class Reference:
    """The training data's distributions."""

    data_sha256: str
    """Of the file that the texts come from."""

    labels: Mapping[str, int]
    """Texts by label."""

    tokens: Distribution
    """A text's tokens."""

    unknown_tokens: Distribution
    """The share of a text's tokens that are not in the vocabulary, 0 to 1."""

    @classmethod
    def from_json(cls, value: object, labels: Sequence[str]) -> "Reference":
        """A card's `reference`.

        Args:
            labels: the model's.

        Raises:
            ValueError: not in the form that `docs/reference/model-format.md` states.
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
            raise ValueError("expected the same texts, one or more, in each of the distributions")
        return cls(value["data_sha256"], dict(zip(labels, counts, strict=True)), tokens, unknown_tokens)


def _distribution(value: object, name: str) -> Distribution:
    match value:
        case {"bounds": list() as bounds, "counts": list() as counts, **others} if not others:
            numbers = all(isinstance(bound, (int, float)) and not isinstance(bound, bool) for bound in bounds)
            if numbers and all(one < other for one, other in pairwise(bounds)):
                if len(counts) != len(bounds) + 1 or not _are_counts(counts):
                    raise ValueError(f"`{name}`: expected {len(bounds) + 1} counts, one more than bounds")
                return Distribution(tuple(bounds), tuple(counts))
    raise ValueError(f"`{name}`: expected an object with `bounds`, ascending numbers, and `counts`")


def _are_counts(values: Sequence[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


class Drift:
    """The last texts beside a reference. A text costs the same however many they are."""

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

    def add(self, label: str, tokens: int, unknown_tokens: int) -> None:
        """A text: its predicted label, and how many tokens it has, one or more, and how many that are not known."""
        labels, lengths, shares = self._counts
        if len(self._window) == self._window.maxlen:
            one, other, third = self._window[0]
            labels[one] -= 1
            lengths[other] -= 1
            shares[third] -= 1
        one = self._labels[label]
        other = bisect_left(self._token_bounds, tokens)
        third = bisect_left(self._unknown_bounds, unknown_tokens / tokens)
        labels[one] += 1
        lengths[other] += 1
        shares[third] += 1
        self._window.append((one, other, third))

    def indexes(self) -> dict[str, float]:
        """The population stability index of each feature; none before the window is full."""
        if len(self._window) < (self._window.maxlen or 0):
            return {}
        return {
            feature: stability_index(expected, counts)
            for (feature, expected), counts in zip(self._expected.items(), self._counts, strict=True)
        }
