"""Tests of the behavioural tests: each can fail, and the training data does not contain them."""

import ast
import inspect
import re
from collections import Counter
from functools import partial
from pathlib import Path
from types import ModuleType
from zlib import crc32

import pytest

from handler import exported
from tests.training.test_export import make_learner
from training import cli
from training.export.learner import export_learner
from training.measure import behaviour
from training.measure.behaviour import BehaviouralTest, Case, Result, run, suite
from training.stages import augmentation
from training.stages.augmentation import synthetic_texts
from training.templates import LABELS

ALIKE = {"The {noun} is {good}!", "The {noun} is {bad}!"}
"""Sentences that are appended to a tweet; synthetic training texts may have the same form."""


def sure_of(label: str) -> dict[str, float]:
    return {name: 0.9 if name == label else 0.05 for name in LABELS}


def always(label: str, texts: list[str]) -> list[dict[str, float]]:
    """Predict the same label for each text."""
    return [sure_of(label) for _ in texts]


def test_the_suite_is_always_the_same_and_large() -> None:
    assert suite() == suite()
    assert len(suite()) > 30
    assert all(len(test.cases) >= 40 for test in suite()), [(t.name, len(t.cases)) for t in suite()]
    assert {test.kind for test in suite()} == {"functionality", "invariance", "direction"}


def test_the_suite_has_the_issues_of_checklist() -> None:
    capabilities = Counter(test.capability for test in suite())
    assert set(capabilities) == {
        *("vocabulary", "negation", "time", "opinion", "question and answer", "robustness", "entities", "fairness")
    }


def test_each_change_changes_the_text() -> None:
    for test in suite():
        for case in test.cases:
            assert len(case.texts) == (1 if test.kind == "functionality" else 2)
            assert len(set(case.texts)) == len(case.texts), case
            assert "{" not in "".join(case.texts)
            assert set(case.labels) <= set(LABELS)


def test_a_constant_prediction_fails_the_functionality_tests() -> None:
    """A model that always predicts the same label fails each functionality test that expects other labels."""
    for label in LABELS:
        for result in run(suite(), partial(always, label)):
            if result.kind == "functionality":
                assert result.failures in (0, result.cases)
            else:
                assert result.failures == 0
    failed_by = {
        label: {result.name for result in run(suite(), partial(always, label)) if result.failures} for label in LABELS
    }
    functionality = {test.name for test in suite() if test.kind == "functionality"}
    assert set.union(*failed_by.values()) == functionality


def test_random_predictions_fail_invariance_and_direction() -> None:
    """The predicted label is derived from the text's checksum, so it does not depend on the meaning."""

    def scores(texts: list[str]) -> list[dict[str, float]]:
        return [sure_of(LABELS[crc32(text.encode()) % 3]) for text in texts]

    for result in run(suite(), scores):
        assert result.failures > 0, result.name
        assert result.example


@pytest.mark.parametrize(
    ("kind", "labels", "scores", "failures"),
    [
        ("functionality", ("positive",), [0.2, 0.5, 0.3], 1),
        ("functionality", ("neutral", "positive"), [0.2, 0.5, 0.3], 0),
        ("invariance", (), [0.2, 0.5, 0.3], 1),
        ("direction", ("positive",), [0.1, 0.4, 0.5], 1),
        ("direction", ("positive",), [0.2, 0.2, 0.6], 0),
    ],
)
def test_the_condition_of_each_kind(
    kind: behaviour.Kind, labels: tuple[str, ...], scores: list[float], failures: int
) -> None:
    """The probability of positive before the change is 0.65."""
    answers = {"before": [0.3, 0.05, 0.65], "after": scores}
    texts = ("after",) if kind == "functionality" else ("before", "after")
    test = BehaviouralTest("a", "b", kind, (Case(texts, labels),))
    [result] = run([test], lambda asked: [dict(zip(LABELS, answers[text], strict=True)) for text in asked])
    assert result == Result("a", "b", kind, 1, failures, " → ".join(texts) if failures else "")


def test_the_synthetic_training_texts_are_not_in_the_suite() -> None:
    """They have no text of the suite, none of its adjectives, and no sentence of it with other words.

    The sentences of `ALIKE` are exceptions.
    """
    texts, labels = synthetic_texts(20_000, seed=1)
    tested = {text.lower() for test in suite() for case in test.cases for text in case.texts}
    assert not tested & {text.lower() for text in texts}
    assert set(Counter(labels)) == set(LABELS)
    for adjectives in ("good", "bad", "plain"):
        assert not set(behaviour.WORDS[adjectives]) & set(augmentation.WORDS[adjectives])
    words = sorted(
        {plain(word) for module in (augmentation, behaviour) for words in module.WORDS.values() for word in words}
    )
    any_word = "(?:" + "|".join(map(re.escape, words)) + ")"
    frames = {frame.strip() for frame in string_literals(behaviour) if re.search(r"\{\w+\}", frame)}
    assert len(frames) > 40
    assert frames > ALIKE
    parts = [map(plain_part, re.split(r"\{\w+\}", frame)) for frame in frames - ALIKE]
    seen = re.compile("|".join(map(any_word.join, parts)))
    assert [text for text in texts if seen.fullmatch(plain(text))] == []


def plain(text: str) -> str:
    return re.sub(r"[^\w' ]", "", text).strip().lower()


def plain_part(text: str) -> str:
    """Reduce a part of a template to letters, and keep the spaces beside its placeholders."""
    return re.escape(re.sub(r"[^\w' ]", "", text).lower())


def string_literals(module: ModuleType) -> list[str]:
    tree = ast.parse(inspect.getsource(module))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_a_model_with_other_labels_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exported.write(export_learner(make_learner(["good", "bad"]), {}), tmp_path)
    assert cli.main(["behaviour", "--model", str(tmp_path)]) == 1
    expected = "for models with the labels negative, neutral, positive; this model has the labels 'bad', 'good'."
    assert expected in capfd.readouterr().err
