"""The precision of an archive's network: how far each is from float32, measured on texts, and which is chosen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import onnx

from handler.classifier import TextClassifier
from handler.engine import GRAPH_FILE, Engine
from handler.ensemble import joined
from handler.exported import ExportedModel, Network, Probabilities
from handler.task import Task, TaskName
from training.export.graph import Precision, to_onnx
from training.export.sample import Sample

FAR_OFF: Final = 0.03
"""In a probability: what a precision that holds differs by from float32 at most."""

ESTIMATES_FACTOR: Final = 2
"""What a difference on made-up texts is multiplied with: of 13 learners, the largest difference on real texts was 0.5
to 2.1 times as much, see `model_store/README.md`."""

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
    sample: Sample | None
    differences: Mapping[Precision, Difference]

    def to_json(self) -> dict[str, Any]:
        """For the card."""
        found: dict[str, Any] = {"precision": self.precision, "reason": self.reason}
        if self.sample is not None:
            found["texts"] = {"source": self.sample.source, "made_up": self.sample.made_up}
            found["differences"] = {name: difference.to_json() for name, difference in self.differences.items()}
        return found


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
    differences: dict[Precision, Difference] = {}
    candidates: list[Precision] = ["int8"]
    small = _lstm_weights(model) < FINE_FROM
    if not small:
        candidates.append("int8-fine")
    for precision in candidates:
        differences[precision] = measured.difference(precision)
        if holds(differences[precision], sample):
            reason = f"{precision} holds" + (": int8 does not" if precision != "int8" else "")
            return Choice(precision, reason, sample, differences)
    reason = f"{' and '.join(candidates)} {'do' if len(candidates) > 1 else 'does'} not hold"
    if small:
        reason += ", and for a network of this size int8-fine is no faster than float32"
    return Choice("float32", reason, sample, differences)


def forced(model: ExportedModel, precision: Precision, sample: Sample | None) -> Choice:
    """The precision that was asked for, measured if there are texts."""
    differences: dict[Precision, Difference] = {}
    if sample is not None and precision != "float32":
        differences[precision] = Measurement(model, sample).difference(precision)
    return Choice(precision, "as asked for", sample if differences else None, differences)


def holds(difference: Difference, sample: Sample) -> bool:
    """See `choose`."""
    factor = ESTIMATES_FACTOR if sample.made_up else 1
    return factor * difference.largest <= FAR_OFF and difference.clear_labels_changed == 0


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
