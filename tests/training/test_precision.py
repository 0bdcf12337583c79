"""Tests of the choice of an archive's precision, and of its entry in the card."""

import json
import os
import shutil
import subprocess
import zipfile
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handler import exported
from handler.exported import ExportedModel
from handler.task import Task
from tests.paths import MODEL, ROOT, TOY_TWEETS
from training import cli
from training.data import read_tweets
from training.export.precision import (
    PRECISION_FILE,
    Choice,
    Difference,
    choose,
    difference,
    is_close,
    read_choice,
    texts_within,
    write_choice,
)
from training.export.sample import Sample, synthetic_sample
from training.settings import MAX_DIFFERENCE


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample(tuple(read_tweets(TOY_TWEETS)["text"]), "toys")


def with_large_embeddings(model: ExportedModel, factor: float) -> ExportedModel:
    """Enlarge a few embeddings, which determine the one scale of int8."""
    embedding = model.weights["embedding.weight"].astype(np.float32)
    embedding[20::500] *= factor
    return replace(model, weights=model.weights | {"embedding.weight": embedding})


def with_a_large_head(model: ExportedModel) -> ExportedModel:
    """Scale the head, so that small differences of the states become large differences of the probabilities."""
    return replace(model, weights=model.weights | {"head.1.weight": model.weights["head.1.weight"] * np.float32(1_000)})


def test_labels_that_change_close_to_a_tie_are_counted_separately() -> None:
    expected = np.array([[0.6, 0.4], [0.51, 0.49], [0.3, 0.7], [0.9, 0.1]], np.float32)
    outputs = np.array([[0.6, 0.4], [0.49, 0.51], [0.7, 0.3], [0.8, 0.2]], np.float32)
    measured = difference(outputs, expected, Task(("a", "b")))
    assert (measured.texts, measured.labels_changed, measured.clear_labels_changed) == (4, 2, 1)
    assert measured.largest == pytest.approx(0.4)
    assert measured.mean == pytest.approx((0 + 0.02 + 0.4 + 0.1) / 4)
    assert measured.mean < measured.percentile_99 <= measured.largest


def test_a_multi_label_prediction_changes_at_its_threshold() -> None:
    expected = np.array([[0.6, 0.31], [0.6, 0.34], [0.5, 0.1]], np.float32)
    outputs = np.array([[0.6, 0.29], [0.6, 0.29], [0.4, 0.2]], np.float32)
    measured = difference(outputs, expected, Task(("a", "b"), "multi-label", (0.9, 0.3)))
    assert (measured.labels_changed, measured.clear_labels_changed) == (2, 1)


@pytest.mark.parametrize(("value_range", "share"), [(None, 0.5), ((0.0, 10.0), 0.1)])
def test_a_regressions_difference_is_a_share_of_the_range(
    value_range: tuple[float, float] | None, share: float
) -> None:
    expected, outputs = np.array([[2.0], [4.0]], np.float32), np.array([[2.0], [3.0]], np.float32)
    measured = difference(outputs, expected, Task((), "regression", (), value_range))
    assert measured.largest == pytest.approx(share)
    assert measured.labels_changed == 0
    assert "share of the range" in str(measured)


@pytest.mark.parametrize(
    ("largest", "clear", "is_synthetic", "held"),
    [
        (MAX_DIFFERENCE, 0, False, True),
        (MAX_DIFFERENCE + 0.001, 0, False, False),
        (MAX_DIFFERENCE, 1, False, False),
        (MAX_DIFFERENCE / 2, 0, True, True),
        (MAX_DIFFERENCE / 2 + 0.001, 0, True, False),
    ],
)
def test_an_estimate_counts_double(largest: float, clear: int, is_synthetic: bool, held: bool) -> None:
    measured = Difference(100, clear, clear, largest, mean=0.001, percentile_99=largest)
    assert is_close(measured, is_synthetic) is held


