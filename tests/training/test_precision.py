"""Which precision an archive gets, and what its card says of it."""

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
    """A few, which set int8's one scale for all."""
    embedding = model.weights["embedding.weight"].astype(np.float32)
    embedding[20::500] *= factor
    return replace(model, weights=model.weights | {"embedding.weight": embedding})


def with_a_large_head(model: ExportedModel) -> ExportedModel:
    """Small differences in the states become large ones in the probabilities."""
    return replace(model, weights=model.weights | {"head.1.weight": model.weights["head.1.weight"] * np.float32(1_000)})


def test_a_difference_counts_labels_that_change_near_a_tie_apart() -> None:
    expected = np.array([[0.6, 0.4], [0.51, 0.49], [0.3, 0.7], [0.9, 0.1]], np.float32)
    found = np.array([[0.6, 0.4], [0.49, 0.51], [0.7, 0.3], [0.8, 0.2]], np.float32)
    of = difference(found, expected, Task(("a", "b")))
    assert (of.texts, of.labels_changed, of.clear_labels_changed) == (4, 2, 1)
    assert of.largest == pytest.approx(0.4)
    assert of.mean == pytest.approx((0 + 0.02 + 0.4 + 0.1) / 4)
    assert of.mean < of.percentile_99 <= of.largest


def test_a_label_of_several_changes_at_its_threshold() -> None:
    expected = np.array([[0.6, 0.31], [0.6, 0.34], [0.5, 0.1]], np.float32)
    found = np.array([[0.6, 0.29], [0.6, 0.29], [0.4, 0.2]], np.float32)
    of = difference(found, expected, Task(("a", "b"), "multi-label", (0.9, 0.3)))
    assert (of.labels_changed, of.clear_labels_changed) == (2, 1)


@pytest.mark.parametrize(("value_range", "share"), [(None, 0.5), ((0.0, 10.0), 0.1)])
def test_a_values_difference_is_a_share_of_their_range(value_range: tuple[float, float] | None, share: float) -> None:
    expected, found = np.array([[2.0], [4.0]], np.float32), np.array([[2.0], [3.0]], np.float32)
    of = difference(found, expected, Task((), "regression", (), value_range))
    assert of.largest == pytest.approx(share)
    assert of.labels_changed == 0
    assert "share of the range" in str(of)


@pytest.mark.parametrize(
    ("largest", "clear", "is_made_up", "held"),
    [
        (MAX_DIFFERENCE, 0, False, True),
        (MAX_DIFFERENCE + 0.001, 0, False, False),
        (MAX_DIFFERENCE, 1, False, False),
        (MAX_DIFFERENCE / 2, 0, True, True),
        (MAX_DIFFERENCE / 2 + 0.001, 0, True, False),
    ],
)
def test_an_estimate_counts_double(largest: float, clear: int, is_made_up: bool, held: bool) -> None:
    of = Difference(100, clear, clear, largest, mean=0.001, percentile_99=largest)
    assert is_close(of, is_made_up) is held


def test_int8_is_chosen_where_it_holds(sample: Sample) -> None:
    choice = choose(exported.read(MODEL), sample)
    assert (choice.precision, choice.reason, list(choice.differences)) == (
        "int8",
        "int8 stays within 0.03 of float32",
        ["int8"],
    )


def test_the_embedded_models_archive_is_in_int8() -> None:
    model = exported.read(MODEL)
    assert choose(model, synthetic_sample(model)).precision == "int8"


def test_int8_fine_is_chosen_where_int8_does_not_hold(sample: Sample) -> None:
    choice = choose(with_large_embeddings(exported.read(MODEL), 40), sample)
    assert choice.precision == "int8-fine"
    assert choice.differences["int8"].largest > MAX_DIFFERENCE >= choice.differences["int8-fine"].largest
    told = f"int8 differs from float32 by up to {choice.differences['int8'].largest:.4f}, over the limit of 0.03; "
    assert choice.reason == f"{told}int8-fine stays within 0.03 of float32"


def test_a_small_network_that_int8_does_not_fit_is_in_float32(toy_run: Path, sample: Sample) -> None:
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
    """A small network that an estimate puts into float32, and these texts into int8."""
    exported.write(with_a_large_head(exported.read(toy_run / "model")), tmp_path / "reviews")
    (tmp_path / "few.txt").write_text("thank you for the flight\n", encoding="utf-8")
    return tmp_path / "reviews"


