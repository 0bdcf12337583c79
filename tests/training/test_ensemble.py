"""Tests of ensembles: a forward and a backward learner, whose predictions are averaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastai.text.all import SpacyTokenizer

from handler import batch, exported
from handler.batch import PredictedRequest
from handler.classifier import TextClassifier
from handler.exported import ExportedModelError
from handler.limits import Limits
from handler.padding import LARGER_NETWORK_TIME, network_cost
from handler.prediction import Prediction
from handler.service import MODEL_FOLDER
from tests.training.test_export import (
    LENGTHS,
    NEAR,
    TOLERANCE,
    make_learner,
    predict_alone,
    texts_of_lengths,
    toy_texts,
)
from tests.training.test_stages import run
from training.errors import TrainingError
from training.export.archive import archive
from training.export.folder import export_files
from training.export.sample import sample_of
from training.settings import PRECISIONS, Precision

TEXTS = [*toy_texts()[:8], *texts_of_lengths(LENGTHS[:10]), "zzyzx unheard-of"]


@pytest.fixture(scope="module")
def learners() -> list[Any]:
    """Learners with other sizes, chunks and vocabularies; the second one has only the more frequent words."""
    return [
        make_learner(),
        make_learner(backwards=True, sizes={"emb_sz": 8, "n_layers": 3}, seq_len=50, max_len=100, fewest=2),
    ]


@pytest.fixture(scope="module")
def folder(learners: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    for name, learner in zip(("forward.pkl", "backward.pkl"), learners, strict=True):
        learner.export(folder / name)
    options = ("--learner", folder / "forward.pkl", "--learner", folder / "backward.pkl", "--to", folder / "model")
    assert run("export", *options) == 0
    return folder


def means(learners: list[Any]) -> np.ndarray:
    return np.array([np.mean([predict_alone(learner, text).numpy() for learner in learners], axis=0) for text in TEXTS])


def test_the_predictions_are_the_means_of_fastais(learners: list[Any], folder: Path) -> None:
    first, second = (set(learner.dls.vocab[0]) for learner in learners)
    assert first > second, "the test is about different vocabularies, too"
    expected = means(learners)
    classifier = TextClassifier.load(folder / "model")
    np.testing.assert_allclose(classifier.predict(TEXTS), expected, rtol=0, atol=TOLERANCE)
    alone = np.concatenate([classifier.predict([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, expected, rtol=0, atol=TOLERANCE)


def test_the_order_of_the_learners_changes_nothing(learners: list[Any], folder: Path, tmp_path: Path) -> None:
    export_files([folder / "backward.pkl", folder / "forward.pkl"], tmp_path / "model")
    result = TextClassifier.load(tmp_path / "model").predict(TEXTS)
    np.testing.assert_allclose(result, means(learners), rtol=0, atol=TOLERANCE)


def test_the_archive_has_both_networks(learners: list[Any], folder: Path, tmp_path: Path) -> None:
    tolerances: dict[Precision, float] = {"float32": TOLERANCE, "int8": NEAR}
    for precision, tolerance in tolerances.items():
        choice = archive(folder / "model", tmp_path / "it.mar", "1.0", precision, sample_of(TEXTS, "the test"))
        assert precision == "float32" or choice.differences[precision].largest <= NEAR
        shutil.unpack_archive(tmp_path / "it.mar", tmp_path / precision, "zip")
        archived = TextClassifier.load_archived(tmp_path / precision / MODEL_FOLDER, threads=1)
        np.testing.assert_allclose(archived.predict(TEXTS), means(learners), rtol=0, atol=tolerance)


def test_the_limit_of_token_reads_counts_both_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may have half as many tokens as with one network."""
    members = exported.read_description(folder / "model").config.members
    weights = sum(member.network.lstm_weights for member in members)
    monkeypatch.setattr("handler.padding.REFERENCE_LSTM_WEIGHTS", weights / (2 * LARGER_NETWORK_TIME))
    classifier = TextClassifier.load(folder / "model")
    assert classifier.network_cost == 2
    limits = Limits(max_token_reads=100)
    statuses = []
    for words in (10, 35, 60):
        row = {"body": ("late again " * (words // 2)).encode()}, {"content-type": "text/plain"}
        [result], _ = batch.infer(batch.read([row], limits), classifier, limits)
        statuses.append(isinstance(result, PredictedRequest))
    assert statuses == [True, False, False]


def test_a_token_counts_by_the_size_and_the_precision_of_the_network(folder: Path) -> None:
    """The default size of fastai's networks; with the embedded model's limits, one request took 18 s."""
    network = exported.read_description(folder / "model").config.network
    fastais = replace(network, embedding_size=400, hidden_size=1152, layers=3)
    for sizes in (network, fastais):
        shapes = sizes.tensor_shapes()
        matrices = [shape for name, shape in shapes.items() if name.startswith("lstm.") and len(shape) == 2]
        assert sizes.lstm_weights == sum(rows * columns for rows, columns in matrices)
    assert network_cost(network.lstm_weights, "float32") == 1, "a small network has the limits of the embedded model"
    description = exported.read_description(folder / "model")
    for card in ({}, {"archive": None}, {"archive": {"precision": 8}}):  # of an archive by another program
        assert TextClassifier(replace(description, card=card), None).network_cost == 1  # type: ignore[arg-type]
    costs = [network_cost(fastais.lstm_weights, precision) for precision in PRECISIONS]
    assert costs == sorted(costs)
    assert costs[:2] == [pytest.approx(3.1, abs=0.1), pytest.approx(6.9, abs=0.1)]


def test_a_token_of_an_ensemble_is_explained(folder: Path) -> None:
    classifier = TextClassifier.load(folder / "model")
    prediction = Prediction.from_outputs(classifier.predict(["late again"])[0], classifier.task)
    explanation = classifier.explain(classifier.tokenize("late again"), prediction)
    ids = classifier.ids("late again")
    place = explanation.tokens.index("late")
    occluded = [*ids[:place], classifier.unknown_id, *ids[place + 1 :]]
    fall = (classifier.probabilities([ids]) - classifier.probabilities([occluded]))[0, explanation.outputs[0]]
    assert explanation.weights[place] == pytest.approx((fall,), abs=TOLERANCE)


def test_the_card_names_both_files(folder: Path) -> None:
    card = json.loads((folder / "model" / "card.json").read_text())
    assert len({card["exported"]["learner_sha256"], *card["exported"]["other_learners_sha256"]}) == 2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"labels": ["no", "yes"]}, r"labels \(\('negative', 'neutral', 'positive'\) and \('no', 'yes'\)\)"),
        ({"block": {"tok": SpacyTokenizer("de")}}, "tokenizer"),
    ],
    ids=["labels", "tokenizer"],
)
def test_learners_that_cannot_be_averaged_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    make_learner(**options).export(tmp_path / "other.pkl")
    with pytest.raises(TrainingError, match=f"forward.pkl and .*other.pkl differ in their {part}, so their"):
        export_files([folder / "forward.pkl", tmp_path / "other.pkl"], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_network_of_another_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    config["ensemble"][0]["network"]["vocabulary_size"] += 1
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportedModelError, match="the networks of the ensemble differ"):
        exported.read(model)
