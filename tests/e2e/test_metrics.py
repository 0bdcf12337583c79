"""Tests of the metrics of a real server after known requests."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml

from handler.classifier import TextClassifier
from handler.drift import WINDOW_TEXTS
from tests.e2e.server_process import BATCH, Project, Server, serving
from tests.exposition import DOORS, Samples, documented_metrics, kept_door_samples, samples_at, total
from tests.k8s.rendered import K8S
from tests.k8s.rules import metric_names
from tests.paths import MODEL
from training.export.archive import archive

SELECTED = re.compile(r'(\w+)=~?"([^"]*)"')
"""A label matcher in PromQL: the label, and its value or alternatives."""
TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
ARRIVAL_TIMEOUT_S = 15


def samples_of(server: Server, path: str = "/metrics") -> Samples:
    return samples_at(f"{server.project.metrics}{path}")


def wait_for(server: Server, name: str, value: float, **labels: str) -> Samples:
    """All samples, as soon as one of them has a value: workers send metrics with a delay of a second or two."""
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    while total(samples := samples_of(server), name, **labels) != value:
        assert time.monotonic() < deadline, f"{name} {labels} is {total(samples, name, **labels)}, not {value}"
        time.sleep(0.1)
    # TorchServe reads a worker's message line by line, so later lines may not have arrived yet.
    settled = False
    while not settled:
        assert time.monotonic() < deadline, "The samples keep changing."
        time.sleep(0.2)
        later = samples_of(server)
        settled = counts_in(later) == counts_in(samples)
        samples = later
    return samples


def counts_in(samples: Samples) -> list[str]:
    """The handler's samples in a fixed order; TorchServe's order varies."""
    return sorted(map(repr, (sample for sample in samples if sample[0].startswith("classifier_"))))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server that no other test uses, with version 1.0 registered and version 2.0 in its model store."""
    project = Project(tmp_path_factory.mktemp("metrics"), mar)
    archive(MODEL, project.folder / "model_store" / "sentiment-2.mar", "2.0", "int8")
    with serving(project) as running:
        yield running


GOOD = ["Thank you for the great flight!", "late again qqzzy", "Which gate is flight 12?"]
LISTS = 20


def test_the_counters_match_the_requests_sent(own: Server, served: TextClassifier) -> None:
    """The counters of all workers are summed, whichever worker gets a request."""
    url = own.project.predictions
    before = samples_of(own)
    assert total(before, "classifier_requests_total") == 0
    assert {labels["outcome"] for name, labels, _ in before if name == "classifier_requests_total"} >= {"ok"}
    for text in GOOD:
        assert requests.post(url, data=text.encode(), headers=TEXT, timeout=60).status_code == 200
    assert requests.post(url, data=b" ", headers=TEXT, timeout=60).status_code == 400
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: requests.post(url, json=GOOD, timeout=60).status_code, range(LISTS)))
        statuses += pool.map(lambda _: requests.post(url, data=b"{", timeout=60, headers=JSON).status_code, range(5))
    assert statuses == [200] * LISTS + [400] * 5
    assert requests.post(url.replace("predictions", "explanations"), data=b"late", headers=TEXT, timeout=60).ok

    samples = wait_for(own, "classifier_requests_total", 3 + 1 + LISTS + 5 + 1)
    outcomes = {
        labels["outcome"]: value for name, labels, value in samples if name == "classifier_requests_total" and value
    }
    assert outcomes == {"ok": 3 + LISTS + 1, "BlankTextError": 1, "NotJsonError": 5}
    texts = [*GOOD * (LISTS + 1), "late"]
    ids = [served.ids(text) for text in texts]
    labels = Counter(served.labels[row.argmax()] for row in served.predict(texts))
    predictions = {
        labels["label"]: value for name, labels, value in samples if name == "classifier_predictions_total" and value
    }
    assert predictions == labels
    assert total(samples, "classifier_text_tokens_count") == len(texts)
    assert total(samples, "classifier_text_tokens_sum") == sum(map(len, ids))
    assert total(samples, "classifier_unknown_tokens_total") == sum(row.count(served.unknown_id) for row in ids)
    assert total(samples, "classifier_long_texts_total") == 0
    assert total(samples, "classifier_request_texts_count") == 3 + LISTS + 1
    assert total(samples, "classifier_request_texts_sum") == len(texts)
    assert total(samples, "classifier_request_texts_bucket", le="1") == 3 + 1
    assert total(samples, "classifier_batch_texts_sum") == len(texts)
    batches = total(samples, "classifier_batch_texts_count")
    assert total(samples, "classifier_engine_seconds_count") == batches
    assert total(samples, "classifier_engine_seconds_bucket", le="+Inf") == batches
    assert total(samples, "classifier_tokenizer_seconds_count") == batches
    assert total(samples, "classifier_explanations_seconds_count") == 1
    assert total(samples, "QueueTime_count") == total(samples, "ts_inference_requests_total") == 3 + 1 + LISTS + 5 + 1
    doors = samples_of(own, "/metrics/door")
    replies = "haproxy_backend_http_responses_total"
    assert {code: total(doors, replies, proxy="small", code=f"{code}xx") for code in (2, 4, 5)} == {
        2: 3 + LISTS + 1,
        4: 1 + 5,
        5: 0,
    }
    assert "ERROR" not in own.log


