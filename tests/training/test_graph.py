"""Tests of the archive's graph, compared with the float32 network that it was made from."""

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE, Engine
from handler.exported import ExportedModel
from handler.network import TextNetwork
from tests.paths import MODEL, TOY_TWEETS
from training import cli
from training.data import read_tweets
from training.export.graph import DIGIT, LSTM_BITS, to_onnx
from training.settings import PRECISIONS, Precision

SAME = 1e-5
NEAR = 0.03
FINE_NEAR = 0.01
ACCURACY_LOST = 0.002


def engine(model: ExportedModel, precision: Precision, folder: Path) -> Engine:
    onnx.save(to_onnx(model, precision), folder / GRAPH_FILE)
    return Engine(folder / GRAPH_FILE, model.config.network, threads=1)


def test_int8_loses_almost_no_accuracy_on_the_validation_split(
    classifier: TextClassifier, served: TextClassifier, real_tweets: pd.DataFrame
) -> None:
    rows = real_tweets[real_tweets["split"] == "validation"]
    texts = list(rows["text"])
    expected, result = classifier.predict(texts), served.predict(texts)
    np.testing.assert_allclose(result, expected, rtol=0, atol=NEAR)
    labels = np.array(classifier.labels)
    lost = (labels[expected.argmax(1)] == rows["label"]).mean() - (labels[result.argmax(1)] == rows["label"]).mean()
    assert lost <= ACCURACY_LOST


def test_int8_is_close_on_other_texts(classifier: TextClassifier, served: TextClassifier) -> None:
    texts = [*read_tweets(TOY_TWEETS)["text"], "", "😀" * 300, "never again " * 800, "Great! " * 90 + "Not."]
    np.testing.assert_allclose(served.predict(texts), classifier.predict(texts), rtol=0, atol=NEAR)


def test_float32_equals_the_reference(classifier: TextClassifier, tmp_path: Path) -> None:
    """The archive is built with the command line."""
    destination = tmp_path / "exact.mar"
    assert cli.main(["archive", "--model", str(MODEL), "--to", str(destination), "--precision", "float32"]) == 0
    with zipfile.ZipFile(destination) as file:
        file.extractall(tmp_path)
    archived = TextClassifier.load_archived(tmp_path / "model", threads=1)
    texts = list(read_tweets(TOY_TWEETS)["text"])
    np.testing.assert_allclose(archived.predict(texts), classifier.predict(texts), rtol=0, atol=SAME)
    identity = exported.identity(MODEL)
    assert archived.card["archive"] == {"precision": "float32", "reason": "as asked for", "identity": identity}


def test_the_archive_is_a_quarter_of_the_fp32_weights(mar: Path) -> None:
    parameters = sum(value.size for value in exported.read(MODEL).weights.values())
    assert mar.stat().st_size <= 4 * parameters / 4


def test_int8_fine_is_close_if_a_few_embeddings_are_large(tmp_path: Path) -> None:
    """In int8, they determine the one scale of all embeddings."""
    model = exported.read(MODEL)
    embedding = model.weights["embedding.weight"] = model.weights["embedding.weight"].astype(np.float32)
    embedding[[2_000, 9_000, 15_000]] *= 30
    expected = TextClassifier(model, engine(model, "float32", tmp_path))
    ids = [expected.ids(text) for text in read_tweets(TOY_TWEETS)["text"]]
    largest = {
        precision: np.abs(engine(model, precision, tmp_path).probabilities(ids) - expected.probabilities(ids)).max()
        for precision in PRECISIONS
    }
    assert largest["int8"] > NEAR
    assert largest["int8-fine"] < FINE_NEAR


@pytest.mark.parametrize("precision", ["int8", "int8-fine"])
def test_a_text_has_the_same_bits_alone_and_in_any_batch(precision: Precision, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    engine_ = engine(exported.read(MODEL), precision, tmp_path)
    ids = [generator.integers(2, 20_000, length).tolist() for length in [1, 2, 3, *generator.integers(4, 90, 30)]]
    alone = np.concatenate([engine_.probabilities([row]) for row in ids])
    for _ in range(3):
        order = generator.permutation(len(ids))[: generator.integers(2, len(ids) + 1)]
        np.testing.assert_array_equal(engine_.probabilities([ids[place] for place in order]), alone[order])


@pytest.mark.parametrize("precision", ["int8", "int8-fine"])
def test_a_row_of_zeros_stays_zero(precision: Precision, toy_run: Path, tmp_path: Path) -> None:
    """Its largest entry is 0, which cannot be a scale."""
    model = exported.read(toy_run / "model")
    model.weights["embedding.weight"][5] = 0
    model.weights["lstm.0.weight_hh_l0"][:] = 0
    ids = [[2, 5, 5, 5, 7]]
    expected = TextNetwork.of(model).probabilities(ids)
    result = engine(model, precision, tmp_path).probabilities(ids)
    np.testing.assert_allclose(result, expected, rtol=0, atol=NEAR)


def test_no_sum_of_two_products_overflows_16_bits() -> None:
    """Inputs are 0 to 255. Processors without VNNI add two products in 16 bits."""
    graph = to_onnx(exported.read(MODEL), "int8").graph
    matrices = [onnx.numpy_helper.to_array(value) for value in graph.initializer if value.name.endswith((".W", ".R"))]
    assert len(matrices) == 2 * exported.read(MODEL).config.network.layers
    for matrix in matrices:
        assert np.abs(matrix.astype(int)).max() == 2 ** (LSTM_BITS - 1) - 1
        assert np.iinfo(np.int16).max >= 2 * 255 * (2 ** (LSTM_BITS - 1) - 1)


def test_no_sum_of_two_products_of_int8_fine_overflows_16_bits() -> None:
    graph = to_onnx(exported.read(MODEL), "int8-fine").graph
    steps = [node.attribute[0].g for node in graph.node if node.op_type == "Scan"]
    matrices = [value for part in (graph, *steps) for value in part.initializer if value.data_type == TensorProto.INT8]
    assert len(matrices) == 2 * exported.read(MODEL).config.network.layers
    for matrix in matrices:
        largest = int(np.abs(onnx.numpy_helper.to_array(matrix).astype(int)).max())
        assert np.iinfo(np.int16).max >= 2 * DIGIT * largest


@pytest.mark.parametrize("length", [1, 2, 71, 72, 73, 1440, 1441, 1512, 1513, 5_000])
def test_pooling_equals_the_reference_for_texts_of_all_lengths(
    classifier: TextClassifier, length: int, tmp_path: Path
) -> None:
    model = exported.read(MODEL)
    ids = [[2, *np.random.default_rng(0).integers(2, 400, length - 1).tolist()]]
    result = engine(model, "float32", tmp_path).probabilities(ids)
    np.testing.assert_allclose(result, classifier.probabilities(ids), rtol=0, atol=SAME)
