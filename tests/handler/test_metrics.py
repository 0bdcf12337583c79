"""The worker's metrics: the counts are right, no increment is lost, and TorchServe can read them."""

import json
import logging
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import handler.metrics
from handler import batch, errors
from handler.batch import Failure, Kind, Measurements, PredictedRequest, Result
from handler.classifier import TextClassifier
from handler.drift import WINDOW_TEXTS, Distribution, Reference
from handler.limits import Limits
from handler.metrics import EMPTY, SECONDS_BOUNDS, Metrics, Sample, escaped
from handler.prediction import Prediction
from handler.request import Form
from tests.paths import ROOT

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}

UNKNOWN_ID = 0
SEEN_TOKENS = 10

# org.pytorch.serve.metrics.Metric, org.pytorch.serve.wlm.WorkerLifeCycle
TORCHSERVES_LINE = re.compile(
    r"\[METRICS]\s*([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)(\|#type:([^|,]+))?\|#hostname:([^,]+),([^,]+)(,(.*))?"
)

Totals = dict[tuple[str, ...], float]


def metrics_of(labels: Iterable[str] = ("no", "yes"), reference: Reference | None = None) -> Metrics:
    classifier: Any = SimpleNamespace(
        labels=tuple(labels), card={}, unknown_id=UNKNOWN_ID, seen_tokens=SEEN_TOKENS, reference=reference
    )
    return Metrics(classifier, "sentiment", "1.0")


def predicted(*texts: tuple[str, list[int]]) -> PredictedRequest:
    """A request with predictions, given the label and the ids of each text."""
    predictions = tuple(Prediction((), (label,)) for label, _ in texts)
    return PredictedRequest(Kind.PREDICT, Form.LIST, tuple(ids for _, ids in texts), predictions)


def measured(texts: int, tokenizer_s: float = 0.25, engine_s: float = 0.5) -> Measurements:
    return Measurements(texts, 0, tokenizer_s, engine_s)


def ids_of(results: Iterable[Result]) -> list[list[int]]:
    return [ids for result in results if isinstance(result, PredictedRequest) for ids in result.ids]


def totals(samples: Iterable[Sample]) -> Totals:
    """Add up the increments of counters by name and label values, like TorchServe, without the labels of the model."""
    sums: Counter[tuple[str, ...]] = Counter()
    for sample in samples:
        if sample.kind == "COUNTER":
            labels = [value for name, value in sample.labels.items() if not name.startswith("model_")]
            sums[(sample.name.removeprefix("classifier_"), *labels)] += sample.value  # type: ignore[assignment]
    return {key: value for key, value in sums.items() if value}


def test_a_batch_is_counted(classifier: TextClassifier) -> None:
    metrics = Metrics(classifier, "sentiment", "1.0")
    rows: list[tuple[dict[str, object], dict[str, str]]] = [
        ({"body": b"Thank you for the great flight!"}, TEXT),
        ({"body": json.dumps(["late again qqzzy", "late again"]).encode()}, JSON),
        ({"body": b"awful delay"}, TEXT | {"explain": "True"}),
        ({"body": b" "}, TEXT),
        ({}, {"describe": "True"}),
    ]
    results, measurements = batch.infer(batch.read(rows, Limits()), classifier, Limits())
    metrics.count(results, measurements)
    counters = totals(metrics.take())
    tokens = sum(map(len, ids_of(results)))
    assert {key: value for key, value in counters.items() if key[0] in ("requests_total", "predictions_total")} == {
        ("requests_total", "ok"): 3,
        ("requests_total", "BlankTextError"): 1,
        ("predictions_total", "positive"): 1,
        ("predictions_total", "negative"): 3,
    }
    assert counters["text_tokens_count",] == 4
    assert counters["text_tokens_sum",] == tokens
    assert counters["unknown_tokens_total",] == 1
    assert (counters["request_texts_count",], counters["request_texts_sum",]) == (3, 4)
    assert (counters["batch_texts_count",], counters["batch_texts_sum",]) == (1, 4)
    assert counters["tokenizer_seconds_count",] == counters["engine_seconds_count",] == 1
    assert counters["explanations_seconds_count",] == 1
    assert counters["explanations_seconds_sum",] > 0
    assert 0 < counters["tokenizer_seconds_sum",] < counters["engine_seconds_sum",] < 10


def test_the_buckets_of_a_histogram_are_cumulative() -> None:
    """Each bucket counts the observations up to its bound, and the last bucket counts all observations."""
    metrics = metrics_of()
    for seconds in (0.0005, 0.0006, 5.0):
        metrics.count([], measured(1, seconds, 0.0))
    counters = totals(metrics.take())
    expected = {str(bound): sum(seconds <= bound for seconds in (0.0005, 0.0006, 5.0)) for bound in SECONDS_BOUNDS}
    buckets = {key[1]: value for key, value in counters.items() if key[0] == "tokenizer_seconds_bucket"}
    assert buckets == expected | {"+Inf": 3}
    assert counters["tokenizer_seconds_sum",] == pytest.approx(5.0011)
    assert counters["tokenizer_seconds_count",] == 3


