"""Tests of calibration: the fit, the rows that it may use, and the exported weights."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text.all import DataLoaders, Learner
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import nn

from training.cross_validation import FIGURES, Recipe, Trained, cross_validate
from training.stages.calibration import LARGEST_BIAS, best_calibration, calibrate_and_round, calibrated_apart
from training.stages.distil import truncate_outputs
from training.stages.targets import soft_cross_entropy
from training.templates import LABELS

Drawn = tuple[NDArray[np.float64], NDArray[np.float64]]

BIASES = np.array([0.3, -0.2, -0.1])


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Logits, and labels drawn from their probabilities."""
    dice = np.random.default_rng(0)
    logits = log_softmax(dice.normal(size=(20_000, 3)), axis=1)
    labels = [dice.choice(3, p=row) for row in np.exp(logits)]
    return logits, np.eye(3)[labels]


def test_the_best_calibration_inverts_a_distortion(drawn: Drawn) -> None:
    logits, targets = drawn
    temperature, biases = best_calibration(3 * (logits - BIASES), targets)
    assert temperature == pytest.approx(3, rel=0.05)
    assert biases == pytest.approx(BIASES, abs=0.06)


@pytest.mark.parametrize("rows", range(7))
def test_few_targets_or_a_missing_label_stay_within_bounds(rows: int) -> None:
    logits, targets = np.zeros((rows, 3)), np.eye(3)[[0, 1] * rows][:rows]
    _, biases = best_calibration(logits, targets)
    assert np.ptp(biases) <= 2 * LARGEST_BIAS + 1e-9
    assert biases.sum() == pytest.approx(0)
    assert calibrated_apart(logits, targets).sum(1) == pytest.approx(1)


def test_no_row_is_calibrated_with_its_own_target(drawn: Drawn) -> None:
    logits, targets = drawn[0][:50], drawn[1][:50]
    before = calibrated_apart(logits, targets)
    for row in range(len(logits)):
        other_rows = targets.copy()
        other_rows[row] = np.roll(other_rows[row], 1)
        after = calibrated_apart(logits, other_rows)
        assert after[row] == pytest.approx(before[row], abs=1e-12)
        assert not np.allclose(after, before, atol=1e-4)


def test_an_earlier_calibration_has_no_influence(drawn: Drawn) -> None:
    logits, targets = drawn[0][:2_000], drawn[1][:2_000]
    calibrated = np.log(softmax(logits / 1.7 + BIASES, axis=1))
    assert calibrated_apart(calibrated, targets) == pytest.approx(calibrated_apart(logits, targets), abs=1e-4)


def test_the_calibration_is_in_the_exported_weights() -> None:
    """Labels are drawn from a distorted distribution of the network, which its outputs must equal after calibration."""
    torch.manual_seed(0)
    last = nn.Linear(8, 5, bias=False)
    layers = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), last).eval()
    features = torch.randn(4_000, 8)
    with torch.no_grad():
        expected = (layers(features)[:, :3] / 2 + torch.tensor(BIASES)).softmax(1)
    targets = torch.eye(3)[torch.multinomial(expected, 1)[:, 0]]
    rows = list(zip(features, targets, strict=True))
    learner = Learner(
        DataLoaders.from_dsets(rows[:10], rows, bs=500),
        layers,
        loss_func=lambda outputs, targets: soft_cross_entropy(outputs[:, :3], targets),
    )
    result = calibrate_and_round(learner, labels=3)
    assert result["temperature"] == pytest.approx(2, rel=0.15)
    assert result["biases"] == pytest.approx(BIASES, abs=0.1)
    assert result["apart"]["accuracy"] == pytest.approx(
        float((expected.argmax(1) == targets.argmax(1)).float().mean()), abs=0.01
    )
    with torch.no_grad():
        outputs = layers.eval()(features)[:, :3]
    temperature, biases = best_calibration(outputs.numpy(), targets.numpy())
    assert temperature == pytest.approx(1, abs=1e-3)
    assert biases == pytest.approx(0, abs=1e-3)
    assert torch.equal(last.weight, last.weight.half().float())
    truncate_outputs(layers, 3)
    with torch.no_grad():
        assert layers(features).numpy() == pytest.approx(outputs.numpy(), abs=1e-5)


def test_cross_validation_calibrates_on_other_rows(drawn: Drawn) -> None:
    """A recipe with a bias towards a label has the same figures as without, as both are calibrated on other rows."""
    logits, targets = drawn[0][:2_000], drawn[1][:2_000]
    texts = [f"text {row}" for row in range(len(logits))]
    tweets = pd.DataFrame({"text": texts, "label": [LABELS[row] for row in targets.argmax(1)], "split": "train"})
    tweets.loc[::5, "split"] = "validation"
    of_text = dict(zip(texts, logits, strict=True))

    def leaning_by(lean: float) -> Recipe:
        def predict(texts: list[str]) -> NDArray[np.float64]:
            leaning: NDArray[np.float64] = softmax([of_text[text] + lean * np.eye(3)[0] for text in texts], axis=1)
            return leaning

        return lambda _index, _fold: Trained(predict, minutes=0, megabytes=0, calibrated=True)

    upright, leaning = (cross_validate(tweets, leaning_by(lean)) for lean in (0, 0.7))
    for figure in FIGURES[:3]:
        assert leaning[figure]["folds"] == pytest.approx(upright[figure]["folds"], abs=1e-3)
