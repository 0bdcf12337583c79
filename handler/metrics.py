"""The worker's metrics, and their transfer to TorchServe's metrics address. `docs/reference/metrics.md` lists them.

TorchServe reads a worker's standard output. A line `[METRICS]...` increments a counter or sets a gauge. TorchServe has
one registry for all workers and all versions of a model, so their increments add up. A line for each text would take
more time than the text itself. A worker therefore keeps its own counts, and a thread sends the increments once a
second. If the worker is killed, the increments since the last transfer are lost.

The buckets of TorchServe's histograms are fixed, from 0.005 to 10. Here, a histogram consists of counters with the
names and labels of a Prometheus histogram, so `histogram_quantile` reads them.
"""

import logging
import re
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final
from urllib.parse import quote

from handler.batch import DescriptionRequest, Failure, Measurements, PredictedRequest, Result
from handler.classifier import TextClassifier
from handler.drift import Drift
from handler.errors import RequestError
from handler.exported import card_entry

PREFIX: Final = "classifier_"
SEND_INTERVAL_S: Final = 1.0
OK: Final = "ok"
UNKNOWN: Final = "unknown"

TEXTS_BOUNDS: Final = (1, 2, 4, 8, 16, 32, 128, 1_024)
TOKENS_BOUNDS: Final = (8, 16, 24, 32, 48, 64, 128, 256, 512, 1_440)
SECONDS_BOUNDS: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.512, 2.048, 8.192, 32.768)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """An increment of a counter, or the value of a gauge."""

    name: str
    kind: str
    """`COUNTER` or `GAUGE`."""

    labels: dict[str, str]
    value: float

    def line(self, hostname: str) -> str:
        """Return the line for TorchServe (`org.pytorch.serve.metrics.Metric`).

        TorchServe identifies a label by its position. Values have no exponent.
        """
        labels = ",".join(f"{name}:{escaped(value)}" for name, value in self.labels.items())
        value = str(self.value) if isinstance(self.value, int) else f"{self.value:.9f}"
        return f"[METRICS]{self.name}.Count:{value}|#{labels}|#type:{self.kind}|#hostname:{hostname},{int(time.time())}"


