"""The overlays as a cluster would get them."""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT

K8S = ROOT / "k8s"
OVERLAYS = ("gke", "local")

Manifest = dict[str, Any]


def render(overlay: str) -> list[Manifest]:
    """An overlay's manifests, anew for each caller. Skips the test where there is no kustomize; that is a failure
    where CI is true."""
    return list(yaml.safe_load_all(_yaml(K8S / "overlays" / overlay)))


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The one manifest of a kind whose name begins with `name`, behind which generated names have a hash."""
    [found] = [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].startswith(name)]
    return found


@functools.cache
def _yaml(folder: Path) -> str:
    command = kustomize()
    if command is None:
        reason = "neither kubectl nor kustomize is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    result = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def kustomize() -> list[str] | None:
    """The command that renders a folder, if there is one here."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return None
