"""Precision of an archive's network: the difference of each precision from float32 on texts, and the choice.

A choice on real texts is stored with the exported model, for archives that are built later without the texts.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from handler import exported
from handler.classifier import TextClassifier
from handler.exported import ExportedModel, Probabilities
from handler.task import TASKS, Task, TaskName
from training.export.engine import network
from training.export.sample import Sample
from training.files import write_json
from training.settings import MAX_DIFFERENCE, PRECISIONS, Precision

PRECISION_FILE: Final = "precision.json"
"""File in an exported model's folder with the choice on real texts. It has the name of the texts' file, but no text."""

SYNTHETIC_FACTOR: Final = 2
"""Factor by which a difference on synthetic texts is multiplied.

For 14 learners, the largest difference on real texts was 0.5 to 2.1 times that on synthetic texts
(`docs/explanation/int8.md`).
"""

FEW_TEXTS: Final = 100
"""Number of real texts below which `archive` warns: rare texts, which have the largest difference, may be missing."""

FINE_FROM: Final = 2_000_000
"""Number of LSTM weights from which `int8-fine` is faster than float32.

Measured for a text of 25 tokens on one core, `int8-fine` and float32 in ms: 1.6 and 1.5 with 1.4 million weights, 2.0
and 2.4 with 2.4 million, 10 and 52 with 20 million.
"""

MAX_TOKENS: Final = 200_000
"""Maximum number of tokens in a measurement, so that float32 takes at most 90 seconds for the largest networks."""


@dataclass(frozen=True)
class Difference:
    """Difference of one precision from float32 over N texts.

    The difference of a text is the largest difference of a probability; in a regression, the difference of the value as
    a share of the range of values.
    """

    texts: int
    """Number of texts."""

    labels_changed: int
    """Number of texts whose predicted labels differ."""

    clear_labels_changed: int
    """Number of those texts that are not close to a tie in float32.

    Single-label: the two most probable labels are more than `MAX_DIFFERENCE` apart. Multi-label: the probability of a
    changed label is more than `MAX_DIFFERENCE` from its threshold.
    """

    largest: float
    mean: float
    percentile_99: float
    task: TaskName = "single-label"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Difference":
        """Read the result of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the value is not a result of `to_json`.
        """
        [task] = [name for name in TASKS if name == value["task"]]
        return cls(
            texts=int(value["texts"]),
            labels_changed=int(value["labels_changed"]),
            clear_labels_changed=int(value["clear_labels_changed"]),
            largest=float(value["largest"]),
            mean=float(value["mean"]),
            percentile_99=float(value["percentile_99"]),
            task=task,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        """Describe the difference for the user."""
        figures = f"{self.largest:.4f}, 99th percentile {self.percentile_99:.4f}, mean {self.mean:.4f}"
        if self.task == "regression":
            return f"largest difference, as a share of the range of values, {figures}; {self.texts:,} texts"
        clear = {
            "single-label": f"with over {MAX_DIFFERENCE} between the two most probable labels",
            "multi-label": f"with over {MAX_DIFFERENCE} between its probability and its threshold",
        }[self.task]
        return (
            f"largest difference of a probability {figures}; label changed in {self.labels_changed} of "
            f"{self.texts:,} texts, in {self.clear_labels_changed} of them {clear}"
        )


@dataclass(frozen=True)
class Choice:
    """A precision, the reason for it, and its measurement."""

    precision: Precision
    reason: str
    source: str | None = None
    """Source of the texts; None if nothing was measured."""

    is_synthetic: bool = False
    """True if the texts are synthetic."""

    differences: Mapping[Precision, Difference] = field(default_factory=dict)
    stored_in: Path | None = None
    """File with the choice, if an earlier measurement made it."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card."""
        entry: dict[str, Any] = {"precision": self.precision, "reason": self.reason}
        if self.source is not None:
            source = self.source.encode("utf-8", "backslashreplace").decode("utf-8")
            entry["texts"] = {"source": source, "made_up": self.is_synthetic}
            entry["differences"] = {name: difference.to_json() for name, difference in self.differences.items()}
        return entry

    def describe(self) -> list[str]:
        """Describe the measurement, and how to improve an estimate, in lines for the user."""
        if self.source is None:
            return []
        lines = [f"{name} against float32: {difference}." for name, difference in self.differences.items()]
        remedy = "build the archive again with --texts FILE (with make: TEXTS=FILE)."
        if self.stored_in is not None:
            lines.append(f"Measured earlier on texts of {self.source} ({self.stored_in}).")
        elif not self.is_synthetic:
            lines.append(f"Measured on texts of {self.source}.")
        elif self.precision != "int8" and "int8" in self.differences:
            lines.append(
                f"This is an estimate on texts {self.source}, so twice its value must be within the limit of "
                f"{MAX_DIFFERENCE}. int8 is smaller and faster. To use int8 if it is close enough on your own texts, "
                f"{remedy}"
            )
        else:
            lines.append(
                f"This is an estimate on texts {self.source}: on real texts, the largest difference can be "
                f"{SYNTHETIC_FACTOR} times as large. To measure it on your own texts, {remedy}"
            )
        texts = max((difference.texts for difference in self.differences.values()), default=FEW_TEXTS)
        if texts < FEW_TEXTS and not self.is_synthetic:
            count = "one text" if texts == 1 else f"{texts} texts"
            lines.append(
                f"With only {count}, the measurement can miss a larger difference. Measure on hundreds of texts."
            )
        return lines