_RESERVED: Final = re.compile("[%,:|\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""Characters that cannot be part of a label's value in a line: TorchServe's separators, Java's line ends, control
characters, halves of surrogate pairs, and `%`."""
EMPTY: Final = "%"


def escaped(value: str) -> str:
    """Percent-encode the reserved characters of a label's value, so that TorchServe can read it.

    Different values stay different. An empty value becomes `%`, because Prometheus treats an empty label as absent.
    """
    return _RESERVED.sub(lambda match: quote(match[0], safe="", errors="surrogatepass"), value) or EMPTY


class _Counters:
    """Counters with one label: one counter for each value of the label."""

    def __init__(self, name: str, label: str, values: Sequence[str]) -> None:
        self._name, self._label = name, label
        self.counts = dict.fromkeys(values, 0)

    def take(self) -> Iterator[Sample]:
        """Yield the increments since the last call."""
        for value, count in self.counts.items():
            yield Sample(self._name, "COUNTER", {self._label: value}, count)
            self.counts[value] = 0


class _Histogram:
    """A histogram: the number of observations in each bucket, and the sum of the observations."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self._name, self._bounds = name, bounds
        self._clear()

    def observe(self, value: float) -> None:
        """Count an observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def take(self) -> Iterator[Sample]:
        """Yield the increments since the last call."""
        below = list(accumulate(self._counts))
        for bound, count in zip([*map(str, self._bounds), "+Inf"], below, strict=True):
            yield Sample(f"{self._name}_bucket", "COUNTER", {"le": bound}, count)
        yield Sample(f"{self._name}_sum", "COUNTER", {}, self._sum)
        yield Sample(f"{self._name}_count", "COUNTER", {}, below[-1])
        self._clear()

    def _clear(self) -> None:
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum: float = 0


class Metrics:
    """A worker's metrics for one version of a model.

    Args:
        classifier: the model.
        model_name: name of the model in TorchServe.
        model_version: version of the model in TorchServe.
    """

    def __init__(self, classifier: TextClassifier, model_name: str, model_version: str) -> None:
        self._model = {"model_name": model_name, "model_version": model_version}
        self._identity = identity(classifier.card)
        self._unknown_id = classifier.unknown_id
        self._seen_tokens = classifier.seen_tokens
        self._drift = Drift(classifier.reference) if classifier.reference else None
        outcomes = [OK, *(kind.__name__ for kind in RequestError.__subclasses__())]
        self._requests = _Counters(f"{PREFIX}requests_total", "outcome", outcomes)
        self._predictions = _Counters(f"{PREFIX}predictions_total", "label", classifier.labels)
        self._request_texts = _Histogram(f"{PREFIX}request_texts", TEXTS_BOUNDS)
        self._batch_texts = _Histogram(f"{PREFIX}batch_texts", TEXTS_BOUNDS)
        self._text_tokens = _Histogram(f"{PREFIX}text_tokens", TOKENS_BOUNDS)
        self._tokenizer_seconds = _Histogram(f"{PREFIX}tokenizer_seconds", SECONDS_BOUNDS)
        self._engine_seconds = _Histogram(f"{PREFIX}engine_seconds", SECONDS_BOUNDS)
        self._explanations_seconds = _Histogram(f"{PREFIX}explanations_seconds", SECONDS_BOUNDS)
        self._unknown_tokens = 0
        self._long_texts = 0
        self._has_sent = False
        self._lock = threading.Lock()
        self._changed = threading.Event()

    def start(self) -> None:
        """Send all metrics once, then start a daemon thread that sends their changes."""
        logger.setLevel(logging.INFO)  # independent of the level of the worker's log
        self._send()
        threading.Thread(target=self._send_for_ever, name="metrics", daemon=True).start()

    def count(self, results: Sequence[Result], measurements: Measurements) -> None:
        """Count a batch.

        Args:
            results: the results of the batch's requests from `handler.batch.infer`.
            measurements: the measurements from the same call.
        """
        with self._lock:
            for result in results:
                match result:
                    case DescriptionRequest():
                        pass
                    case Failure():
                        self._requests.counts[type(result.error).__name__] += 1
                    case PredictedRequest():
                        self._requests.counts[OK] += 1
                        self._request_texts.observe(len(result.ids))
                        for ids, prediction in zip(result.ids, result.predictions, strict=True):
                            self._count_text(ids, prediction.labels)
            if measurements.texts:
                self._batch_texts.observe(measurements.texts)
                self._tokenizer_seconds.observe(measurements.tokenizer_s)
                self._engine_seconds.observe(measurements.engine_s)
            if measurements.explanations_s:
                self._explanations_seconds.observe(measurements.explanations_s)
        if not self._changed.is_set():
            self._changed.set()

    def take(self) -> list[Sample]:
        """Return the changes since the last call.

        The first call also returns the counters that are still 0. Without them, Prometheus' `rate` would miss the first
        increment of a counter.
        """
        with self._lock:
            samples = [
                *self._requests.take(),
                *self._predictions.take(),
                *self._request_texts.take(),
                *self._batch_texts.take(),
                *self._text_tokens.take(),
                *self._tokenizer_seconds.take(),
                *self._engine_seconds.take(),
                *self._explanations_seconds.take(),
                Sample(f"{PREFIX}unknown_tokens_total", "COUNTER", {}, self._unknown_tokens),
                Sample(f"{PREFIX}long_texts_total", "COUNTER", {}, self._long_texts),
            ]
            self._unknown_tokens = self._long_texts = 0
            drift = self._drift.indexes() if self._drift else {}
            is_first, self._has_sent = not self._has_sent, True
        samples = [sample for sample in samples if is_first or sample.value]
        samples += [Sample(f"{PREFIX}drift", "GAUGE", {"feature": name}, value) for name, value in drift.items()]
        if is_first:
            samples.append(Sample(f"{PREFIX}model_info", "GAUGE", self._identity, 1))
        return [replace(sample, labels=self._model | sample.labels) for sample in samples]

    def _count_text(self, ids: Sequence[int], labels: Sequence[str]) -> None:
        tokens, unknown = len(ids), ids.count(self._unknown_id)
        for label in labels:
            self._predictions.counts[label] += 1
        self._text_tokens.observe(tokens)
        self._unknown_tokens += unknown
        if tokens > self._seen_tokens:
            self._long_texts += 1
        if self._drift:  # only a single-label model has a reference
            self._drift.add(labels[0], tokens, unknown)

    def _send(self) -> None:
        """Send the changes as the lines of one log message. The log's lock separates them from other messages."""
        hostname = socket.gethostname()
        if lines := [sample.line(hostname) for sample in self.take()]:
            logger.info("\n".join(lines))

    def _send_for_ever(self) -> None:
        while True:
            self._changed.wait()
            time.sleep(SEND_INTERVAL_S)
            self._changed.clear()  # before `_send`, so that the next round sends what is counted during `_send`
            self._send()


def identity(card: Mapping[str, Any]) -> dict[str, str]:
    """Return the labels that identify a model, from its card. A label that the card lacks is `unknown`."""
    return {
        "commit": _at(card, "exported", "commit"),
        "data_sha256": _at(card, "reference", "data_sha256"),
        "model_sha256": _at(card, "archive", "identity"),
        "precision": _at(card, "archive", "precision"),
    }


def _at(card: object, *keys: str) -> str:
    entry = card_entry(card, *keys)
    return UNKNOWN if entry is None else entry
