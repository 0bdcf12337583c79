"""What a model predicts, and so what the outputs of its network mean.

| task           | activation        | prediction                                                        |
|----------------|-------------------|-------------------------------------------------------------------|
| `single-label` | softmax           | the most probable label, and the probability of each label        |
| `multi-label`  | sigmoid           | the labels over their thresholds, and the probability of each     |
| `regression`   | none, or a range  | a number                                                          |
"""

from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

TaskName = Literal["single-label", "multi-label", "regression"]
TASKS: Final[tuple[TaskName, ...]] = get_args(TaskName)


@dataclass(frozen=True)
class Task:
    """What a model predicts, see above."""

    labels: tuple[str, ...]
    """Output `i` of the network is the probability of label `i`. A regression has none, and one output."""

    name: TaskName = "single-label"

    thresholds: tuple[float, ...] = ()
    """Of a multi-label model: for each label the probability that it must be over to be predicted."""

    value_range: tuple[float, float] | None = None
    """Of a regression whose values are all between two numbers: these (fastai's `y_range`)."""

    def predicted(self, outputs: npt.NDArray[np.float32]) -> tuple[int, ...]:
        """The numbers of the outputs that are predicted of all outputs of a text, (C,).

        fastai compares in float32 too (`BCEWithLogitsLossFlat.decodes`).
        """
        if self.name == "multi-label":
            return tuple(np.flatnonzero(outputs > np.array(self.thresholds, np.float32)).tolist())
        return (int(outputs.argmax()),)

    @property
    def outputs(self) -> int:
        """Number of the network's outputs."""
        return len(self.labels) or 1
