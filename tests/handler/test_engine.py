"""The engine's file: refused, by name, when something is wrong with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE
from handler.exported import ExportedModelError
from tests.paths import MODEL


def other_model(folder: Path) -> None:
    """The graph stays; what describes it says that there are two labels."""
    path = folder / exported.CONFIG_FILE
    config = path.read_text().replace('"neutral",', "").replace("50,\n   3", "50,\n   2")
    path.write_text(config)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / GRAPH_FILE).unlink(), "network.onnx is missing; `python -m training archive`"),
        (lambda folder: (folder / GRAPH_FILE).write_bytes(b"PK\x03\x04"), "expected a graph that ONNX Runtime reads"),
        (lambda folder: (folder / GRAPH_FILE).write_bytes(b""), "expected a graph that ONNX Runtime reads"),
        (
            lambda folder: (folder / GRAPH_FILE).write_bytes((folder / GRAPH_FILE).read_bytes()[:-1000]),
            "expected a graph that ONNX Runtime reads",
        ),
        (other_model, r"output probabilities \(B, 2\); found"),
        (lambda folder: (folder / exported.VOCABULARY_FILE).write_text('["a"]'), "the vocabulary has 1 entries"),
    ],
)
def test_damage_is_named(unpacked: Path, tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    folder = Path(shutil.copytree(unpacked, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ExportedModelError, match=message):
        TextClassifier.load_archived(folder, threads=1)


def test_an_exported_model_is_not_an_archive() -> None:
    with pytest.raises(ExportedModelError, match=r"network.onnx is missing"):
        TextClassifier.load_archived(MODEL, threads=1)


def test_threads_change_no_answer(unpacked: Path, served: TextClassifier) -> None:
    texts = ["late again", "thank you " * 50]
    with_two = TextClassifier.load_archived(unpacked, threads=2).predict(texts)
    assert abs(with_two - served.predict(texts)).max() < 1e-5
