"""The columns that the results add to a row. They are the columns of `sentiment score`, in the same order.

| task           | columns                                                |
|----------------|--------------------------------------------------------|
| `single-label` | `label`, `score`, `score_NAME` for each label, `error` |
| `multi-label`  | `labels`, `score_NAME` for each label, `error`         |
| `regression`   | `value`, `error`                                       |

The columns `score_NAME` exist only if the run asks for all scores. `error` has the type and the message of the error;
the other columns of such a row are empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from handler.errors import RequestError
from handler.prediction import Prediction
from handler.reply import prediction_json
from handler.task import Task

Kind = Literal["text", "number", "texts"]
Cell = str | float | list[str] | None
Cells = list[Cell]
"""The cells that are added to a row, in the order of `Columns.names`. The last cell is the error."""

LABEL_SEPARATOR: Final = ";"
"""Separator of the labels of one text in CSV and TSV."""

_RESULTS: Final[dict[str, tuple[tuple[str, Kind], ...]]] = {
    "single-label": (("label", "text"), ("score", "number")),
    "multi-label": (("labels", "texts"),),
    "regression": (("value", "number"),),
}


@dataclass(frozen=True)
class Columns:
    """The columns that the predictions of a task add to a row."""

    task: Task
    scores: bool = False
    """Whether each label has a column with its probability."""

    prefix: str = ""
    """Prefix of the names of all columns."""

    @property
    def fields(self) -> tuple[tuple[str, Kind], ...]:
        """Name and kind of each column."""
        labels = self.task.labels if self.scores else ()
        fields = (*_RESULTS[self.task.name], *((f"score_{label}", "number") for label in labels), ("error", "text"))
        return tuple((self.prefix + name, kind) for name, kind in fields)

    @property
    def names(self) -> list[str]:
        """Name of each column."""
        return [name for name, _ in self.fields]

    def of_prediction(self, prediction: Prediction) -> Cells:
        """Return the cells of a row with a prediction."""
        values: dict[str, Any] = prediction_json(prediction, self.task)
        scores = values["scores"].values() if self.scores and self.task.labels else ()
        return [*(values[name] for name, _ in _RESULTS[self.task.name]), *scores, None]

    def of_error(self, error: RequestError) -> Cells:
        """Return the cells of a row with an error."""
        return [*[None] * (len(self.fields) - 1), f"{type(error).__name__}: {error}"]

    def labels_of(self, cells: Cells) -> Sequence[str]:
        """Return the labels in the cells of a row."""
        if self.task.name == "regression" or cells[0] is None:
            return ()
        return cells[0] if isinstance(cells[0], list) else (str(cells[0]),)


def error_type(cells: Cells) -> str | None:
    """Return the type of a row's error; None if the row has a prediction."""
    return None if cells[-1] is None else str(cells[-1]).partition(":")[0]