def difference(outputs: Probabilities, expected: Probabilities, task: Task) -> Difference:
    """Compute the difference between outputs (N, C) and the outputs in float32 (N, C)."""
    distances = np.abs(outputs - expected)
    changed, clear = np.zeros(len(outputs), bool), np.zeros(len(outputs), bool)
    match task.name:
        case "single-label":
            changed = outputs.argmax(axis=1) != expected.argmax(axis=1)
            ordered = np.sort(expected, axis=1)
            clear = changed & (ordered[:, -1] - ordered[:, -2] > MAX_DIFFERENCE)
        case "multi-label":
            thresholds = np.array(task.thresholds, np.float32)
            labels = (outputs > thresholds) != (expected > thresholds)
            changed = labels.any(axis=1)
            clear = (labels & (np.abs(expected - thresholds) > MAX_DIFFERENCE)).any(axis=1)
        case "regression":
            low, high = task.value_range or (float(expected.min()), float(expected.max()))
            distances = distances / ((high - low) or 1)
    by_text = distances.max(axis=1)
    return Difference(
        texts=len(outputs),
        labels_changed=int(changed.sum()),
        clear_labels_changed=int(clear.sum()),
        largest=float(by_text.max()),
        mean=float(by_text.mean()),
        percentile_99=float(np.quantile(by_text, 0.99)),
        task=task.name,
    )


def choose(model: ExportedModel, sample: Sample) -> Choice:
    """Choose int8 if it is close to float32, else `int8-fine` if it is close and faster than float32, else float32.

    A precision is close to float32 if no probability differs by more than `MAX_DIFFERENCE`, and no predicted label
    changes that is not close to a tie (`Difference.clear_labels_changed`). A difference on synthetic texts is
    multiplied by `SYNTHETIC_FACTOR`.
    """
    measurement = Measurement(model, sample)
    # The networks of an ensemble mostly have the same size.
    small = model.config.network.lstm_weights < FINE_FROM
    candidates: tuple[Precision, ...] = ("int8",) if small else ("int8", "int8-fine")
    differences: dict[Precision, Difference] = {}
    reasons: list[str] = []
    for precision in candidates:
        differences[precision] = measurement.difference(precision)
        fault = _fault(differences[precision], sample.is_synthetic)
        reasons.append(f"{precision} {fault or f'stays within {MAX_DIFFERENCE} of float32'}")
        if not fault:
            return Choice(precision, "; ".join(reasons), sample.source, sample.is_synthetic, differences)
    if small:
        reasons.append("int8-fine is no faster than float32 in a network of this size")
    return Choice("float32", "; ".join(reasons), sample.source, sample.is_synthetic, differences)


def measure(folder: Path, sample: Sample) -> list[str]:
    """Choose a precision for an exported model on real texts, and store the choice; return lines for the user."""
    choice = choose(exported.read(folder), sample)
    write_choice(choice, folder)
    return [f"Its archive will be in {choice.precision}: {choice.reason}.", *choice.describe()]