def test_int8_is_chosen_if_it_is_close(sample: Sample) -> None:
    choice = choose(exported.read(MODEL), sample)
    assert (choice.precision, choice.reason, list(choice.differences)) == (
        "int8",
        "int8 stays within 0.03 of float32",
        ["int8"],
    )


def test_the_embedded_models_archive_is_in_int8() -> None:
    model = exported.read(MODEL)
    assert choose(model, synthetic_sample(model)).precision == "int8"


def test_int8_fine_is_chosen_if_int8_is_not_close(sample: Sample) -> None:
    choice = choose(with_large_embeddings(exported.read(MODEL), 40), sample)
    assert choice.precision == "int8-fine"
    assert choice.differences["int8"].largest > MAX_DIFFERENCE >= choice.differences["int8-fine"].largest
    reason = f"int8 differs from float32 by up to {choice.differences['int8'].largest:.4f}, over the limit of 0.03; "
    assert choice.reason == f"{reason}int8-fine stays within 0.03 of float32"


def test_float32_is_chosen_for_a_small_network_if_int8_is_not_close(toy_run: Path, sample: Sample) -> None:
    choice = choose(with_a_large_head(exported.read(toy_run / "model")), sample)
    assert choice.precision == "float32"
    assert choice.reason.endswith("; int8-fine is no faster than float32 in a network of this size")
    assert list(choice.differences) == ["int8"]


def test_texts_are_measured_up_to_a_number_of_tokens() -> None:
    texts = [[number] * 10 for number in range(100)]
    assert texts_within(10_000, texts) == texts_within(1_000, texts)
    assert len(texts_within(1_000, texts)) == 100
    assert len(texts_within(555, texts)) == 55
    assert len(texts_within(5, texts)) == 1


@pytest.fixture
def model(toy_run: Path, tmp_path: Path) -> Path:
    """A small network for which an estimate gives float32, and the real texts give int8."""
    exported.write(with_a_large_head(exported.read(toy_run / "model")), tmp_path / "reviews")
    (tmp_path / "few.txt").write_text("thank you for the flight\n", encoding="utf-8")
    return tmp_path / "reviews"


def archived(model: Path, *options: object) -> dict[str, Any]:
    """Return the entry `archive` in the card of the model's archive."""
    assert cli.main(["archive", "--model", str(model), *map(str, options)]) == 0
    with zipfile.ZipFile(model.with_suffix(".mar")) as file:
        said: dict[str, Any] = json.loads(file.read("model/card.json"))["archive"]
    return said


def test_the_card_and_the_command_report_the_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    said = archived(model, "--texts", TOY_TWEETS)
    assert said["precision"] == "int8"
    assert said["reason"] == "int8 stays within 0.03 of float32"
    assert said["texts"] == {"source": TOY_TWEETS.name, "made_up": False}
    assert said["differences"]["int8"]["texts"] == len(read_tweets(TOY_TWEETS))
    printed = capsys.readouterr()
    assert f"{said['differences']['int8']['largest']:.4f}" in printed.out
    assert f"Measured on texts of {TOY_TWEETS.name}" in printed.out
    assert not printed.err


