"""The precision of an archive's network: how far each is from float32, measured on texts, and which is chosen.

A choice that real texts decided is kept with the exported model, for archives that are built later without the texts.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx

from handler import exported
from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE, Engine
from handler.ensemble import joined
from handler.exported import ExportedModel, Network, Probabilities
from handler.task import TASKS, Task, TaskName
from training.export.graph import PRECISIONS, Precision, to_onnx
from training.export.sample import Sample

PRECISION_FILE: Final = "precision.json"
"""Of an exported model: the precision that real texts decided. It names the texts' file and holds no text."""

FAR_OFF: Final = 0.03
"""In a probability: what a precision that holds differs by from float32 at most."""

ESTIMATES_FACTOR: Final = 2
"""What a difference on made-up texts is multiplied with: of 13 learners, the largest difference on real texts was 0.5
to 2.1 times as much, see `model_store/README.md`."""

FEW_TEXTS: Final = 100
"""Real texts below which the command says that they are few: the largest difference is that of a rare text."""

FINE_FROM: Final = 2_000_000
"""LSTM weights of a network for which `int8-fine` is faster than float32. Measured for a text of 25 tokens on one core:
with 1.4 million of them it takes 1.6 ms to float32's 1.5, with 2.4 million 2.0 to 2.4, with 20 million 10 to 52."""

MOST_TOKENS: Final = 200_000
"""In the texts that are measured, so that float32 takes at most one and a half minutes for the largest networks."""


@dataclass(frozen=True)
class Difference:
    """How far one precision is from float32, over N texts. A text's difference is the largest one of its
    probabilities; of a regression, that of its value, as a share of the range of values."""

    texts: int
    labels_changed: int
    clear_labels_changed: int
    """Of those, texts whose two most probable labels are more than `FAR_OFF` apart in float32, and those of which a
    label changed whose probability is as far from its threshold."""

    largest: float
    mean: float
    percentile_99: float
    task: TaskName = "single-label"

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Difference":
        """
        Raises:
            KeyError, TypeError, ValueError: not what `to_json` makes.
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
        """For the card."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        figures = f"{self.largest:.4f}, 99th percentile {self.percentile_99:.4f}, mean {self.mean:.4f}"
        if self.task == "regression":
            return f"largest difference, as a share of the range of values, {figures}; {self.texts:,} texts"
        clear = {
            "single-label": f"with over {FAR_OFF} between the two most probable labels",
            "multi-label": f"with over {FAR_OFF} between its probability and its threshold",
        }[self.task]
        return (
            f"largest difference of a probability {figures}; label changed in {self.labels_changed} of "
            f"{self.texts:,} texts, in {self.clear_labels_changed} of them {clear}"
        )


@dataclass(frozen=True)
class Choice:
    """A precision, why it is that one, and what was measured."""

    precision: Precision
    reason: str
    source: str | None = None
    """Of the texts; None if nothing was measured."""
    made_up: bool = False
    differences: Mapping[Precision, Difference] = field(default_factory=dict)
    kept_in: Path | None = None
    """The file that has it from an earlier measurement."""

    def to_json(self) -> dict[str, Any]:
        """For the card."""
        found: dict[str, Any] = {"precision": self.precision, "reason": self.reason}
        if self.source is not None:
            source = self.source.encode("utf-8", "backslashreplace").decode("utf-8")
            found["texts"] = {"source": source, "made_up": self.made_up}
            found["differences"] = {name: difference.to_json() for name, difference in self.differences.items()}
        return found

    def told(self) -> list[str]:
        """What was measured, and what to do if it is an estimate; a sentence or two a line."""
        if self.source is None:
            return []
        lines = [f"{name} against float32: {difference}." for name, difference in self.differences.items()]
        again = "build the archive again with --texts FILE (with make: TEXTS=FILE)."
        if self.kept_in is not None:
            lines.append(f"Measured before on texts of {self.source} ({self.kept_in}).")
        elif not self.made_up:
            lines.append(f"Measured on texts of {self.source}.")
        elif self.precision != "int8" and "int8" in self.differences:
            lines.append(
                f"This is an estimate, on texts {self.source}, so it counts double. To get int8, which is smaller and "
                f"faster, if it is close enough on texts of your own, {again}"
            )
        else:
            lines.append(
                f"This is an estimate, on texts {self.source}: on real texts, the largest difference can be "
                f"{ESTIMATES_FACTOR} times as much. To measure it on texts of your own, {again}"
            )
        texts = max((difference.texts for difference in self.differences.values()), default=FEW_TEXTS)
        if texts < FEW_TEXTS and not self.made_up:
            lines.append(f"With so few texts ({texts}), a larger difference can go unseen: measure on some hundreds.")
        return lines


