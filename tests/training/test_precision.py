"""Which precision an archive gets, and what its card says of it."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from handler import exported
from handler.exported import ExportedModel
from handler.task import Task
from tests.paths import MODEL, TOY_TWEETS
from training import cli
from training.data import read_tweets
from training.export.precision import FAR_OFF, Difference, choose, difference, holds, texts_within
from training.export.sample import Sample, made_up


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
        (FAR_OFF, 0, False, True),
        (FAR_OFF + 0.001, 0, False, False),
        (FAR_OFF, 1, False, False),
        (FAR_OFF / 2, 0, True, True),
        (FAR_OFF / 2 + 0.001, 0, True, False),
    ],
)
def test_an_estimate_counts_double(largest: float, clear: int, is_made_up: bool, held: bool) -> None:
    of = Difference(100, clear, clear, largest, mean=0.001, percentile_99=largest)
    assert holds(of, Sample(("a",), "somewhere", is_made_up)) is held


def test_int8_is_chosen_where_it_holds(sample: Sample) -> None:
    choice = choose(exported.read(MODEL), sample)
    assert (choice.precision, choice.reason, list(choice.differences)) == ("int8", "int8 holds", ["int8"])


def test_the_embedded_models_archive_is_in_int8() -> None:
    model = exported.read(MODEL)
    assert choose(model, made_up(model)).precision == "int8"


def test_int8_fine_is_chosen_where_int8_does_not_hold(sample: Sample) -> None:
    choice = choose(with_large_embeddings(exported.read(MODEL), 40), sample)
    assert choice.precision == "int8-fine"
    assert choice.differences["int8"].largest > FAR_OFF >= choice.differences["int8-fine"].largest


def test_a_small_network_that_int8_does_not_fit_is_in_float32(toy_run: Path, sample: Sample) -> None:
    choice = choose(with_a_large_head(exported.read(toy_run / "model")), sample)
    assert choice.precision == "float32"
    assert "int8 does not hold" in choice.reason
    assert list(choice.differences) == ["int8"]


def test_texts_are_measured_up_to_a_number_of_tokens() -> None:
    texts = [[number] * 10 for number in range(100)]
    assert texts_within(10_000, texts) == texts_within(1_000, texts)
    assert len(texts_within(1_000, texts)) == 100
    assert len(texts_within(555, texts)) == 55
    assert len(texts_within(5, texts)) == 1


def test_the_card_and_the_command_say_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "new.mar"
    command = ["archive", "--model", str(MODEL), "--to", str(archive), "--texts", str(TOY_TWEETS)]
    assert cli.main(command) == 0
    with zipfile.ZipFile(archive) as file:
        said = json.loads(file.read("model/card.json"))["archive"]
    assert said["precision"] == "int8"
    assert said["reason"] == "int8 holds"
    assert said["texts"] == {"source": TOY_TWEETS.name, "made_up": False}
    assert said["differences"]["int8"]["texts"] == len(read_tweets(TOY_TWEETS))
    printed = capsys.readouterr()
    assert f"{said['differences']['int8']['largest']:.4f}" in printed.out
    assert f"Measured on texts of {TOY_TWEETS.name}" in printed.out
    assert not printed.err


def test_without_texts_the_command_says_that_it_estimates(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported.write(with_a_large_head(exported.read(toy_run / "model")), tmp_path / "model")
    command = ["archive", "--model", str(tmp_path / "model"), "--precision", "int8"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "an estimate, on texts made up of the vocabulary's words" in printed.out
    assert "--texts FILE" in printed.out
    assert "warning: int8 may differ by more than" in printed.err
