"""Drift: the properties of the index, the window, and the index of texts like and unlike the training data."""

import math
import random
from itertools import accumulate

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from handler.drift import FLOOR, WINDOW_TEXTS, Distribution, Drift, Reference, stability_index

SOME, MUCH = 0.1, 0.25

COUNTS = st.lists(st.integers(0, 5_000), min_size=2, max_size=12).filter(any)
PAIRS = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)), min_size=2, max_size=12).filter(
    lambda pairs: all(map(any, zip(*pairs, strict=True)))
)

REFERENCE = Reference(
    data_sha256="0",
    labels={"no": 50, "yes": 50},
    tokens=Distribution((5, 10), (20, 50, 30)),
    unknown_tokens=Distribution((0, 0.1), (80, 15, 5)),
)

OTHER_LANGUAGE = [
    "El vuelo llegó con dos horas de retraso y nadie nos dijo nada",
    "Muchas gracias a toda la tripulación por un viaje tan agradable",
    "¿Cuánto cuesta facturar una maleta más para el vuelo de mañana?",
    "Perdieron mi equipaje y todavía no contestan el teléfono",
    "Der Flug war pünktlich und das Personal sehr freundlich",
    "Wir sitzen seit drei Stunden am Flugsteig und warten auf eine Durchsage",
    "Wann wird mein Gepäck endlich nach Hause geliefert?",
    "Les hôtesses étaient charmantes mais le repas était immangeable",
]


def test_the_index_of_a_worked_example() -> None:
    expected = (0.6 - 0.5) * math.log(0.6 / 0.5) + (0.4 - 0.5) * math.log(0.4 / 0.5)
    assert stability_index([50, 50], [6, 4]) == pytest.approx(expected)
    empty = (FLOOR - 0.5) * math.log(FLOOR / 0.5)
    assert stability_index([50, 50], [10, 0]) == pytest.approx(0.5 * math.log(2) + empty)


@given(COUNTS, st.integers(1, 50))
def test_the_index_is_0_for_equal_distributions(counts: list[int], times: int) -> None:
    assert stability_index(counts, [times * count for count in counts]) == pytest.approx(0, abs=1e-12)


@given(PAIRS)
def test_the_index_is_symmetric_and_never_negative(pairs: list[tuple[int, int]]) -> None:
    expected, actual = zip(*pairs, strict=True)
    assert 0 <= stability_index(expected, actual) < math.inf
    assert stability_index(expected, actual) == pytest.approx(stability_index(actual, expected))


@given(COUNTS, st.data())
def test_the_index_grows_as_texts_move_from_one_bucket_to_another(counts: list[int], data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([index for index, count in enumerate(counts) if count]))
    target = data.draw(st.sampled_from([index for index in range(len(counts)) if index != source]))
    indexes = []
    for share in range(11):
        actual = [10 * count for count in counts]
        moved = share * counts[source]
        actual[source] -= moved
        actual[target] += moved
        indexes.append(stability_index(counts, actual))
    assert indexes == pytest.approx(list(accumulate(indexes, max)))
    assert indexes[-1] > 0 or counts[source] / sum(counts) <= FLOOR


@given(st.lists(st.tuples(st.sampled_from(["no", "yes"]), st.integers(1, 20), st.integers(0, 20)), max_size=60))
def test_a_window_has_the_last_texts(texts: list[tuple[str, int, int]]) -> None:
    drift = Drift(REFERENCE, window_texts=20)
    for number, (label, tokens, unknown) in enumerate(texts, start=1):
        drift.add(label, tokens, min(unknown, tokens))
        last = texts[max(number - 20, 0) : number]
        if number < 20:
            assert drift.indexes() == {}
            continue
        lengths = Distribution.of([tokens for _, tokens, _ in last], REFERENCE.tokens.bounds)
        shares = [min(unknown, tokens) / tokens for _, tokens, unknown in last]
        labels = [label for label, _, _ in last]
        assert drift.indexes() == {
            "labels": stability_index([50, 50], [labels.count("no"), labels.count("yes")]),
            "tokens": stability_index(REFERENCE.tokens.counts, lengths.counts),
            "unknown_tokens": stability_index(
                REFERENCE.unknown_tokens.counts, Distribution.of(shares, REFERENCE.unknown_tokens.bounds).counts
            ),
        }


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    assert Distribution.of([0, 5, 5.1, 10, 11, 99], (5, 10)).counts == (2, 2, 2)


def indexes_of(classifier: TextClassifier, texts: list[str]) -> dict[str, float]:
    assert classifier.reference is not None
    drift = Drift(classifier.reference)
    ids = [classifier.ids(text) for text in texts]
    for row, probabilities in zip(ids, classifier.probabilities(ids), strict=True):
        drift.add(classifier.labels[probabilities.argmax()], len(row), row.count(classifier.unknown_id))
    return drift.indexes()


def test_tweets_like_the_training_data_show_no_drift(served: TextClassifier, real_tweets: pd.DataFrame) -> None:
    texts = list(real_tweets.loc[real_tweets["split"] == "validation", "text"])
    indexes = indexes_of(served, random.Random(0).sample(texts, WINDOW_TEXTS))
    assert indexes.keys() == {"labels", "tokens", "unknown_tokens"}
    assert max(indexes.values()) < SOME, indexes


@pytest.mark.parametrize(
    ("texts", "features"),
    [
        (OTHER_LANGUAGE, {"unknown_tokens", "tokens"}),
        (["ok", "thanks", "great", "love it"], {"tokens", "labels"}),
        ([" ".join(OTHER_LANGUAGE), "late again " * 80], {"tokens"}),
    ],
    ids=["another language", "very short", "very long"],
)
def test_other_texts_show_drift(served: TextClassifier, texts: list[str], features: set[str]) -> None:
    indexes = indexes_of(served, texts * (WINDOW_TEXTS // len(texts)))
    assert {feature for feature, index in indexes.items() if index > MUCH} >= features, indexes