def test_every_response_names_the_models_version(own: Server) -> None:
    url = own.project.predictions
    for body, status in ((b"late again", 200), (b" ", 400), (b"\xff", 400), (b"a" * 30_000, 413)):
        response = requests.post(url, data=body, headers=TEXT, timeout=60)
        assert (response.status_code, response.headers["X-Model-Version"]) == (status, "1.0")
    explained = requests.post(url.replace("predictions", "explanations"), data=b"late", headers=TEXT, timeout=60)
    assert explained.headers["X-Model-Version"] == "1.0"


def test_two_versions_have_separate_metrics(own: Server, served: TextClassifier) -> None:
    register = "url=sentiment-2.mar&model_name=sentiment&initial_workers=1&synchronous=true"
    assert requests.post(f"{own.project.management}/models?{register}", timeout=120).status_code == 200
    for _ in range(3):
        response = requests.post(f"{own.project.predictions}/2.0", data=b"late again", headers=TEXT, timeout=60)
        assert (response.status_code, response.headers["X-Model-Version"]) == (200, "2.0")
    samples = wait_for(own, "classifier_requests_total", 3, model_version="2.0")
    assert total(samples, "classifier_predictions_total", model_version="2.0", label="negative") == 3
    infos = [labels for name, labels, value in samples if name == "classifier_model_info" and value == 1]
    assert {labels["model_version"] for labels in infos} == {"1.0", "2.0"}
    assert {labels["model_sha256"] for labels in infos} == {served.card["archive"]["identity"]}


@pytest.fixture(scope="module")
def after_traffic(server: Server) -> Samples:
    """The samples after requests of all kinds: predictions, a full drift window of one worker, 4xx and 5xx errors."""
    url = server.project.predictions
    assert requests.post(url, json=["late again"] * WINDOW_TEXTS, timeout=120).status_code == 200
    assert requests.post(url, data=b" ", headers=TEXT, timeout=60).status_code == 400
    # The limit for a batch is 30,000 characters here, so one of two long texts in a batch is refused, and the door
    # retries it.
    waiting = url.replace("sentiment", "batched")
    texts = ["late again " * 1_800] * 2 + ["thank you"] * (BATCH - 2)
    with ThreadPoolExecutor(BATCH) as pool:
        replies = pool.map(lambda text: requests.post(waiting, data=text.encode(), headers=TEXT, timeout=120), texts)
        assert {reply.status_code for reply in replies} == {200}
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    while not (
        total(samples := samples_of(server), "classifier_drift")
        and total(samples, "classifier_requests_total", outcome="OverloadedError")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return samples


def test_the_documented_metrics_are_exactly_the_exported_ones(after_traffic: Samples) -> None:
    exported = {name: set(labels) - {"model_name", "model_version"} for name, labels, _ in after_traffic}
    common = {"Level", "Hostname", "hostname"}
    documented = {name: labels for name, labels in documented_metrics().items() if not name.startswith(DOORS)}
    assert {name: labels - common for name, labels in exported.items()} == documented


def test_every_metric_in_alerts_and_dashboard_exists(server: Server, after_traffic: Samples) -> None:
    """Every metric that alerts or dashboard query exists with the queried labels, unless a rule records it.

    The server does not export the metrics of Kubernetes (`kube_`).
    """
    folder = K8S / "components" / "monitoring"
    [group] = yaml.safe_load((folder / "rules.yaml").read_text(encoding="utf-8"))["spec"]["groups"]
    dashboard = json.loads((folder / "dashboard.json").read_text(encoding="utf-8"))
    expressions = [rule["expr"] for rule in group["rules"] if "kube_" not in rule["expr"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    recorded = {rule["record"] for rule in group["rules"] if "record" in rule}
    labels_by_name: dict[str, set[tuple[str, str]]] = {}
    for name, labels, _ in after_traffic + kept_door_samples(server.project.metrics):
        labels_by_name.setdefault(name, set()).update(labels.items())
    for expression in expressions:
        assert metric_names(expression) - recorded <= labels_by_name.keys(), expression
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
            for label, value in SELECTED.findall(selector):
                values = {exported for known, exported in labels_by_name[name] if known == label}
                assert label == "namespace" or set(value.split("|")) <= values, expression
