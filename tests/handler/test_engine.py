"""The engine: an error names a damaged file, and its memory usage does not grow."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE
from handler.exported import ExportedModelError
from handler.limits import THREADS_VARIABLE, whole_number
from tests.paths import MODEL, ROOT


def other_model(folder: Path) -> None:
    """Change the description of the model to two labels, and keep its graph."""
    path = folder / exported.CONFIG_FILE
    config = path.read_text().replace('"neutral",', "").replace("50,\n   3", "50,\n   2")
    path.write_text(config)
    (folder / exported.CARD_FILE).write_text("{}")


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
def test_an_error_names_the_damaged_file(
    unpacked: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = Path(shutil.copytree(unpacked, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ExportedModelError, match=message):
        TextClassifier.load_archived(folder, threads=1)


def test_an_exported_model_is_not_an_archive() -> None:
    with pytest.raises(ExportedModelError, match=r"network.onnx is missing"):
        TextClassifier.load_archived(MODEL, threads=1)


def test_the_number_of_threads_changes_no_probability(unpacked: Path, served: TextClassifier) -> None:
    texts = ["late again", "thank you " * 50]
    with_two = TextClassifier.load_archived(unpacked, threads=2).predict(texts)
    assert abs(with_two - served.predict(texts)).max() < 1e-5


MEMORY = """
import sys
from pathlib import Path
import psutil
from handler.classifier import TextClassifier

classifier = TextClassifier.load_archived(Path(sys.argv[1]), threads=1)
classifier.warm_up()
for last in (20_000, 200_000):
    for number in range(last):
        classifier.ids(f"q{number:x}w{last}")
        if number % (last // 100) == 0:
            classifier.predict(["late again " * (number // (last // 100))])
    print(psutil.Process().memory_info().rss / 1e6)
"""
FLAT_MEGABYTES = 15


def test_memory_does_not_grow_with_new_words_and_lengths(unpacked: Path) -> None:
    """Measure in a separate process, because the memory of the test process changes for other reasons."""
    command = [sys.executable, "-c", MEMORY, str(unpacked)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    before, after = map(float, result.stdout.split())
    assert after - before < FLAT_MEGABYTES


@pytest.mark.parametrize("value", ["0", "4,2", "many"])
def test_an_error_names_an_invalid_number_of_threads(value: str) -> None:
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS must be a whole number above 0 .*, not '{value}'"):
        whole_number(THREADS_VARIABLE, 1, {THREADS_VARIABLE: value})
    assert whole_number(THREADS_VARIABLE, 1, {THREADS_VARIABLE: ""}) == 1
