"""The overlays, rendered by kustomize."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.paths import ROOT

K8S = ROOT / "k8s"
OVERLAYS = ("gke", "local", "gke+keys")
"""The overlays, and the overlay `gke` with the optional component `keys`."""

Manifest = dict[str, Any]


def render(overlay: str) -> list[Manifest]:
    """An overlay's manifests, a new copy for each caller.

    Without kustomize, the test is skipped, or fails if the variable CI is true.
    """
    name, _, component = overlay.partition("+")
    return list(yaml.safe_load_all(_yaml(name, component)))


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The only manifest of a kind whose name begins with `name`; generated names end with a hash."""
    [manifest] = [
        manifest for manifest in manifests if manifest["kind"] == kind and manifest["metadata"]["name"].startswith(name)
    ]
    return manifest


@functools.cache
def _yaml(overlay: str, component: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = with_component(overlay, component, Path(folder)) if component else K8S
        return _rendered(root / "overlays" / overlay)


def render_folder(overlay: Path) -> list[Manifest]:
    """The manifests of an overlay outside the project."""
    return list(yaml.safe_load_all(_rendered(overlay)))


def _rendered(overlay: Path) -> str:
    command = kustomize()
    if command is None:
        reason = "neither kubectl nor kustomize is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    result = subprocess.run([*command, str(overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def with_component(overlay: str, component: str, folder: Path) -> Path:
    """Copy the manifests to `folder` and add a component to an overlay; returns the copy."""
    copy = Path(shutil.copytree(K8S, folder / "k8s"))
    kustomization = copy / "overlays" / overlay / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8")
    line = f"  - ../../components/{component}\n"
    assert line not in text
    assert "components:\n" in text
    kustomization.write_text(text.replace("components:\n", f"components:\n{line}"), encoding="utf-8")
    return copy


def kustomize() -> list[str] | None:
    """The command that renders a folder; None if there is none on this machine."""
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    return None
