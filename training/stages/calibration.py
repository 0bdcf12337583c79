"""What is fitted on the validation split after training: bias-corrected temperature scaling.

The network takes too few tweets for the rarer labels. One number added to each label's logit, beside the temperature,
makes its cross-validated accuracy, macro-F1 and cross-entropy better (`training/README.md`).
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

from training.measure.evaluate import figures

Floats = NDArray[np.floating[Any]]

PARTS = 5
"""Every fifth row is one: `training.stages.tfidf.held_out_fifths` wants five rows of a label, and a split may
have less."""
TEMPERATURES = (math.exp(-2), math.exp(2))
LARGEST_BIAS = 0.5
"""Before their mean is taken away: no odds between two labels change by more than a factor of e. A validation split of
a few dozen texts says little of how many texts of a label there are, and one without a label nothing."""


def best_calibration(logits: Floats, targets: Floats) -> tuple[float, Floats]:
    """The number that logits are best divided by, and those best added then, for the likelihood of the targets.

    Temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017) with a bias for each label
    (BCTS in Alexandari, Kundaje and Shrikumar, "Maximum Likelihood with Bias-Corrected Calibration is Hard-To-Beat at
    Label Shift Adaptation", ICML 2020).

    Args:
        logits: (n, C), or the logarithms of probabilities.
        targets: distributions, (n, C).

    Returns:
        the temperature, and the biases, (C,), whose mean is 0.
    """
    logits = np.asarray(logits, dtype=np.float64)

    def loss(numbers: Floats) -> float:
        calibrated = logits / math.exp(numbers[0]) + numbers[1:]
        return float(-(targets * log_softmax(calibrated, axis=1)).sum())

    labels = logits.shape[1]
    bounds = [tuple(map(math.log, TEMPERATURES)), *[(-LARGEST_BIAS, LARGEST_BIAS)] * labels]
    found = minimize(loss, np.zeros(1 + labels), method="L-BFGS-B", bounds=bounds).x
    return math.exp(found[0]), found[1:] - found[1:].mean()


def calibrated_apart(logits: Floats, targets: Floats) -> Floats:
    """Probabilities, each by a calibration that has not seen the row's target: every fifth row by the other rows'.

    Logits that have been calibrated before give what the original ones give, whatever that calibration saw: dividing
    and shifting them once more reaches the same (within the bounds).

    Args:
        logits: (n, C), or the logarithms of probabilities.
        targets: distributions, (n, C).

    Returns:
        (n, C).
    """
    found = np.zeros(logits.shape)
    part = np.arange(len(logits)) % PARTS
    for held_out in (part == number for number in range(PARTS)):
        temperature, biases = best_calibration(logits[~held_out], targets[~held_out])
        found[held_out] = softmax(logits[held_out] / temperature + biases, axis=1)
    return found


@torch.no_grad()
def calibrate_and_round(learner: Learner, labels: int) -> dict[str, Any]:
    """Calibrate on the validation split and round to half precision, so that the exported file is exact.

    The last layer's weights carry the temperature. It has no bias, so that of the batch normalization before it
    carries the labels'.

    Args:
        labels: how many of the outputs are the labels', the first ones.

    Returns:
        the temperature, the biases in the labels' order, and under `apart` what the split's figures would be if every
        fifth text were calibrated by the others.
    """
    with learner.no_bar(), learner.no_logging():
        logits, targets = learner.get_preds(dl=learner.dls.valid, act=nn.Identity())
    of_labels, wanted = logits[:, :labels].numpy(), targets[:, :labels].numpy()
    temperature, biases = best_calibration(of_labels, wanted)
    names = [str(label) for label in range(labels)]
    apart = figures([names[label] for label in wanted.argmax(1)], calibrated_apart(of_labels, wanted), names)
    modules = list(learner.model.modules())
    [*_, last] = [module for module in modules if isinstance(module, nn.Linear)]
    [*_, before] = [module for module in modules if isinstance(module, nn.BatchNorm1d)]
    last.weight /= temperature
    for module in modules:
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, nn.BatchNorm1d):  # its few numbers can stay as they are
                parameter.copy_(parameter.half())
    before.bias.add_(torch.linalg.pinv(last.weight[:labels]) @ torch.from_numpy(biases).to(last.weight))
    return {
        "temperature": temperature,
        "biases": [round(bias, 6) for bias in biases.tolist()],
        "apart": {name: apart[name] for name in ("accuracy", "macro_f1", "expected_calibration_error")},
    }
