"""The columns that results add to a file. Which ones there are depends on the kind of the model that answered."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from sentiment.inference import Prediction
from sentiment.journal import Result

Kind = Literal["text", "number", "texts"]
Cell = str | float | list[str] | None


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind
    of: Callable[[Prediction], Cell] | None
    """From a prediction to what is in the column; None for the column of errors."""

    def cell(self, result: Result) -> Cell:
        if self.of is None:
            return result.error
        return None if result.prediction is None else self.of(result.prediction)


@dataclass(frozen=True)
class Added:
    """The columns that a file gets, and what is in them as a whole."""

    columns: tuple[Column, ...]
    rows: int
    errors: int
    model_versions: tuple[str, ...]

    def cells(self, result: Result) -> list[Cell]:
        return [column.cell(result) for column in self.columns]


def added(results: Iterable[Result], prefix: str = "") -> Added:
    """The columns for these results: `label` and `score`, `labels` or `value`, by the kind of the model; then, where
    the results have them, `score_NAME` for each class; then `error`.

    Args:
        prefix: of each column's name.
    """
    rows = errors = 0
    found: set[str] = set()
    classes: dict[str, None] = {}
    versions: set[str] = set()
    for result in results:
        rows += 1
        errors += result.error is not None
        prediction = result.prediction
        if prediction is None:
            continue
        found.add(prediction.kind)
        classes |= dict.fromkeys(prediction.scores)
        versions |= {prediction.model_version} if prediction.model_version is not None else set()
    columns = [column for column in _COLUMNS if column.name in found or (column.name == "score" and "label" in found)]
    if not found:
        columns = [column for column in _COLUMNS if column.name in ("label", "score")]
    columns += [Column(f"score_{name}", "number", _score_of(name)) for name in classes]
    columns.append(Column("error", "text", None))
    named = tuple(replace(column, name=prefix + column.name) for column in columns)
    return Added(named, rows, errors, tuple(sorted(versions)))


def _labels(prediction: Prediction) -> Cell:
    return None if prediction.labels is None else list(prediction.labels)


def _score_of(name: str) -> Callable[[Prediction], Cell]:
    return lambda prediction: prediction.scores.get(name)


_COLUMNS = (
    Column("label", "text", lambda prediction: prediction.label),
    Column("score", "number", lambda prediction: prediction.score),
    Column("labels", "texts", _labels),
    Column("value", "number", lambda prediction: prediction.value),
)