def forced(model: ExportedModel, precision: Precision, sample: Sample | None, earlier: Choice | None = None) -> Choice:
    """Return the given precision, with a measurement if there is a sample or an earlier measurement."""
    reason = "as asked for"
    if earlier is not None and precision in earlier.differences:
        differences: dict[Precision, Difference] = {precision: earlier.differences[precision]}
        return Choice(precision, reason, earlier.source, differences=differences, stored_in=earlier.stored_in)
    if sample is None or precision == "float32":
        return Choice(precision, reason)
    differences = {precision: Measurement(model, sample).difference(precision)}
    return Choice(precision, reason, sample.source, sample.is_synthetic, differences)


def is_close(difference: Difference, is_synthetic: bool) -> bool:
    """Return whether a precision is close to float32; see `choose`."""
    return not _fault(difference, is_synthetic)


def _fault(difference: Difference, is_synthetic: bool) -> str:
    """Describe why a precision is not close to float32; an empty string if it is."""
    expected = (SYNTHETIC_FACTOR if is_synthetic else 1) * difference.largest
    if not expected <= MAX_DIFFERENCE:
        estimate = f" (twice the estimate of {difference.largest:.4f})" if is_synthetic else ""
        verb = "may differ" if is_synthetic else "differs"
        return f"{verb} from float32 by up to {expected:.4f}{estimate}, over the limit of {MAX_DIFFERENCE}"
    if difference.clear_labels_changed:
        return f"changes the label of {difference.clear_labels_changed} texts that are not close to a tie"
    return ""


def write_choice(choice: Choice, model: Path) -> None:
    """Store a choice in the exported model's folder, for `read_choice`; print a note if that fails."""
    path = model / PRECISION_FILE
    content = {"identity": exported.identity(model)} | choice.to_json()
    try:
        write_json(path, content)
    except OSError as error:
        print(f"note: {path} cannot be written ({error.strerror}): later archives need --texts again.", file=sys.stderr)


def read_choice(model: Path) -> Choice | None:
    """Return the stored choice for this exported model; None if there is none.

    Print a note if the stored choice is invalid or was made for another model.
    """
    path = model / PRECISION_FILE
    if not path.is_file():
        return None
    fault = "it was measured on another model than the one in the folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["identity"] == exported.identity(model):
            return _choice_from_json(content, path)
    except (KeyError, TypeError, ValueError):
        fault = "expected a file that `archive --texts` writes"
    print(f"note: {path} is ignored: {fault}. Measure again with --texts FILE, or remove the file.", file=sys.stderr)
    return None


def _choice_from_json(value: Mapping[str, Any], path: Path) -> Choice:
    """Read the result of `Choice.to_json`.

    Raises:
        KeyError, TypeError, ValueError: the value is not a result of `Choice.to_json`.
    """
    [precision] = [name for name in PRECISIONS if name == value["precision"]]
    differences = {
        name: Difference.from_json(value["differences"][name]) for name in PRECISIONS if name in value["differences"]
    }
    source = str(value["texts"]["source"])
    return Choice(precision, str(value["reason"]), source, differences=differences, stored_in=path)


class Measurement:
    """The outputs of a model for a sample in float32, to compare other precisions with."""

    def __init__(self, model: ExportedModel, sample: Sample) -> None:
        self._model = model
        classifier = TextClassifier(model, network(model, "float32"))
        self._ids = texts_within(MAX_TOKENS, [classifier.ids(text) for text in sample.texts])
        self._expected = classifier.probabilities(self._ids)

    def difference(self, precision: Precision) -> Difference:
        """Compute the difference of a precision from float32."""
        outputs = network(self._model, precision).probabilities(self._ids)
        return difference(outputs, self._expected, self._model.config.predicts)


def texts_within(limit: int, ids: Sequence[list[int]]) -> list[list[int]]:
    """Draw random texts of a sample, at least one, with at most `limit` tokens together."""
    order = np.random.default_rng(1).permutation(len(ids))
    tokens = np.cumsum([len(ids[position]) for position in order])
    return [ids[position] for position in order[: max(int((tokens <= limit).sum()), 1)]]