def archived(model: Path, *options: object) -> dict[str, Any]:
    """What the card of the model's archive says of it."""
    assert cli.main(["archive", "--model", str(model), *map(str, options)]) == 0
    with zipfile.ZipFile(model.with_suffix(".mar")) as file:
        said: dict[str, Any] = json.loads(file.read("model/card.json"))["archive"]
    return said


def test_the_card_and_the_command_say_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_without_texts_the_command_says_that_it_estimates(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archived(model, "--precision", "int8")
    printed = capsys.readouterr()
    assert "an estimate, on texts made up of the vocabulary's words" in printed.out
    assert "--texts FILE" in printed.out
    assert "warning: int8 may differ by more than" in printed.err


def test_who_gets_float32_by_an_estimate_reads_why_and_what_to_do(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = archived(model)
    largest = said["differences"]["int8"]["largest"]
    first, _, last = capsys.readouterr().out.splitlines()
    assert (
        f" in float32: int8 may differ from float32 by up to {2 * largest:.4f} (twice the estimate of {largest:.4f}), "
        f"over the limit of 0.03; int8-fine is no faster than float32 in a network of this size."
    ) in first
    assert "To get int8, which is smaller and faster, if it is close enough on texts of your own" in last
    assert last.endswith("build the archive again with --texts FILE (with make: TEXTS=FILE).")
    assert not (model / PRECISION_FILE).exists()


def test_what_texts_decided_stays_with_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = archived(model, "--texts", model.with_name("few.txt"))
    assert first["precision"] == "int8"
    content = (model / PRECISION_FILE).read_text(encoding="utf-8")
    assert json.loads(content) == first
    assert first["identity"] == exported.identity(model)
    assert "flight" not in content
    capsys.readouterr()
    assert archived(model) == first
    printed = capsys.readouterr()
    assert f"Measured before on texts of few.txt ({model / PRECISION_FILE})." in printed.out
    assert "With so few texts (1), a larger difference can go unseen: measure on some hundreds." in printed.out
    assert not printed.err
    assert archived(model, "--texts", TOY_TWEETS)["precision"] == "float32"
    assert archived(model)["precision"] == "float32"


def test_a_precision_that_is_asked_for_wins_and_is_not_kept(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archived(model, "--texts", model.with_name("few.txt"))
    content = (model / PRECISION_FILE).read_text(encoding="utf-8")
    capsys.readouterr()
    assert archived(model, "--precision", "int8")["reason"] == "as asked for"
    assert "Measured before on texts of few.txt" in capsys.readouterr().out
    assert archived(model, "--precision", "float32")["precision"] == "float32"
    archived(model, "--precision", "float32", "--texts", TOY_TWEETS)
    assert (model / PRECISION_FILE).read_text(encoding="utf-8") == content


def test_what_was_measured_on_another_model_is_ignored(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_damaged_file_is_ignored(change: Any, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / PRECISION_FILE
    write_choice(Choice("int8", "a test", "few.txt"), model)
    assert read_choice(model) is not None
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    assert read_choice(model) is None
    path.write_bytes(b"\xff{")
    assert read_choice(model) is None
    assert capsys.readouterr().err.count("is ignored: expected what `archive --texts` writes.") == 2


def test_a_texts_file_whose_name_is_no_utf_8_is_kept(model: Path) -> None:
    write_choice(Choice("int8", "a test", b"caf\xe9.txt".decode("utf-8", "surrogateescape")), model)
    before = read_choice(model)
    assert before is not None
    assert before.source == r"caf\udce9.txt"


def test_where_the_choice_cannot_be_kept_the_archive_is_made(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / PRECISION_FILE).mkdir()
    assert archived(model, "--texts", model.with_name("few.txt"))["precision"] == "int8"
    assert f"note: {model / PRECISION_FILE} cannot be written" in capsys.readouterr().err


def test_make_builds_an_archive_again_if_its_precision_was_measured_since(model: Path) -> None:
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


def test_the_image_is_built_with_what_was_measured() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    left_out = lines[lines.index("!model_store") + 1 :]
    assert not [line for line in left_out if fnmatch(f"model_store/reviews/{PRECISION_FILE}", line)]