def difference(found: Probabilities, expected: Probabilities, task: Task) -> Difference:
    """How far the outputs of N texts, (N, C), are from those of float32."""
    distances = np.abs(found - expected)
    changed, clear = np.zeros(len(found), bool), np.zeros(len(found), bool)
    match task.name:
        case "single-label":
            changed = found.argmax(axis=1) != expected.argmax(axis=1)
            ordered = np.sort(expected, axis=1)
            clear = changed & (ordered[:, -1] - ordered[:, -2] > FAR_OFF)
        case "multi-label":
            thresholds = np.array(task.thresholds, np.float32)
            labels = (found > thresholds) != (expected > thresholds)
            changed = labels.any(axis=1)
            clear = (labels & (np.abs(expected - thresholds) > FAR_OFF)).any(axis=1)
        case "regression":
            low, high = task.value_range or (float(expected.min()), float(expected.max()))
            distances = distances / ((high - low) or 1)
    by_text = distances.max(axis=1)
    return Difference(
        texts=len(found),
        labels_changed=int(changed.sum()),
        clear_labels_changed=int(clear.sum()),
        largest=float(by_text.max()),
        mean=float(by_text.mean()),
        percentile_99=float(np.quantile(by_text, 0.99)),
        task=task.name,
    )


def choose(model: ExportedModel, sample: Sample) -> Choice:
    """int8 if it holds on these texts, else `int8-fine` if that holds and is faster than float32, else float32.

    A precision holds if no probability differs by more than `FAR_OFF` from float32's, and no label changes where the
    two most probable ones are further apart than that. Of a difference on made-up texts, `ESTIMATES_FACTOR` times as
    much is reckoned with.
    """
    measured = Measurement(model, sample)
    small = _lstm_weights(model) < FINE_FROM
    candidates: tuple[Precision, ...] = ("int8",) if small else ("int8", "int8-fine")
    differences: dict[Precision, Difference] = {}
    reasons: list[str] = []
    for precision in candidates:
        differences[precision] = measured.difference(precision)
        fault = _fault(differences[precision], sample.made_up)
        reasons.append(f"{precision} {fault or f'stays within {FAR_OFF} of float32'}")
        if not fault:
            return Choice(precision, "; ".join(reasons), sample.source, sample.made_up, differences)
    if small:
        reasons.append("int8-fine is no faster than float32 in a network of this size")
    return Choice("float32", "; ".join(reasons), sample.source, sample.made_up, differences)


def measure(folder: Path, sample: Sample) -> list[str]:
    """Choose on real texts for an exported model, and keep the choice for its archives; returns what to print."""
    choice = choose(exported.read(folder), sample)
    keep(choice, folder)
    return [f"Its archive will be in {choice.precision}: {choice.reason}.", *choice.told()]


def forced(model: ExportedModel, precision: Precision, sample: Sample | None, before: Choice | None = None) -> Choice:
    """The precision that was asked for, measured if there are texts, or as it was measured before."""
    reason = "as asked for"
    if before is not None and precision in before.differences:
        differences: dict[Precision, Difference] = {precision: before.differences[precision]}
        return Choice(precision, reason, before.source, differences=differences, kept_in=before.kept_in)
    if sample is None or precision == "float32":
        return Choice(precision, reason)
    differences = {precision: Measurement(model, sample).difference(precision)}
    return Choice(precision, reason, sample.source, sample.made_up, differences)


