"""A teacher's stored predictions: each text is predicted once, by the teacher's present weights."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from training.stages import predictions as module
from training.stages.predictions import PREDICTIONS_FILE, predictions
from training.stages.products import TEACHER_FILE

LABELS = ["negative", "neutral", "positive"]


class Teacher:
    """Predicts the number of the characters of a text, and remembers the texts."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def predict(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        """Predict texts; "stop" interrupts."""
        if "stop" in texts:
            raise KeyboardInterrupt
        self.seen += texts
        return torch.tensor([[float(len(text)), 0, 1] for text in texts]), None


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teacher:
    (tmp_path / TEACHER_FILE).write_bytes(b"weights")
    teacher = Teacher()
    monkeypatch.setattr(module, "load_teacher", lambda *_: teacher)
    return teacher


def test_each_text_is_predicted_once(teacher: Teacher, tmp_path: Path) -> None:
    first = predictions(tmp_path, LABELS, ["ab", "a", "ab", "\ud800"])
    assert first.tolist() == [[2, 0, 1], [1, 0, 1], [2, 0, 1], [1, 0, 1]]
    assert first.dtype == np.float32
    assert predictions(tmp_path, LABELS, ["abc", "a"]).tolist() == [[3, 0, 1], [1, 0, 1]]
    assert teacher.seen == ["ab", "a", "\ud800", "abc"]


def test_an_interruption_keeps_what_was_stored(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(module, "CHECKPOINT_MINUTES", 0)
    with pytest.raises(KeyboardInterrupt):
        predictions(tmp_path, LABELS, ["a", "ab", "abc", "stop"])
    predictions(tmp_path, LABELS, ["a", "ab", "abc"])
    assert teacher.seen == ["a", "ab", "abc"]


def test_other_weights_predict_again(teacher: Teacher, tmp_path: Path) -> None:
    predictions(tmp_path, LABELS, ["a"])
    (tmp_path / TEACHER_FILE).write_bytes(b"other weights")
    predictions(tmp_path, LABELS, ["a"])
    assert teacher.seen == ["a", "a"]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []


def test_a_damaged_file_is_predicted_again(teacher: Teacher, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    expected = predictions(tmp_path, LABELS, ["a", "ab"])
    content = (tmp_path / PREDICTIONS_FILE).read_bytes()
    for damaged in (content[:-30], content[:9], b"", b"\0" * len(content)):
        (tmp_path / PREDICTIONS_FILE).write_bytes(damaged)
        assert (predictions(tmp_path, LABELS, ["a", "ab"]) == expected).all()
        assert "is damaged: all texts are predicted again" in capfd.readouterr().err


def test_a_run_stores_the_predictions_of_its_teacher(toy_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(toy_run / "run" / "teacher", folder)
    assert (folder / PREDICTIONS_FILE).is_file()
    generated = (toy_run / "run" / "generator" / "generated.txt").read_text(encoding="utf-8").splitlines()
    monkeypatch.setattr(module, "load_teacher", None)
    assert predictions(folder, LABELS, generated).sum(1) == pytest.approx(1, abs=1e-5)
