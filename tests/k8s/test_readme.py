"""`k8s/README.md`: what it says of the manifests is so, and what can be run without a cluster is run."""

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.e2e.server_process import Project, Server, sentiment, serving
from tests.k8s.rendered import K8S, find, kustomize, render
from tests.paths import MODEL, ROOT
from training.archive import archive

README = (K8S / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
[ON_EVERY_POD] = [block for block in BLOCKS if block.startswith("on_every_pod()")]
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if re.match("on_every_pod [A-Z]", line)]
SENTIMENT = [line for block in BLOCKS for line in block.splitlines() if line.startswith(".venv/bin/sentiment ")]

# What the function needs of a cluster with one pod. The server listens where the forward would lead.
KUBECTL = """#!/bin/sh
case "$1" in
  get) echo pod/sentiment-1 ;;
  port-forward) exec sleep 60 ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server as in an image with two versions; a rollout waits for as long as a worker may hold a request."""
    settings = {"defaultVersion": True, "marName": "sentiment.mar", "batchSize": 16, "maxBatchDelay": 1}
    models = {"sentiment": {"1.0": settings | {"responseTimeout": 5}}}
    project = Project(tmp_path_factory.mktemp("pod"), mar, models=json.dumps(models))
    archive(MODEL, project.folder / "model_store" / "sentiment-2.mar", "2.0", "int8")
    with serving(project) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IEXEC)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_the_management_commands_do_what_is_said(live: Server, environment: dict[str, str]) -> None:
    """In the order of the page: look, scale, register, shift the default and back, unregister."""
    assert len(COMMANDS) == 8
    seen = []
    for command in COMMANDS:
        script = (ON_EVERY_POD + command).replace("http://127.0.0.1:18081", live.project.management)
        result = subprocess.run(
            ["bash", "-c", f"set -e -o pipefail\n{script}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "pod/sentiment-1" in result.stdout, f"{command}\n{result.stderr}"
        assert '"code"' not in result.stdout, f"{command}\n{result.stdout}"
        described = requests.get(f"{live.project.management}/models/sentiment/all", timeout=10).json()
        default = requests.get(f"{live.project.management}/models/sentiment", timeout=10).json()
        seen.append((default[0]["modelVersion"], {each["modelVersion"]: each["minWorkers"] for each in described}))
        assert all(worker["status"] == "READY" for each in described for worker in each["workers"]), command
    assert seen[2:] == [
        ("1.0", {"1.0": 1}),
        ("1.0", {"1.0": 2}),
        ("1.0", {"1.0": 2, "2.0": 1}),
        ("2.0", {"1.0": 2, "2.0": 1}),
        ("1.0", {"1.0": 2, "2.0": 1}),
        ("1.0", {"1.0": 2}),
    ]


def test_the_digest_goes_into_the_overlay(tmp_path: Path) -> None:
    """The page's `sed`, on a copy, and what kustomize makes of it."""
    command = kustomize()
    if command is None:
        render("gke")  # skips or fails
        return
    shutil.copytree(K8S, tmp_path / "k8s")
    [line] = [line for block in BLOCKS for line in block.splitlines() if line.startswith("sed ")]
    image, digest = "europe-west1-docker.pkg.dev/my-project/sentiment/sentiment", f"sha256:{'0123456789abcdef' * 4}"
    environment = os.environ | {"IMAGE": image, "DIGEST": digest}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, check=True)
    rendered = subprocess.run(
        [*command, str(tmp_path / "k8s" / "overlays" / "gke")], capture_output=True, text=True, check=True
    )
    assert f"image: {image}@{digest}\n" in rendered.stdout


def test_every_command_is_one_that_a_shell_can_read() -> None:
    assert len(BLOCKS) >= 15
    for block in BLOCKS:
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_every_folder_is_in_the_table() -> None:
    table = {name.rstrip("/") for name in re.findall(r"^\| `([a-z/]+)` \|", README, flags=re.MULTILINE)}
    there = {str(path.parent.relative_to(K8S)) for path in K8S.glob("**/kustomization.yaml")}
    assert table == there


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"`((?:components|overlays|base)/[a-z/.-]+)`", README):
        assert (K8S / name).exists(), name
    for folder in re.findall(r"-k (\S+)", README):
        assert (ROOT / folder.rstrip("`") / "kustomization.yaml").is_file(), folder
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (K8S / link).exists(), link


def test_the_numbers_are_the_manifests() -> None:
    manifests = render("gke")
    pod = find(manifests, "Deployment", "sentiment")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]["limits"]
    autoscaler = find(manifests, "HorizontalPodAutoscaler", "sentiment")["spec"]
    cpu, queue = autoscaler["metrics"]
    policy = find(manifests, "GCPBackendPolicy", "sentiment")["spec"]["default"]
    said = {
        f"**CPU: {resources['cpu']}.**",
        f"**Memory: {resources['memory'].removesuffix('Gi')} GiB",
        f"**Disk: {resources['ephemeral-storage'].removesuffix('Mi')} MiB.**",
        f"limited to {pod['volumes'][0]['emptyDir']['sizeLimit'].removesuffix('Mi')} MiB",
        f"**Autoscaling by CPU: {cpu['resource']['target']['averageUtilization']} %.**",
        f"**Autoscaling by queue time: {queue['external']['target']['value']} ms.**",
        f"for {pod['containers'][0]['lifecycle']['preStop']['sleep']['seconds']} s the pod answers as before",
        f"the other {policy['connectionDraining']['drainingTimeoutSec']} s are the load balancer's",
        f"After {pod['terminationGracePeriodSeconds']} s",
    }
    assert {text for text in said if text not in README} == set()
    assert (autoscaler["minReplicas"], autoscaler["maxReplicas"]) == (2, 10)


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard = json.loads((K8S / "components" / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource"]


def test_the_command_line_does_what_is_said(live: Server) -> None:
    assert len(SENTIMENT) == 4
    said = []
    for line in SENTIMENT:
        result = sentiment(live, *line.split()[1:])
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        said.append(result.stdout)
    assert "Version 2.0 is the default." in said[2]
    assert "Version 1.0 is the default." in said[3]