def test_texts_with_a_beginning_outside_the_pooling_are_counted() -> None:
    metrics = metrics_of()
    metrics.count([predicted(("no", [1] * SEEN_TOKENS), ("no", [1] * (SEEN_TOKENS + 1)))], measured(2, 0, 0))
    assert totals(metrics.take())["long_texts_total",] == 1


def test_every_error_type_has_a_counter_from_the_start() -> None:
    metrics = metrics_of()
    outcomes = {sample.labels["outcome"] for sample in metrics.take() if sample.name == "classifier_requests_total"}
    assert outcomes == {"ok", *(kind.__name__ for kind in errors.RequestError.__subclasses__())}


def test_all_metrics_are_sent_once_as_0_and_later_only_changes() -> None:
    metrics = metrics_of()
    first = metrics.take()
    assert all(sample.value == 0 for sample in first if sample.kind == "COUNTER")
    assert [sample.name for sample in first if sample.kind == "GAUGE"] == ["classifier_model_info"]
    assert metrics.take() == []
    metrics.count([predicted(("no", [1, 2]))], measured(0, 0, 0))
    assert {sample.name.removeprefix("classifier_") for sample in metrics.take()} == {
        *("requests_total", "predictions_total"),
        *("request_texts_bucket", "request_texts_sum", "request_texts_count"),
        *("text_tokens_bucket", "text_tokens_sum", "text_tokens_count"),
    }


TEXTS = st.tuples(st.sampled_from(["no", "yes"]), st.lists(st.integers(0, 3), min_size=1, max_size=15))
JOBS = st.lists(TEXTS, max_size=4).map(lambda texts: predicted(*texts)) | st.just(
    Failure(Kind.PREDICT, errors.BlankTextError())
)


@given(st.lists(st.tuples(st.lists(JOBS, max_size=4), st.booleans()), max_size=8))
def test_nothing_is_lost_between_sends(batches: list[tuple[list[Result], bool]]) -> None:
    often, once = metrics_of(), metrics_of()
    sent: list[Sample] = []
    for jobs, send in batches:
        for metrics in (often, once):
            metrics.count(jobs, measured(len(ids_of(jobs))))
        if send:
            sent += often.take()
    counters = totals([*sent, *often.take()])
    assert counters == totals(once.take())
    jobs = [job for jobs, _ in batches for job in jobs]
    ids = ids_of(jobs)
    assert sum(value for key, value in counters.items() if key[0] == "requests_total") == len(jobs)
    assert sum(value for key, value in counters.items() if key[0] == "predictions_total") == len(ids)
    assert counters.get(("text_tokens_sum",), 0) == sum(map(len, ids))
    assert counters.get(("unknown_tokens_total",), 0) == sum(row.count(UNKNOWN_ID) for row in ids)


