"""The picture of the model card: confusion matrix and reliability diagram of one split."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np

PICTURE_FILE: Final = "validation.png"

MAX_LABELS_WITH_NUMBERS: Final = 12
"""Number of labels up to which the cells of the confusion matrix show numbers."""

MAX_LABELS_UPRIGHT: Final = 5
MAX_CHARACTERS_UPRIGHT: Final = 12
"""Number of labels, and of characters of a label, up to which the names of the columns are horizontal."""

MAX_CHARACTERS: Final = 40
"""Number of characters of a label that are shown."""


def plot(figures: Mapping[str, Any], picture: Path) -> None:
    """Draw the confusion matrix and the reliability diagram of one split's figures as a PNG file."""
    names, counts = [_shortened(printable(label)) for label in figures["labels"]], np.array(figures["confusion_matrix"])
    longest = max(map(len, names))
    # Inches: the name of a label is a quarter of an inch high, and a character a twelfth wide.
    side = max(4, 2 + len(names) / 4) + max(0, longest - MAX_CHARACTERS_UPRIGHT) / 12
    drawing, (left, right) = plt.subplots(1, 2, figsize=(side + 5.5, side), layout="constrained")
    shares = counts / counts.sum(1, keepdims=True).clip(min=1)
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts) if len(names) <= MAX_LABELS_WITH_NUMBERS else ():
        shade = "white" if shares[row, column] > 0.5 else "black"
        left.text(column, row, f"{count}\n{shares[row, column]:.0%}", ha="center", va="center", color=shade)
    ticks = range(len(names))
    left.set(xlabel="predicted", ylabel="true")
    is_upright = len(names) <= MAX_LABELS_UPRIGHT and longest <= MAX_CHARACTERS_UPRIGHT
    rotation = {} if is_upright else {"rotation": 90}
    left.set_xticks(ticks, names, parse_math=False, **rotation)  # a `$` is not the start of a formula
    left.set_yticks(ticks, names, parse_math=False)
    left.set_title("confusion matrix, share of the true class")
    n, confidence, accuracy = np.array(figures["reliability"]).T
    right.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect")
    right.scatter(confidence, accuracy, s=20 + 400 * n / n.sum(), alpha=0.7, label="a bin; area: texts in it")
    right.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="mean confidence", ylabel="accuracy")
    right.set_title(f"reliability, expected calibration error {figures['expected_calibration_error']:.3f}")
    right.grid(alpha=0.3)
    right.legend(loc="upper left")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # no font here has the script of a label
        drawing.savefig(picture, dpi=100)
    plt.close(drawing)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_CHARACTERS else f"{name[: MAX_CHARACTERS - 1]}…"


def printable(text: str) -> str:
    """Replace control characters, including line breaks, by their Python escapes."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