def holds(difference: Difference, made_up: bool) -> bool:
    """See `choose`."""
    return not _fault(difference, made_up)


def _fault(difference: Difference, made_up: bool) -> str:
    """Why a precision does not hold; empty if it does."""
    expected = (ESTIMATES_FACTOR if made_up else 1) * difference.largest
    if not expected <= FAR_OFF:
        estimate = f" (twice the estimate of {difference.largest:.4f})" if made_up else ""
        verb = "may differ" if made_up else "differs"
        return f"{verb} from float32 by up to {expected:.4f}{estimate}, over the limit of {FAR_OFF}"
    if difference.clear_labels_changed:
        return f"changes the label of {difference.clear_labels_changed} texts that are not close to a tie"
    return ""


def keep(choice: Choice, model: Path) -> None:
    """Write a choice into the exported model's folder, for `kept`. If that is not possible, a note says so."""
    path = model / PRECISION_FILE
    content = {"identity": exported.identity(model)} | choice.to_json()
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        print(f"note: {path} cannot be written ({error.strerror}): later archives need --texts again.", file=sys.stderr)


def kept(model: Path) -> Choice | None:
    """The choice that real texts decided for this very exported model. If its file is about another one, a note says
    so."""
    path = model / PRECISION_FILE
    if not path.is_file():
        return None
    fault = "it was measured on another model than the one that is in the folder now"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["identity"] == exported.identity(model):
            return _choice_from_json(content, path)
    except (KeyError, TypeError, ValueError):
        fault = "expected what `archive --texts` writes"
    print(f"note: {path} is ignored: {fault}. Measure again with --texts FILE, or remove it.", file=sys.stderr)
    return None


def _choice_from_json(value: Mapping[str, Any], path: Path) -> Choice:
    """
    Raises:
        KeyError, TypeError, ValueError: not what `Choice.to_json` makes.
    """
    [precision] = [name for name in PRECISIONS if name == value["precision"]]
    differences = {
        name: Difference.from_json(value["differences"][name]) for name in PRECISIONS if name in value["differences"]
    }
    source = str(value["texts"]["source"])
    return Choice(precision, str(value["reason"]), source, differences=differences, kept_in=path)


class Measurement:
    """A model's answers to a sample, in any precision."""

    def __init__(self, model: ExportedModel, sample: Sample) -> None:
        self._model = model
        classifier = TextClassifier(model, _network(model, "float32"))
        self._ids = texts_within(MOST_TOKENS, [classifier.ids(text) for text in sample.texts])
        self._expected = classifier.probabilities(self._ids)

    def difference(self, precision: Precision) -> Difference:
        """How far the precision is from float32."""
        return difference(
            _network(self._model, precision).probabilities(self._ids), self._expected, self._model.config.predicts
        )


def _network(model: ExportedModel, precision: Precision) -> Network:
    return joined(model.config, [_engine(member, precision) for member in model.members])


def _engine(model: ExportedModel, precision: Precision) -> Engine:
    with TemporaryDirectory() as workspace:
        graph = Path(workspace, GRAPH_FILE)
        onnx.save(to_onnx(model, precision), graph)
        return Engine(graph, model.config.network, threads=1)


def texts_within(most: int, ids: Sequence[list[int]]) -> list[list[int]]:
    """Texts from anywhere in a sample, one at least, that have `most` tokens together."""
    order = np.random.default_rng(1).permutation(len(ids))
    tokens = np.cumsum([len(ids[place]) for place in order])
    return [ids[place] for place in order[: max(int((tokens <= most).sum()), 1)]]


def _lstm_weights(model: ExportedModel) -> int:
    """Of the first network; those of an ensemble are mostly alike."""
    return sum(value.size for name, value in model.weights.items() if name.startswith("lstm."))