def test_nothing_is_lost_between_threads() -> None:
    metrics, sent, done = metrics_of(), list[Sample](), threading.Event()
    jobs = [predicted(("no", [1, 2, 0])), predicted(("yes", [1]), ("yes", [0, 0]))]

    def count() -> None:
        for _ in range(2_000):
            metrics.count(jobs, measured(len(ids_of(jobs))))

    def send() -> None:
        while not done.is_set():
            sent.extend(metrics.take())

    sender, workers = threading.Thread(target=send), [threading.Thread(target=count) for _ in range(4)]
    for thread in (sender, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    sender.join()
    counters = totals([*sent, *metrics.take()])
    assert counters["requests_total", "ok"] == 16_000
    assert (counters["predictions_total", "no"], counters["predictions_total", "yes"]) == (8_000, 16_000)
    assert counters["unknown_tokens_total",] == 24_000
    assert counters["engine_seconds_bucket", "+Inf"] == counters["engine_seconds_count",] == 8_000


def read_line(line: str) -> tuple[str, float, list[str]]:
    """Read the name, the value and the label values of a line, like TorchServe."""
    match = TORCHSERVES_LINE.fullmatch(line)
    assert match is not None, line
    pairs = [pair.split(":") for pair in match[4].split(",")]
    assert all(len(pair) == 2 and all(pair) for pair in pairs), line
    assert match[6] in ("COUNTER", "GAUGE")
    return match[1], float(match[3]), [value for _, value in pairs]


def declared() -> dict[str, list[str]]:
    """Return the labels of the handler's metrics in TorchServe's configuration of metrics."""
    groups = yaml.safe_load((ROOT / "metrics.yaml").read_text(encoding="utf-8"))["model_metrics"]
    return {f"{kind} {each['name']}": each["dimensions"] for kind, metrics in groups.items() for each in metrics}


def test_torchserve_reads_each_metric_that_its_configuration_declares() -> None:
    metrics = metrics_of(reference=REFERENCE)
    metrics.count([predicted(*[("no", [1, 2])] * WINDOW_TEXTS)], measured(WINDOW_TEXTS, 1e-7, 12_345.6))
    samples = metrics.take()
    assert {f"{sample.kind.lower()} {sample.name}": list(sample.labels) for sample in samples} == declared()
    for sample in samples:
        name, value, labels = read_line(sample.line("a-host.example"))
        assert (name, labels) == (sample.name, list(sample.labels.values()))
        assert value == pytest.approx(sample.value, abs=1e-9)


SPECIAL_CHARACTERS = st.text(st.sampled_from('a,:|%_\n\r\x85\u2028\0\x7f "\\\\#é👍\ud800'), max_size=5)


@given(st.lists(st.text() | SPECIAL_CHARACTERS, min_size=2, max_size=4, unique=True))
@example(["a,b", "a:b", "a|b", "a_b"])
@example(["", "%", "%25", "a%2Cb", "a,b"])
def test_every_label_has_its_own_series_and_can_be_decoded(labels: list[str]) -> None:
    metrics = metrics_of(labels)
    metrics.count([predicted((labels[0], [1]))], measured(1, 0, 0))
    lines = [each.line("host") for each in metrics.take() if each.name == "classifier_predictions_total"]
    series = []
    for line in lines:
        assert re.split("\r\n|[\n\r\u2028\u2029\x85]", line) == [line], "a line to java.util.Scanner"
        line.encode("utf-8")
        _, _, values = read_line(line)
        assert values[:2] == ["sentiment", "1.0"]
        series.append(values[2])
    read_back = ["" if value == EMPTY else unquote(value, errors="surrogatepass") for value in series]
    assert read_back == labels


@given(st.text(st.characters(categories=["L", "N", "S", "Zs"]), min_size=1))
def test_an_ordinary_label_stays_unchanged(label: str) -> None:
    assert escaped(label) == label.replace("|", "%7C")


REFERENCE = Reference(
    data_sha256="0",
    labels={"no": 90, "yes": 10},
    tokens=Distribution((5, 10), (20, 50, 30)),
    unknown_tokens=Distribution((0, 0.1), (80, 15, 5)),
)


def test_drift_is_sent_when_the_window_is_full() -> None:
    metrics = metrics_of(reference=REFERENCE)
    metrics.count([predicted(*[("no", [1, 2])] * (WINDOW_TEXTS - 1))], measured(0, 0, 0))
    assert [sample for sample in metrics.take() if sample.name == "classifier_drift"] == []
    metrics.count([predicted(("no", [1, 2]))], measured(0, 0, 0))
    drift = {each.labels["feature"]: each.value for each in metrics.take() if each.name == "classifier_drift"}
    assert drift.keys() == {"labels", "tokens", "unknown_tokens"}
    assert all(value > 0.1 for value in drift.values())


def test_a_model_without_a_reference_has_no_drift() -> None:
    metrics = metrics_of()
    metrics.count([predicted(*[("no", [1, 2])] * WINDOW_TEXTS)], measured(0, 0, 0))
    assert "classifier_drift" not in {sample.name for sample in metrics.take()}


def test_the_models_identity_comes_from_its_card(served: TextClassifier) -> None:
    [info] = [each for each in Metrics(served, "a", "2.0").take() if each.name == "classifier_model_info"]
    card = served.card
    assert dict(info.labels) == {
        "model_name": "a",
        "model_version": "2.0",
        "commit": card["exported"]["commit"],
        "data_sha256": card["stages"]["classifier"]["inputs"]["data"],
        "model_sha256": card["archive"]["identity"],
        "precision": "int8",
    }
    unknown = handler.metrics.identity({"exported": {"commit": None}, "archive": 1})
    assert unknown == dict.fromkeys(["commit", "data_sha256", "model_sha256", "precision"], "unknown")


def test_a_thread_sends_the_last_counts_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(handler.metrics, "SEND_INTERVAL_S", 0.01)
    metrics = metrics_of()
    with caplog.at_level(logging.INFO, "handler.metrics"):
        metrics.start()
        for _ in range(3):
            metrics.count([predicted(("yes", [1]))], measured(1, 0, 0))
        deadline = time.monotonic() + 10
        sent = 0.0
        while sent < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            lines = "\n".join(record.message for record in caplog.records).splitlines()
            sent = math.fsum(value for name, value, labels in map(read_line, lines) if labels[-1] == "yes")
    assert sent == 3
    assert {record.levelno for record in caplog.records} == {logging.INFO}
