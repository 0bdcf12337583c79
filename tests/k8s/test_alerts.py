"""Tests of the alerts by Prometheus' unit tests (`promtool test rules`)."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.rendered import K8S

PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing; install Debian's or Ubuntu's package prometheus")
def test_the_alerts_fire_as_promtools_cases_expect(tmp_path: Path) -> None:
    manifest = yaml.safe_load((K8S / "components" / "monitoring" / "rules.yaml").read_text(encoding="utf-8"))
    groups = manifest["spec"]["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        # Managed Prometheus adds these labels, to recorded series too.
        rule["labels"] = rule.get("labels", {}) | {"cluster": "sentiment", "namespace": "sentiment"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    shutil.copy(Path(__file__).with_name("alerts.yaml"), tmp_path)
    assert PROMTOOL
    result = subprocess.run(
        [PROMTOOL, "test", "rules", "alerts.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
