"""Tests of the search for the most expensive text, with a counted cost in place of processor time."""

import random

import pytest
import spacy

from benchmarks.worst_text import Candidate, Shape, changed_shape, measured, shapes, worst_requests, worst_texts
from handler.batch import Kind
from handler.classifier import TextClassifier
from handler.limits import Limits
from handler.linear_tokenizer import LinearTokenizer
from tests.handler.test_linear_tokenizer import PATTERNS, Counted

LENGTH = 2_000
STEPS = 100


def test_the_search_finds_an_expensive_pattern() -> None:
    worst = worst_texts(lambda text: text.count("«") + text.count("«»"), LENGTH, seed=0, steps=iter(range(1_000)))
    assert worst[0][0] > LENGTH / 2
    assert [cost for cost, _ in worst] == sorted((cost for cost, _ in worst), reverse=True)


def test_the_search_is_reproducible_by_its_seed() -> None:
    first, repeated, different = (worst_texts(len, LENGTH, seed, iter(range(50))) for seed in (1, 1, 2))
    assert first == repeated != different


def test_the_patterns_read_the_worst_text_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number is bounded by a constant factor; spaCy's own tokenizer reads such texts hundreds of times."""
    tokenizer = LinearTokenizer(spacy.blank("en"), ())
    counted = [Counted(getattr(tokenizer, name)) for name in PATTERNS]
    for name, counts in zip(PATTERNS, counted, strict=True):
        monkeypatch.setattr(tokenizer, name, counts)

    def characters(text: str) -> float:
        before = sum(counts.characters for counts in counted)
        tokenizer(text)
        return sum(counts.characters for counts in counted) - before

    [(worst, candidate), *_] = worst_texts(characters, LENGTH, seed=0, steps=iter(range(STEPS)))
    assert LENGTH < worst < 50 * LENGTH, candidate


def test_requests_stay_within_the_limits() -> None:
    limits, generator = Limits(), random.Random(0)
    for shape in shapes(limits):
        changed = [shape]
        for _ in range(50):
            changed.append(changed_shape(generator, changed[-1], limits))
        for variant in changed:
            assert 0 < variant.texts <= limits.max_texts
            assert 0 < variant.characters <= limits.max_text_characters
            assert variant.texts * variant.characters <= limits.max_request_characters


def test_a_request_passes_all_steps_of_the_handler(served: TextClassifier) -> None:
    candidate = Candidate(("<new character>", "()"), ("word ",), 0.5)
    predicted = measured(served, Limits(), candidate, Shape(3, 20))
    assert predicted.statuses == {200: 1}
    assert predicted.tokens > 3
    explained = measured(served, Limits(), candidate, Shape(1, 20, Kind.EXPLAIN), requests=2)
    assert explained.statuses == {200: 2}
    small = Limits(max_request_characters=400, max_text_characters=100, max_texts=10, max_token_reads=200)
    worst = worst_requests(served, small, [candidate], seed=0, steps=iter(range(15)))
    assert all(measurement.seconds > 0 for measurement in worst)
    assert {status for measurement in worst for status in measurement.statuses} <= {200, 413}
