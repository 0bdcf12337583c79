"""Learners that other versions of fastai, Python and spaCy wrote, in environments of their own.

Beside each `.pkl` file stands a `.json` file with the versions that wrote it and their own predictions.
"""

import json
import sys
import types
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastai.text.all import (
    AvgMetric,
    Callback,
    CrossEntropyLossFlat,
    EarlyStoppingCallback,
    Metric,
    Transform,
    accuracy,
)
from hypothesis import given
from hypothesis import strategies as st

from handler import exported
from handler.classifier import TextClassifier
from handler.tokens import Tokenizer
from tests.paths import LEARNERS, MODEL
from tests.training.test_export import make_learner
from training.errors import TrainingError
from training.export.learner import export_learner
from training.export.learner_file import read_learner

WRITTEN_ELSEWHERE = sorted(LEARNERS.glob("*.pkl"))
TOLERANCE = 1e-5


@pytest.mark.parametrize("file", WRITTEN_ELSEWHERE, ids=lambda file: file.stem)
def test_a_learner_of_any_version_and_system_predicts_as_it_did_there(file: Path, tmp_path: Path) -> None:
    """The export equals the learner as it is loaded here, and the predictions that the learner's environment stored."""
    exported.write(export_learner(read_learner(file), {}), tmp_path)
    classifier = TextClassifier.load(tmp_path)
    assert list(classifier.labels) == ["negative", "neutral", "positive"]
    for text, probabilities in stored_predictions(file).items():
        result = classifier.predict([text])[0]
        np.testing.assert_allclose(result, probabilities, rtol=0, atol=TOLERANCE, err_msg=text)


def stored_predictions(file: Path) -> dict[str, list[float]]:
    """Return the stored predictions; empty for the two files whose environments stored none."""
    if file.stem in ("fastai-2.7.19", "windows"):
        return {}
    predictions: dict[str, list[float]] = json.loads(file.with_suffix(".json").read_text())["predictions"]
    assert len(predictions) == 5
    return predictions


def test_the_files_are_of_every_minor_version_of_fastai() -> None:
    versions = [json.loads(file.read_text())["versions"] for file in LEARNERS.glob("*.json")]
    assert {version["fastai"].rpartition(".")[0] for version in versions} == {f"2.{minor}" for minor in range(9)}
    assert {version["python"].rpartition(".")[0] for version in versions} >= {"3.8", "3.10", "3.13"}


def test_the_learners_own_spacy_rules_are_exported(tmp_path: Path) -> None:
    """Up to spaCy 3.4, `theses` was two tokens; since 3.7, `⟦` is a token."""
    exported.write(export_learner(read_learner(LEARNERS / "fastai-2.6.3.pkl"), {}), tmp_path)
    old, new = (exported.read(folder).tokenizer for folder in (tmp_path, MODEL))
    assert old.tokens("theses ⟦late") == ["xxbos", "these", "s", "⟦late"]
    assert new.tokens("theses ⟦late") == ["xxbos", "theses", "⟦", "late"]


@pytest.fixture(scope="module")
def old_spacy() -> tuple[Any, Tokenizer]:
    """A learner's spaCy pipeline with the rules of spaCy 3.3, and the exported tokenizer without fastai's rules."""
    learner = read_learner(LEARNERS / "fastai-2.6.3.pkl")
    pipeline = learner.dls.train_ds.tfms[0].fs[1].tok.pipe.__self__
    model = export_learner(learner, {})
    return pipeline, Tokenizer(replace(model.config.tokenizer, rules=(), token_rules=()), model.vocabulary)


PIECES = [
    "theses",
    "That've",
    "thatre",
    "⟦",
    "⟧.",
    "〈",
    "°C.",
    "U.S.",
    "can't",
    "10km",
    "(a",
    ")",
    ":)",
    "…",
    " ",
    "/x",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=12).map("".join))
def test_tokens_with_a_models_own_rules_are_those_of_spacy(old_spacy: tuple[Any, Tokenizer], text: str) -> None:
    pipeline, tokenizer = old_spacy
    assert tokenizer.tokens(text) == [token.text for token in pipeline.tokenizer(text)]


@pytest.mark.parametrize("name", ["fastai-2.8.1-notebook", "fastai-2.8.12-python-3.13"])
def test_bytecode_of_another_python_is_never_run(name: str) -> None:
    """Python runs any bytecode without a check, and may crash."""
    read_the_text = read_learner(LEARNERS / f"{name}.pkl").dls.train_ds.tfms[0].fs[0]
    with pytest.raises(RuntimeError, match="was pickled by another version of Python"):
        read_the_text(pd.Series({"text": "late"}))


