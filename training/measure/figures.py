"""Figures of a classifier's probabilities against true labels: accuracy, F1, calibration, confusion matrix.

Computed with NumPy only, so that `python -m training evaluate` runs with the packages of serving. The definitions are
those of scikit-learn (`sklearn.metrics`), which the tests compare.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS: Final = 15
"""Number of bins of equal width, from 0 to 1, of the predicted label's probability."""


def figures(true: Sequence[str], probabilities: NDArray[np.floating[Any]], labels: Sequence[str]) -> dict[str, Any]:
    """Compute figures of probabilities (n, C) against true labels.

    Precision, recall and F1 are 0 where their denominator is 0.

    Args:
        true: the true label of each text.
        probabilities: the predicted probabilities, (n, C).
        labels: the labels in the order of the columns; each true label must be among them.

    Returns:
        - n: number of texts
        - accuracy, macro_f1, expected_calibration_error: see `reliability` for the last one
        - labels
        - per_class: precision, recall, f1 and support (number of texts) by label
        - confusion_matrix: rows are true labels, columns are predicted labels, both in the order of `labels`
        - reliability: number, mean confidence and accuracy of each bin that is not empty
    """
    ids = {label: index for index, label in enumerate(labels)}
    true_ids, predicted = np.array([ids[label] for label in true]), probabilities.argmax(1)
    matrix = np.zeros((len(labels), len(labels)), int)
    np.add.at(matrix, (true_ids, predicted), 1)
    hits, support, predictions = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    precision, recall = _ratio(hits, predictions), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predictions)
    bins = reliability(probabilities.max(1), predicted == true_ids)
    return {
        "n": len(true),
        "accuracy": rounded(hits.sum() / len(true)),
        "macro_f1": rounded(f1.mean()),
        "expected_calibration_error": rounded(
            sum(n * abs(confidence - accuracy) for n, confidence, accuracy in bins) / len(true)
        ),
        "labels": list(labels),
        "per_class": {
            label: {
                "precision": rounded(precision[index]),
                "recall": rounded(recall[index]),
                "f1": rounded(f1[index]),
                "support": int(support[index]),
            }
            for index, label in enumerate(labels)
        },
        "confusion_matrix": matrix.tolist(),
        "reliability": [[n, rounded(confidence), rounded(accuracy)] for n, confidence, accuracy in bins],
    }


def reliability(
    confidences: NDArray[np.floating[Any]], hits: NDArray[np.bool_], bins: int = CALIBRATION_BINS
) -> list[tuple[int, float, float]]:
    """Compute number, mean confidence and accuracy of the texts in each bin of equal width that is not empty.

    The mean of |confidence - accuracy|, weighted by number, is the expected calibration error (Guo et al., "On
    Calibration of Modern Neural Networks", ICML 2017, section 2).

    Args:
        confidences: the predicted label's probability, (n,).
        hits: whether the predicted label is the true one, (n,).
        bins: number of bins.
    """
    index = np.minimum((confidences * bins).astype(int), bins - 1)
    return [
        (int(inside.sum()), float(confidences[inside].mean()), float(hits[inside].mean()))
        for inside in (index == bin_index for bin_index in range(bins))
        if inside.any()
    ]


def rounded(value: float) -> float:
    """Round a figure to 6 decimal places, as the model's card has it."""
    return round(float(value), 6)


def _ratio(numerator: NDArray[np.int_], denominator: NDArray[np.int_]) -> NDArray[np.float64]:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
