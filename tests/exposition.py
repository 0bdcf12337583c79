"""Reads metrics in Prometheus' text format, and the documented metrics."""

import re
from typing import Any

import requests
import yaml

from tests.paths import ROOT

LINE = re.compile(r"(\w+)(?:\{(.*)\})? ([-+.\w]+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
DOORS = "haproxy_"
"""The prefix of the names of HAProxy's metrics."""

Samples = list[tuple[str, dict[str, str], float]]


def samples_at(url: str, params: dict[str, list[str]] | None = None) -> Samples:
    """All samples at a metrics URL: name, labels and value."""
    response = requests.get(url, params=params, timeout=10)
    assert response.status_code == 200
    samples = []
    for line in response.text.splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match is not None, line
            samples.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    return sum(
        value for metric, all_labels, value in samples if metric == name and labels.items() <= all_labels.items()
    )


def kept_door_samples(metrics: str) -> Samples:
    """The samples of the door's processes that Managed Prometheus keeps, with the label `job`.

    Args:
        metrics: the URL of the metrics address.
    """
    folder = ROOT / "k8s" / "components" / "monitoring"
    kept: Samples = []
    for manifest in yaml.safe_load_all((folder / "pod-monitoring.yaml").read_text(encoding="utf-8")):
        job = manifest["metadata"]["name"]
        for endpoint in manifest["spec"]["endpoints"]:
            if "metricRelabeling" in endpoint:
                samples = samples_at(f"{metrics}{endpoint['path']}", endpoint["params"])
                kept += [
                    (name, labels | {"job": job}, value)
                    for name, labels, value in samples
                    if all(_keeps(rule, {"__name__": name} | labels) for rule in endpoint["metricRelabeling"])
                ]
    return kept


def _keeps(rule: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a relabeling rule keeps a series."""
    assert rule["action"] == "keep"
    return bool(re.fullmatch(rule["regex"], ";".join(labels.get(name, "") for name in rule["sourceLabels"])))


def documented_metrics() -> dict[str, set[str]]:
    """The server's metrics in the tables of the documentation, each with its labels."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(?!kube_)(\w+)` \| (\w+) \| [^|]+ \|([^|]*)\|", page, flags=re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    metrics: dict[str, set[str]] = {}
    for name, kind, labels in rows:
        own_labels = set(re.findall(r"`(\w+)`", labels.partition(":")[0]))  # the values follow the colon
        if kind == "histogram":
            metrics |= {f"{name}_bucket": own_labels | {"le"}, f"{name}_sum": own_labels, f"{name}_count": own_labels}
        else:
            metrics[name] = own_labels
    return metrics
