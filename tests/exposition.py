"""Metrics in Prometheus' text form, and the metrics that docs/reference/metrics.md lists."""

import re
from typing import Any

import requests
import yaml

from tests.paths import ROOT

LINE = re.compile(r"(\w+)(?:\{(.*)\})? ([-+.\w]+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
DOORS = "haproxy_"
"""The beginning of the names of HAProxy's metrics."""

Samples = list[tuple[str, dict[str, str], float]]


def samples_at(url: str, params: dict[str, list[str]] | None = None) -> Samples:
    """All that is exposed there."""
    response = requests.get(url, params=params, timeout=10)
    assert response.status_code == 200
    found = []
    for line in response.text.splitlines():
        if not line.startswith("#"):
            match = LINE.fullmatch(line)
            assert match is not None, line
            found.append((match[1], dict(LABEL.findall(match[2] or "")), float(match[3])))
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(value for found, has, value in samples if found == name and labels.items() <= has.items())


def kept_of_the_door(metrics: str) -> Samples:
    """What Managed Prometheus keeps of the metrics of the door's processes, with the label `job`.

    Args:
        metrics: the metrics address.
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
    """Whether a series passes a rule, as Prometheus applies it."""
    assert rule["action"] == "keep"
    return bool(re.fullmatch(rule["regex"], ";".join(labels.get(name, "") for name in rule["sourceLabels"])))


def listed() -> dict[str, set[str]]:
    """The metrics of the page's tables, each with its own labels."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| [^|]+ \|([^|]*)\|", page, flags=re.MULTILINE)
    assert len({name for name, _, _ in rows}) == len(rows)
    found: dict[str, set[str]] = {}
    for name, kind, labels in rows:
        own_labels = set(re.findall(r"`(\w+)`", labels.partition(":")[0]))  # behind the colon are values
        if kind == "histogram":
            found |= {f"{name}_bucket": own_labels | {"le"}, f"{name}_sum": own_labels, f"{name}_count": own_labels}
        else:
            found[name] = own_labels
    return found
