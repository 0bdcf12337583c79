"""Tests of learners with fastai's `SentencePieceTokenizer`: the same tokens and the same predictions."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastai.text.all import SentencePieceTokenizer
from fastai.text.all import Tokenizer as FastaiTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler import exported
from handler.classifier import TextClassifier
from handler.exported import ExportedModelError
from handler.prediction import Prediction
from handler.service import MODEL_FOLDER
from tests.paths import ROOT
from tests.training.test_export import (
    LENGTHS,
    NEAR,
    TOLERANCE,
    assert_parity,
    make_learner,
    texts_of_lengths,
    toy_texts,
)
from training.export.archive import archive
from training.export.folder import export_files
from training.export.learner_file import read_learner

pytest.importorskip("sentencepiece")
TEXTS = [*toy_texts()[:8], *texts_of_lengths(LENGTHS[:9]), "ﬁne ①② ＡＢＣ \x00 你好 \U0001f600 xxpad xxunk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A learner's file and its exported model. SentencePiece's file is removed: the learner's file has its content."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    learner = make_learner(block={"tok": SentencePieceTokenizer(vocab_sz=200, cache_dir=folder / "cache")})
    learner.export(folder / "learner.pkl")
    shutil.rmtree(folder / "cache")
    export_files([folder / "learner.pkl"], folder / "model")
    return folder


@pytest.fixture(scope="module")
def learner(folder: Path) -> Any:
    return read_learner(folder / "learner.pkl")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> TextClassifier:
    return TextClassifier.load(folder / "model")


WORDS = [" ", "\u2581", "xxmaj", "flight", "GREAT", "\ufb01", "\u2460", "\u0301", "\ufdfa", "&amp;", "\x00"]


@settings(max_examples=200)
@given(st.text() | st.lists(st.sampled_from(WORDS) | st.text(max_size=4)).map("".join))
@example("Thank you for the GREAT flight!!! \u2581xxpad xxpad")
def test_tokens_and_ids_are_fastais(learner: Any, classifier: TextClassifier, text: str) -> None:
    steps = learner.dls.valid_ds.tls[0].tfms.fs
    [tokenize, numericalize] = [step for step in steps if type(step).__name__ in ("Tokenizer", "Numericalize")]
    assert isinstance(tokenize, FastaiTokenizer)
    tokens = list(tokenize(text))
    assert classifier.tokens(text) == tokens
    assert classifier.ids(text) == (numericalize(tokens).tolist() or [classifier.unknown_id])
    spans = classifier._tokenizer.spans(classifier.tokenize(text))
    assert len(spans) == len(tokens)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)


def test_predictions_are_fastais(learner: Any, classifier: TextClassifier) -> None:
    assert_parity(learner, classifier, TEXTS)


@pytest.fixture(scope="module")
def unpacked(folder: Path) -> Path:
    """The folder of the model in the model's archive."""
    archive(folder / "model", folder / "it.mar", "1.0", "int8")
    shutil.unpack_archive(folder / "it.mar", folder / "unpacked", "zip")
    return folder / "unpacked" / MODEL_FOLDER


def test_the_archive_has_the_tokenizers_model(unpacked: Path, classifier: TextClassifier) -> None:
    expected = classifier.predict(TEXTS)
    assert (unpacked / exported.PIECES_FILE).is_file()
    archived = TextClassifier.load_archived(unpacked, threads=1)
    archived.warm_up()
    np.testing.assert_allclose(archived.predict(TEXTS), expected, rtol=0, atol=NEAR)
    assert np.abs(expected - expected[0]).max() > 100 * TOLERANCE, "the texts are told apart"


def test_a_server_of_such_a_model_does_not_import_spacy(unpacked: Path) -> None:
    """It would take 60 MB in each worker."""
    code = (
        "import sys, pathlib, handler.service, handler.classifier\n"
        f"folder = pathlib.Path({str(unpacked)!r})\n"
        "print(len(handler.classifier.TextClassifier.load_archived(folder, threads=1).predict(['Late flight'])))\n"
        "print('spacy' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1", "False"]


def test_a_tokens_span_is_its_position_in_the_text(classifier: TextClassifier) -> None:
    text = "Late flight, again!"
    prediction = Prediction.from_outputs(classifier.predict([text])[0], classifier.task)
    explanation = classifier.explain(classifier.tokenize(text), prediction)
    spans = [text[begin:end] for begin, end in explanation.spans]
    place = explanation.tokens.index("\u2581flight")
    assert spans[place] == "flight"
    assert (explanation.tokens[0], spans[0]) == ("\u2581xxbos", "")
    assert "".join(spans[explanation.tokens.index("\u2581xxmaj") + 1 :]) == "Lateflight,again!"


def test_a_text_without_spaces_takes_linear_time(classifier: TextClassifier) -> None:
    assert len(classifier.tokens("qz" * 10_000)) < 20_010


def test_a_damaged_tokenizer_model_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    identity = exported.identity(model)
    (model / exported.PIECES_FILE).write_bytes((model / exported.PIECES_FILE).read_bytes()[:-50])
    assert exported.identity(model) != identity
    with pytest.raises(ExportedModelError, match="expected a model of SentencePiece"):
        exported.read(model)
    (model / exported.PIECES_FILE).unlink()
    with pytest.raises(ExportedModelError, match=r"sentencepiece\.model is missing"):
        exported.read(model)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ExportedModelError, match="package `sentencepiece` is missing"):
        exported.read(folder / "model")


def test_a_model_of_another_tokenizer_replaces_the_tokenizer_model(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    make_learner().export(tmp_path / "learner.pkl")
    export_files([tmp_path / "learner.pkl"], model)
    assert not (model / exported.PIECES_FILE).exists()
