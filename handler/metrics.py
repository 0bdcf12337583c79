"""What a worker counts, and its way to TorchServe's metrics address. `docs/reference/metrics.md` lists the metrics.

TorchServe reads a worker's standard output; a line `[METRICS]...` is one increment of a counter or one value of a
gauge. It has one registry for all workers and all versions, so the increments of all of them add up. A line for each
text would cost more than the text does. So a worker counts for itself, and once a second a thread of its own sends
what came to be since. What a worker has not sent is lost when it is killed.

TorchServe's own histograms have buckets that cannot be chosen, from 0.005 to 10. Here a histogram is counters, named
and labelled as Prometheus names and labels a histogram's, so `histogram_quantile` reads them.
"""

import logging
import re
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final
from urllib.parse import quote

from handler.batch import DESCRIPTIONS, Durations, Job
from handler.classifier import TextClassifier
from handler.drift import Drift
from handler.errors import RequestError

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
    """What TorchServe adds to a counter, or sets a gauge to."""

    name: str
    kind: str
    """`COUNTER` or `GAUGE`."""

    labels: dict[str, str]
    value: float

    def line(self, hostname: str) -> str:
        """As TorchServe reads it (`org.pytorch.serve.metrics.Metric`): labels by their place, numbers in digits."""
        labels = ",".join(f"{name}:{escaped(value)}" for name, value in self.labels.items())
        value = str(self.value) if isinstance(self.value, int) else f"{self.value:.9f}"
        return f"[METRICS]{self.name}.Count:{value}|#{labels}|#type:{self.kind}|#hostname:{hostname},{int(time.time())}"


_NOT_IN_A_LINE: Final = re.compile("[%,:|\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")
"""TorchServe's separators, Java's line ends, control characters, halves of surrogate pairs, and `%`."""
EMPTY: Final = "%"


def escaped(value: str) -> str:
    """A label's value as TorchServe can read it: percent-encoded, but only the characters that are not to be in a line.

    So different values stay different. An empty value is a lone `%`, as Prometheus takes an empty label for none.
    """
    return _NOT_IN_A_LINE.sub(lambda match: quote(match[0], safe="", errors="surrogatepass"), value) or EMPTY


class _Counters:
    """One counter for each value of a label."""

    def __init__(self, name: str, label: str, values: Sequence[str]) -> None:
        self._name, self._label = name, label
        self.counts = dict.fromkeys(values, 0)

    def take(self) -> Iterator[Sample]:
        for value, count in self.counts.items():
            yield Sample(self._name, "COUNTER", {self._label: value}, count)
            self.counts[value] = 0


class _Histogram:
    """Observations in buckets, and their sum."""

    def __init__(self, name: str, bounds: Sequence[float]) -> None:
        self._name, self._bounds = name, bounds
        self._clear()

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def take(self) -> Iterator[Sample]:
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
    """What a worker counts of one version of a model.

    Args:
        model_name: in TorchServe.
        model_version: in TorchServe.
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
        self._announced = False
        self._lock = threading.Lock()
        self._changed = threading.Event()

    def start(self) -> None:
        """Send what there is, zeros at first, and go on with what comes to be, in a thread that ends with the
        process."""
        logger.setLevel(logging.INFO)  # whatever the worker's own log is set to
        self._send()
        threading.Thread(target=self._send_for_ever, name="metrics", daemon=True).start()

    def count(self, jobs: Sequence[Job], durations: Durations) -> None:
        """Count a batch that has been through `handler.batch.infer`, which gives the durations."""
        with self._lock:
            for job in jobs:
                if job.kind in DESCRIPTIONS:
                    continue
                self._requests.counts[type(job.error).__name__ if job.error else OK] += 1
                if job.error is None:
                    self._request_texts.observe(len(job.ids))
                    for ids, result in zip(job.ids, job.results, strict=True):
                        self._count_text(ids, labels_of(result))
            if durations.texts:
                self._batch_texts.observe(durations.texts)
                self._tokenizer_seconds.observe(durations.tokenizer_s)
                self._engine_seconds.observe(durations.engine_s)
            if durations.explanations_s:
                self._explanations_seconds.observe(durations.explanations_s)
        if not self._changed.is_set():
            self._changed.set()

    def take(self) -> list[Sample]:
        """What has been counted since this was last called; at first also what is still 0, so that a rate sees the
        first of anything."""
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
            first, self._announced = not self._announced, True
        samples = [sample for sample in samples if first or sample.value]
        samples += [Sample(f"{PREFIX}drift", "GAUGE", {"feature": name}, value) for name, value in drift.items()]
        if first:
            samples.append(Sample(f"{PREFIX}model_info", "GAUGE", self._identity, 1))
        return [Sample(each.name, each.kind, self._model | each.labels, each.value) for each in samples]

    def _count_text(self, ids: Sequence[int], labels: Sequence[str]) -> None:
        tokens, unknown = len(ids), ids.count(self._unknown_id)
        for label in labels:
            self._predictions.counts[label] += 1
        self._text_tokens.observe(tokens)
        self._unknown_tokens += unknown
        if tokens > self._seen_tokens:
            self._long_texts += 1
        if self._drift:  # of a single-label model
            self._drift.add(labels[0], tokens, unknown)

    def _send(self) -> None:
        """In one message of the log, as whose lines TorchServe reads them: the log's lock keeps others' lines apart."""
        hostname = socket.gethostname()
        if lines := [sample.line(hostname) for sample in self.take()]:
            logger.info("\n".join(lines))

    def _send_for_ever(self) -> None:
        while True:
            self._changed.wait()
            time.sleep(SEND_INTERVAL_S)
            self._changed.clear()  # first, so that what is counted meanwhile is sent by the next round at the latest
            self._send()


def labels_of(result: Mapping[str, Any]) -> Sequence[str]:
    """The predicted labels of a prediction; none of a regression's."""
    return [result["label"]] if "label" in result else result.get("labels", [])


def identity(card: Mapping[str, Any]) -> dict[str, str]:
    """Which model it is, from its card; `unknown` for what the card does not say."""
    return {
        "commit": _at(card, "exported", "commit"),
        "data_sha256": _at(card, "reference", "data_sha256"),
        "model_sha256": _at(card, "archive", "identity"),
        "precision": _at(card, "archive", "precision"),
    }


def _at(card: object, *keys: str) -> str:
    for key in keys:
        card = card.get(key) if isinstance(card, Mapping) else None
    return card if isinstance(card, str) else UNKNOWN
