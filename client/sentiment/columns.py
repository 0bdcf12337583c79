"""The columns that the results add to a table. They depend on the kind of the model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sentiment.inference import Prediction
from sentiment.journal import Result

Kind = Literal["text", "number", "texts"]
Cell = str | float | list[str] | None


@dataclass(frozen=True)
class Column:
    """One column of the results."""

    name: str
    kind: Kind
    value: Callable[[Prediction], Cell] | None
    """The function from a prediction to the column's cell; None for the column of errors."""

    def cell(self, result: Result) -> Cell:
        """The cell for a result; None if it is empty."""
        if self.value is None:
            return result.error
        return None if result.prediction is None else self.value(result.prediction)


@dataclass(frozen=True)
class Added:
    """The columns that results add to a table, and a summary of the results."""

    columns: tuple[Column, ...]
    rows: int
    errors: int
    model_versions: tuple[str, ...]

    def cells(self, result: Result) -> list[Cell]:
        """The cells of one row, in the columns' order."""
        return [column.cell(result) for column in self.columns]


def added(results: Iterable[Result], prefix: str = "") -> Added:
    """The columns for these results.

    By the kind of the model: `label` and `score`, `labels`, or `value`. Then one column `score_NAME` for each label, if
    the results contain scores. The last column is `error`.

    Args:
        results: the results of all rows.
        prefix: prefix of each column's name.
    """
    rows = errors = 0
    kinds: set[str] = set()
    classes: dict[str, None] = {}
    versions: set[str] = set()
    for result in results:
        rows += 1
        errors += result.error is not None
        prediction = result.prediction
        if prediction is None:
            continue
        kinds.add(prediction.kind)
        classes |= dict.fromkeys(prediction.scores)
        versions |= {prediction.model_version} if prediction.model_version is not None else set()
    names = kinds or {"label"}
    if "label" in names:
        names.add("score")
    columns = [column for column in _COLUMNS if column.name in names]
    columns += [Column(f"score_{name}", "number", _class_score(name)) for name in classes]
    columns.append(Column("error", "text", None))
    prefixed = tuple(replace(column, name=prefix + column.name) for column in columns)
    return Added(prefixed, rows, errors, tuple(sorted(versions)))


def _labels(prediction: Prediction) -> Cell:
    return None if prediction.labels is None else list(prediction.labels)


def _class_score(name: str) -> Callable[[Prediction], Cell]:
    return lambda prediction: prediction.scores.get(name)


_COLUMNS = (
    Column("label", "text", lambda prediction: prediction.label),
    Column("score", "number", lambda prediction: prediction.score),
    Column("labels", "texts", _labels),
    Column("value", "number", lambda prediction: prediction.value),
)