def test_without_texts_the_command_reports_an_estimate(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archived(model, "--precision", "int8")
    printed = capsys.readouterr()
    assert "an estimate on texts made up of the vocabulary's words" in printed.out
    assert "--texts FILE" in printed.out
    assert "warning: in int8, a probability may differ by more than" in printed.err


def test_float32_by_an_estimate_is_explained_with_a_remedy(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = archived(model)
    largest = said["differences"]["int8"]["largest"]
    first, _, last = capsys.readouterr().out.splitlines()
    assert (
        f" in float32: int8 may differ from float32 by up to {2 * largest:.4f} (twice the estimate of {largest:.4f}), "
        f"over the limit of 0.03; int8-fine is no faster than float32 in a network of this size."
    ) in first
    assert "To use int8 if it is close enough on your own texts" in last
    assert last.endswith("build the archive again with --texts FILE (with make: TEXTS=FILE).")
    assert not (model / PRECISION_FILE).exists()


def test_a_choice_on_real_texts_is_stored_with_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = archived(model, "--texts", model.with_name("few.txt"))
    assert first["precision"] == "int8"
    content = (model / PRECISION_FILE).read_text(encoding="utf-8")
    assert json.loads(content) == first
    assert first["identity"] == exported.identity(model)
    assert "flight" not in content
    capsys.readouterr()
    assert archived(model) == first
    printed = capsys.readouterr()
    assert f"Measured earlier on texts of few.txt ({model / PRECISION_FILE})." in printed.out
    assert "With only one text, the measurement can miss a larger difference." in printed.out
    assert not printed.err
    assert archived(model, "--texts", TOY_TWEETS)["precision"] == "float32"
    assert archived(model)["precision"] == "float32"


def test_a_given_precision_is_used_and_not_stored(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archived(model, "--texts", model.with_name("few.txt"))
    content = (model / PRECISION_FILE).read_text(encoding="utf-8")
    capsys.readouterr()
    assert archived(model, "--precision", "int8")["reason"] == "as asked for"
    assert "Measured earlier on texts of few.txt" in capsys.readouterr().out
    assert archived(model, "--precision", "float32")["precision"] == "float32"
    archived(model, "--precision", "float32", "--texts", TOY_TWEETS)
    assert (model / PRECISION_FILE).read_text(encoding="utf-8") == content


def test_a_stored_choice_of_another_model_is_ignored(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archived(model, "--texts", model.with_name("few.txt"))
    exported.write(with_a_large_head(exported.read(model)), model)
    said = archived(model)
    assert (said["precision"], said["texts"]["made_up"]) == ("float32", True)
    assert f"note: {model / PRECISION_FILE} is ignored: it was measured on another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value | {"precision": "int4"},
        lambda value: value | {"differences": {"int8": {"task": "single-label"}}},
        lambda value: value | {"differences": {"int8": {"task": "other"}}},
        lambda value: value | {"texts": "few.txt"},
        lambda value: {},
        lambda value: [value],
        lambda value: None,
    ],
)
def test_a_damaged_stored_choice_is_ignored(change: Any, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / PRECISION_FILE
    write_choice(Choice("int8", "a test", "few.txt"), model)
    assert read_choice(model) is not None
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    assert read_choice(model) is None
    path.write_bytes(b"\xff{")
    assert read_choice(model) is None
    assert capsys.readouterr().err.count("is ignored: expected a file that `archive --texts` writes.") == 2


def test_a_source_whose_name_is_not_utf_8_is_stored(model: Path) -> None:
    write_choice(Choice("int8", "a test", b"caf\xe9.txt".decode("utf-8", "surrogateescape")), model)
    before = read_choice(model)
    assert before is not None
    assert before.source == r"caf\udce9.txt"


def test_the_archive_is_built_if_the_choice_cannot_be_stored(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / PRECISION_FILE).mkdir()
    assert archived(model, "--texts", model.with_name("few.txt"))["precision"] == "int8"
    assert f"note: {model / PRECISION_FILE} cannot be written" in capsys.readouterr().err


def test_make_rebuilds_an_archive_after_a_new_measurement(model: Path) -> None:
    archived(model, "--texts", model.with_name("few.txt"))

    def would_build() -> bool:
        command = ["make", "--dry-run", "archive", f"MODEL={model}"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return "training archive" in result.stdout

    assert not would_build()
    archive = model.with_suffix(".mar").stat().st_mtime
    os.utime(model / PRECISION_FILE, (archive + 1, archive + 1))
    assert would_build()
    archived(model)
    os.utime(model.with_suffix(".mar"), (archive + 2, archive + 2))
    assert not would_build()


def test_the_image_is_built_with_the_stored_choice() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = lines[lines.index("!model_store") + 1 :]
    assert not [line for line in left_out if fnmatch(f"model_store/reviews/{PRECISION_FILE}", line)]
