"""The task of a model, which defines the meaning of the network's outputs.

| task           | activation        | prediction                                                                 |
|----------------|-------------------|----------------------------------------------------------------------------|
| `single-label` | softmax           | the most probable label, and the probability of each label                 |
| `multi-label`  | sigmoid           | the labels above their thresholds, and the probability of each label       |
| `regression`   | none, or a range  | a number                                                                   |
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

TaskName = Literal["single-label", "multi-label", "regression"]
TASKS: Final[tuple[TaskName, ...]] = get_args(TaskName)


@dataclass(frozen=True)
class Task:
    """The task of a model."""

    labels: tuple[str, ...]
    """Output `i` of the network is the probability of label `i`. A regression has no labels and one output."""

    name: TaskName = "single-label"

    thresholds: tuple[float, ...] = ()
    """For a multi-label model: a label is predicted if its probability is above its threshold."""

    value_range: tuple[float, float] | None = None
    """For a regression with a bounded output: the lower and the upper bound (fastai's `y_range`)."""

    def predicted(self, outputs: npt.NDArray[np.float32]) -> tuple[int, ...]:
        """Return the indexes of the predicted outputs.

        Like fastai, this method compares probabilities and thresholds in float32 (`BCEWithLogitsLossFlat.decodes`).

        Args:
            outputs: the network's outputs for one text, (C,).
        """
        if self.name == "multi-label":
            return tuple(np.flatnonzero(outputs > np.array(self.thresholds, np.float32)).tolist())
        return (int(outputs.argmax()),)

    @property
    def outputs(self) -> int:
        """Number of the network's outputs."""
        return len(self.labels) or 1
