"""Calibration on the validation split after training: bias-corrected temperature scaling.

The network predicts the rarer labels too seldom. A bias for each label's logit, in addition to the temperature,
improves the cross-validated accuracy, macro-F1 and cross-entropy (`docs/EXPERIMENTS.md`).
"""

import math
from typing import Any

import numpy as np
import torch
from fastai.text.all import Learner
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import nn

from training.measure.figures import figures

Floats = NDArray[np.floating[Any]]

PARTS = 5
"""Number of parts in `calibrated_apart`: every fifth row is in the same part.

`training.stages.tfidf.held_out_fifths` does not fit here: it needs five rows of each label, and a split may have fewer.
"""

TEMPERATURES = (math.exp(-2), math.exp(2))
"""Bounds of the temperature."""

LARGEST_BIAS = 0.5
"""Bound of a bias, before the mean of the biases is subtracted: the odds of two labels change by at most a factor of e.

A validation split of a few dozen texts does not determine how frequent a label is, and says nothing about a label that
it does not contain.
"""


def best_calibration(logits: Floats, targets: Floats) -> tuple[float, Floats]:
    """Fit a temperature and a bias for each label that maximize the likelihood of the targets.

    The calibrated logits are `logits / temperature + biases`. Source: temperature scaling (Guo et al., "On Calibration
    of Modern Neural Networks", ICML 2017) with a bias for each label (BCTS in Alexandari, Kundaje and Shrikumar,
    "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation", ICML 2020).

    Args:
        logits: logits, or logarithms of probabilities, (n, C).
        targets: target distributions, (n, C).

    Returns:
        The temperature, and the biases (C,), whose mean is 0.
    """
    logits = np.asarray(logits, dtype=np.float64)

    def loss(parameters: Floats) -> float:
        calibrated = logits / math.exp(parameters[0]) + parameters[1:]
        return float(-(targets * log_softmax(calibrated, axis=1)).sum())

    labels = logits.shape[1]
    bounds = [tuple(map(math.log, TEMPERATURES)), *[(-LARGEST_BIAS, LARGEST_BIAS)] * labels]
    log_temperature, *biases = minimize(loss, np.zeros(1 + labels), method="L-BFGS-B", bounds=bounds).x
    return math.exp(log_temperature), np.array(biases) - np.mean(biases)


def calibrated_apart(logits: Floats, targets: Floats) -> Floats:
    """Calibrate every fifth row with a calibration fitted on the other rows, which has not seen the row's target.

    An earlier calibration of the logits has no influence, whatever rows it was fitted on: the new division and shift
    reach the same result (within the bounds).

    Args:
        logits: logits, or logarithms of probabilities, (n, C).
        targets: target distributions, (n, C).

    Returns:
        Calibrated probabilities, (n, C).
    """
    probabilities = np.zeros(logits.shape)
    part = np.arange(len(logits)) % PARTS
    for held_out in (part == number for number in range(PARTS)):
        temperature, biases = best_calibration(logits[~held_out], targets[~held_out])
        probabilities[held_out] = softmax(logits[held_out] / temperature + biases, axis=1)
    return probabilities


@torch.no_grad()
def calibrate_and_round(learner: Learner, labels: int) -> dict[str, Any]:
    """Calibrate on the validation split, and round the weights to half precision, in which the export stores them.

    The weights of the last layer are divided by the temperature. The last layer has no bias, so the labels' biases go
    into the shift of the batch normalization before it.

    Args:
        learner: the trained learner, which is changed.
        labels: number of labels; their logits are the first outputs.

    Returns:
        The entries for the stage's record: `temperature`, `biases` in the order of the labels, and `apart`, figures of
        the validation split where every fifth text is calibrated with the others (`calibrated_apart`).
    """
    with learner.no_bar(), learner.no_logging():
        logits, targets = learner.get_preds(dl=learner.dls.valid, act=nn.Identity())
    label_logits, label_targets = logits[:, :labels].numpy(), targets[:, :labels].numpy()
    temperature, biases = best_calibration(label_logits, label_targets)
    names = [str(label) for label in range(labels)]
    true = [names[label] for label in label_targets.argmax(1)]
    apart = figures(true, calibrated_apart(label_logits, label_targets), names)
    modules = list(learner.model.modules())
    [*_, last] = [module for module in modules if isinstance(module, nn.Linear)]
    [*_, normalization] = [module for module in modules if isinstance(module, nn.BatchNorm1d)]
    last.weight /= temperature
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, nn.BatchNorm1d):  # its few parameters stay in float32
                parameter.copy_(parameter.half())
    normalization.bias.add_(torch.linalg.pinv(last.weight[:labels]) @ torch.from_numpy(biases).to(last.weight))
    return {
        "temperature": temperature,
        "biases": [round(bias, 6) for bias in biases.tolist()],
        "apart": {name: apart[name] for name in ("accuracy", "macro_f1", "expected_calibration_error")},
    }
