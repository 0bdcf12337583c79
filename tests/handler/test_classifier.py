"""The probabilities of a text do not depend on other texts, on its position, or on earlier calls."""

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from handler.padding import (
    LARGE_PASS_TOKEN_COST,
    MAX_PASS_TEXTS,
    MAX_PASS_TOKENS,
    SMALL_PASS_TOKENS,
    STEP_COST,
    cost,
    forward_passes,
)
from handler.prediction import Prediction

TOLERANCE = 1e-5

LENGTHS = [1, 2, 3, 25, 71, 72, 73, 144, 145, 500, 1439, 1440, 1441, 1511, 1512, 1513, 1600, 2000]
ANY_LENGTH = st.integers(1, 60) | st.integers(1, 20_000)


@pytest.fixture(scope="module", params=["the reference", "the engine"])
def classifier(request: pytest.FixtureRequest, classifier: TextClassifier, served: TextClassifier) -> TextClassifier:
    return {"the reference": classifier, "the engine": served}[request.param]


def random_ids(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    generator = random.Random(0)
    return [[generator.randrange(vocabulary) for _ in range(length)] for length in lengths]


def alone(classifier: TextClassifier, ids: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([classifier.probabilities([row]) for row in ids])


def test_probabilities_of_a_text_do_not_depend_on_the_other_texts(classifier: TextClassifier) -> None:
    """The texts have 1 to 2,000 tokens in random order, and their ids include the id of padding."""
    ids = random_ids(LENGTHS * 3, 400)
    expected = alone(classifier, ids)
    order = list(range(len(ids)))
    for seed in range(2):
        random.Random(seed).shuffle(order)
        together = classifier.probabilities([ids[index] for index in order])
        np.testing.assert_allclose(together, expected[order], rtol=0, atol=TOLERANCE)


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=20))
def test_any_texts_have_the_same_probabilities_together_and_alone(classifier: TextClassifier, texts: list[str]) -> None:
    expected = np.concatenate([classifier.predict([text]) for text in texts])
    np.testing.assert_allclose(classifier.predict(texts), expected, rtol=0, atol=TOLERANCE)


def test_real_tweets_have_the_same_probabilities_together_and_alone(
    classifier: TextClassifier, real_tweets: pd.DataFrame
) -> None:
    texts = list(real_tweets.loc[real_tweets["split"] == "validation", "text"])[:300]
    ids = [classifier.ids(text) for text in texts]
    np.testing.assert_allclose(classifier.probabilities(ids), alone(classifier, ids), rtol=0, atol=TOLERANCE)


def test_a_typed_padding_token_changes_no_other_text(classifier: TextClassifier) -> None:
    texts = ["a fine flight", "xxpad", "xxpad xxpad xxpad the end", "late again, and nobody knows why " * 20]
    expected = np.concatenate([classifier.predict([text]) for text in texts])
    np.testing.assert_allclose(classifier.predict(texts), expected, rtol=0, atol=TOLERANCE)


def test_probabilities_do_not_depend_on_earlier_calls(classifier: TextClassifier) -> None:
    first = classifier.predict(["thank you"])
    classifier.predict(["something else entirely " * 50] * 5)
    np.testing.assert_array_equal(classifier.predict(["thank you"]), first)


def test_probabilities_are_between_0_and_1_and_sum_to_1(classifier: TextClassifier) -> None:
    probabilities = classifier.predict(["a", "b " * 3000])
    assert probabilities.shape == (2, len(classifier.labels))
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_no_texts_have_no_probabilities(classifier: TextClassifier) -> None:
    assert classifier.predict([]).shape == (0, len(classifier.labels))


def within_limits(lengths: Sequence[int], indexes: Sequence[int]) -> bool:
    padded = len(indexes) * max(lengths[index] for index in indexes)
    return len(indexes) == 1 or (len(indexes) <= MAX_PASS_TEXTS and padded <= MAX_PASS_TOKENS)


@given(st.lists(ANY_LENGTH, max_size=100))
def test_forward_passes_have_every_text_once_and_stay_within_the_limits(lengths: list[int]) -> None:
    passes = forward_passes(lengths)
    assert sorted(index for indexes in passes for index in indexes) == list(range(len(lengths)))
    assert all(within_limits(lengths, indexes) for indexes in passes)


@given(st.lists(ANY_LENGTH, max_size=6))
def test_no_other_forward_passes_cost_less(lengths: list[int]) -> None:
    def pass_cost(indexes: Sequence[int]) -> float:
        length = max(lengths[index] for index in indexes)
        tokens = len(indexes) * length
        return length * STEP_COST + tokens * (1 if tokens <= SMALL_PASS_TOKENS else LARGE_PASS_TOKEN_COST)

    def total(partition: Sequence[Sequence[int]]) -> float:
        return sum(map(pass_cost, partition))

    def partitions(indexes: Sequence[int]) -> Iterator[list[list[int]]]:
        if not indexes:
            yield []
            return
        for rest in partitions(indexes[1:]):
            yield [[indexes[0]], *rest]
            for place, others in enumerate(rest):
                yield [*rest[:place], [indexes[0], *others], *rest[place + 1 :]]

    possible = [
        partition
        for partition in partitions(range(len(lengths)))
        if all(within_limits(lengths, indexes) for indexes in partition)
    ]
    least = pytest.approx(min(map(total, possible)))
    assert total(forward_passes(lengths)) == least
    assert cost(lengths) == least


def test_texts_of_similar_length_share_a_forward_pass_and_a_long_text_has_its_own() -> None:
    assert forward_passes([20, 1_000, 22, 21]) == [[0, 3, 2], [1]]
    assert [len(batch) for batch in forward_passes([20] * 100)] == [32, 32, 32, 4]


def test_an_explanation_has_a_weight_for_each_token(classifier: TextClassifier) -> None:
    text = "Thank you for the GREAT flight!"
    prediction = Prediction.from_outputs(classifier.predict([text])[0], classifier.task)
    explanation = classifier.explain(classifier.tokenize(text), prediction)
    assert list(explanation.tokens) == classifier.tokens(text)
    assert len(explanation.weights) == len(explanation.tokens)
    [label] = explanation.outputs
    assert label == int(classifier.predict([text])[0].argmax())
    # Compute the occlusion score of one token from its definition.
    ids = classifier.ids(text)
    place = explanation.tokens.index("great")
    occluded = [*ids[:place], classifier._tokenizer.unknown_id, *ids[place + 1 :]]
    difference = classifier.probabilities([ids])[0] - classifier.probabilities([occluded])[0]
    assert explanation.weights[place] == pytest.approx((difference[label],), abs=TOLERANCE)