def test_bytecode_of_this_python_is_run(tmp_path: Path) -> None:
    learner = make_learner()
    end = "."
    capital = lambda text: len(text) > 3 and f"{text[0].upper()}{end}"  # noqa: E731  # pickled by value, as a lambda is
    learner.own = [capital, lambda row: [word + end for word in row.text]]
    learner.path = tmp_path
    learner.export("learner.pkl")
    first, words = read_learner(tmp_path / "learner.pkl").own
    assert (first("late"), words(pd.Series({"text": "ab"}))) == ("L.", ["a.", "b."])


def test_a_path_of_windows_and_python_3_13_is_read(tmp_path: Path) -> None:
    """A path's class has another module there; pickle protocol 2 writes it as a line of text."""
    windows, both = LEARNERS / "windows.pkl", tmp_path / "both.pkl"
    with zipfile.ZipFile(windows) as source, zipfile.ZipFile(both, "w") as changed:
        for part in source.infolist():
            data = source.read(part)
            if part.filename.endswith("/data.pkl"):
                assert b"pathlib\nWindowsPath" in data
                data = data.replace(b"cpathlib\n", b"cpathlib._local\n")
            changed.writestr(part, data)
    assert str(read_learner(both).path) == str(read_learner(windows).path)


def of_a_missing_module(kind: type, name: str = "Own", **members: Any) -> Any:
    """Make a class of a module that exists when a learner is exported, but not when the file is read."""
    made = type(name, (kind,), {"__module__": "gone", **members})
    setattr(sys.modules["gone"], name, made)
    return made


def with_a_transform(learner: Any) -> None:
    own = of_a_missing_module(Transform)()
    for loader in (learner.dls.train, learner.dls.valid):
        loader.after_item.add(own)


def with_a_rule(learner: Any) -> None:
    learner.dls.train_ds.tfms[0].fs[1].rules = [of_a_missing_module(object)]


def with_labels(learner: Any) -> None:
    own = of_a_missing_module(object)
    learner.dls.vocab[1].items[:] = [own() for _ in learner.dls.vocab[1].items]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda it: it.add_cb(of_a_missing_module(Callback)()),
            r"the callback gone\.Own \(not installed here\)\. If .* `learner\.remove_cb\(Own\)`",
        ),
        (with_a_transform, r"the learner uses gone\.Own \(not installed here\)"),
        (with_a_rule, r"a custom rule, gone\.Own \(not installed here\)"),
        (
            lambda it: setattr(it, "loss_func", of_a_missing_module(CrossEntropyLossFlat)()),
            r"The loss is gone\.Own \(not installed here\)",
        ),
        (
            lambda it: setattr(it, "loss_func", of_a_missing_module(object)),  # as a function is
            r"The loss is gone\.Own \(not installed here\)",
        ),
        (
            lambda it: setattr(it.model[0], "__class__", of_a_missing_module(type(it.model[0]))),
            "not a fastai text classifier",
        ),
        (with_labels, r"The label of the class gone\.Own \(not installed here\) cannot be read"),
    ],
    ids=["callback", "transform", "rule", "loss", "function as loss", "encoder", "labels"],
)
def test_missing_code_that_takes_part_in_a_prediction_is_refused(
    change: Callable[[Any], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gone", types.ModuleType("gone"))
    learner = make_learner()
    change(learner)
    learner.path = tmp_path
    learner.export("own.pkl")
    del sys.modules["gone"]
    with pytest.raises(TrainingError, match=message):
        export_learner(read_learner(tmp_path / "own.pkl"), {})


def test_missing_code_that_takes_no_part_in_a_prediction_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each part makes fastai's `predict` fail, except the optimizer and the splitter."""
    logger = type("WandbCallback", (Callback,), {"__module__": "fastai.callback.wandb", "before_fit": None})
    for name in ("gone", logger.__module__):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[logger.__module__].WandbCallback = logger  # type: ignore[attr-defined]
    function, metric = of_a_missing_module(object, "function"), of_a_missing_module(Metric)()
    learner = make_learner(metrics=[accuracy, AvgMetric(function), metric, DividingByZero()])
    learner.add_cbs([logger(), EarlyStoppingCallback(monitor="function")])
    learner.opt_func = learner.splitter = function
    expected = export_learner(make_learner(), {}).weights
    learner.create_opt = lambda: None
    learner.path = tmp_path
    learner.export("own.pkl")
    monkeypatch.undo()
    read = read_learner(tmp_path / "own.pkl")
    assert [metric.name for metric in read.metrics] == ["accuracy"]
    removed = "removed from the learner: gone.function (not installed here), gone.Own (not installed here), Div"
    assert removed in capfd.readouterr().err
    result = export_learner(read, {}).weights
    assert all(np.array_equal(result[name], value) for name, value in expected.items())
    with read.no_bar(), read.no_logging():
        read.predict("late")


class DividingByZero(Metric):  # type: ignore[misc]  # fastai has no types
    """A metric that has no value without targets."""

    @property
    def value(self) -> float:
        return 1 / 0
