"""The prediction for one text, and its explanation."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from handler.spans import Span
from handler.task import Task


@dataclass(frozen=True)
class Explanation:
    """Occlusion scores of a text's tokens."""

    outputs: tuple[int, ...]
    """Indexes of the explained network outputs.

    For a single-label model, the output of the most probable label. For a multi-label model, the outputs of the
    predicted labels, or of the most probable label if no label is predicted. For a regression, its only output.
    """

    tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    """For each token and each explained output, the drop in the output when `xxunk` replaces the token."""

    spans: tuple[Span, ...]
    """Position of each token in the text, see `handler.tokens.Tokenizer.spans`."""


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one text."""

    outputs: tuple[float, ...]
    """Probability of each label, in the order of `Task.labels`; the predicted value alone for a regression."""

    labels: tuple[str, ...]
    """Predicted labels: exactly one from a single-label model, any number from a multi-label model, none from a
    regression."""

    explanation: Explanation | None = None
    """Present only if the request asks for explanations."""

    @classmethod
    def from_outputs(cls, outputs: npt.NDArray[np.float32], task: Task) -> "Prediction":
        """Interpret the network's outputs for one text.

        Args:
            outputs: the network's outputs, (C,).
            task: the model's task.
        """
        predicted = () if task.name == "regression" else task.predicted(outputs)
        return cls(tuple(outputs.tolist()), tuple(task.labels[index] for index in predicted))
