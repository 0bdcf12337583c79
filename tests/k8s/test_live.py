"""Tests of changes to a live cluster, with the real kubectl and a stand-in for the API server.

Components are added and removed while the number of pods stays the same.
"""

import base64
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.k8s.api_server import ApiServer, cluster
from tests.k8s.rendered import K8S, Manifest, find, render, with_component
from tests.paths import ROOT

DEPLOYMENT = "/apis/apps/v1/namespaces/sentiment/deployments/sentiment"
README = re.sub(r"^ +", "", (K8S / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
[APPLY] = set(re.findall(r"`(kubectl apply -k k8s/overlays/gke)`", README[README.index("## Add or remove") :]))
DELETE = dict(re.findall(r"^\| (\w+) \| `(kubectl delete .*)` \|$", README, flags=re.MULTILINE))
[MAKE_KEY] = re.findall(r"^python3 -c .*>> keys$", README, flags=re.MULTILINE)
[CREATE_SECRET] = re.findall(r"^kubectl create secret [^\n]*\|\n[^\n]*$", README, flags=re.MULTILINE)
[FORGET_REPLICAS] = re.findall(r"^KUBE_EDITOR=.*$", README, flags=re.MULTILINE)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    render("gke")  # skips the test, or fails it, without kustomize
    with cluster(tmp_path, monkeypatch) as server:
        yield server


def kubectl(command: str, folder: Path = ROOT, manifest: Manifest | None = None) -> str:
    """Run a documented command line, without validation, because the stand-in has no schemas."""
    command = re.sub(r"kubectl apply( edit-last-applied)?", r"\g<0> --validate=false", command)
    standard_input = None if manifest is None else json.dumps(manifest)
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        input=standard_input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def copied(component: str, folder: Path) -> Path:
    """A copy of the project's manifests whose overlay `gke` includes the component."""
    if component == "keys":
        return with_component("gke", component, folder).parent
    shutil.copytree(K8S, folder / "k8s")
    return folder


def remove(component: str, folder: Path) -> None:
    """Remove the component's line from the overlay `gke` of a copy."""
    kustomization = folder / "k8s" / "overlays" / "gke" / "kustomization.yaml"
    lines = kustomization.read_text(encoding="utf-8").splitlines(keepends=True)
    remaining = [line for line in lines if line.strip() != f"- ../../components/{component}"]
    assert len(remaining) == len(lines) - 1
    kustomization.write_text("".join(remaining), encoding="utf-8")


def mounted(template: Manifest) -> list[set[str]]:
    """The names of a pod's volumes, and of its container's mounts and variables."""
    [container] = template["spec"]["containers"]
    lists = template["spec"]["volumes"], container["volumeMounts"], container.get("env", [])
    return [{element["name"] for element in elements} for elements in lists]


def names(manifests: Iterable[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}


def rendered(folder: Path) -> list[Manifest]:
    result = subprocess.run(
        ["kubectl", "kustomize", "k8s/overlays/gke"], cwd=folder, capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(result.stdout))


def test_every_component_can_be_removed() -> None:
    assert DELETE.keys() == {path.name for path in (K8S / "components").iterdir()}


@pytest.mark.parametrize("component", sorted(DELETE))
def test_a_component_can_be_removed_and_added_again(api: ApiServer, tmp_path: Path, component: str) -> None:
    """The documented commands remove exactly the component's objects and keep the number of pods."""
    before, after = copied(component, tmp_path / "before"), copied(component, tmp_path / "after")
    remove(component, after)
    kubectl(APPLY, before)
    deployment = find(rendered(before), "Deployment", "sentiment")
    assert names(api.objects.values()) == names(rendered(before))
    api.objects[DEPLOYMENT]["spec"]["replicas"] = 5  # as the autoscaler would

    kubectl(APPLY, after)
    kubectl(DELETE[component])
    assert names(api.objects.values()) == names(rendered(after))
    live = api.objects[DEPLOYMENT]["spec"]
    assert live["replicas"] == 5
    assert mounted(live["template"]) == mounted(find(rendered(after), "Deployment", "sentiment")["spec"]["template"])

    kubectl(APPLY, before)
    assert names(api.objects.values()) == names(rendered(before))
    assert api.objects[DEPLOYMENT]["spec"]["replicas"] == 5
    assert mounted(api.objects[DEPLOYMENT]["spec"]["template"]) == mounted(deployment["spec"]["template"])


@pytest.mark.parametrize("overlay", ["gke", "local"])
def test_a_new_image_keeps_the_number_of_pods(api: ApiServer, overlay: str) -> None:
    deployment = find(render(overlay), "Deployment", "sentiment")
    kubectl("kubectl apply -f -", manifest=deployment)
    assert api.objects[DEPLOYMENT]["spec"]["replicas"] == 1, "the API server's default"
    api.objects[DEPLOYMENT]["spec"]["replicas"] = 5
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "sentiment:next"
    kubectl("kubectl apply -f -", manifest=deployment)
    live = api.objects[DEPLOYMENT]["spec"]
    assert live["template"]["spec"]["containers"][0]["image"] == "sentiment:next"
    assert live["replicas"] == 5


def test_the_keys_file_becomes_a_secret(api: ApiServer, tmp_path: Path) -> None:
    """The documented commands create the secret and replace it by one with further keys, one per line."""
    kubectl("kubectl apply -f k8s/overlays/gke/namespace.yaml")
    secret = "/api/v1/namespaces/sentiment/secrets/sentiment-keys"
    seen = []
    for _ in range(2):
        kubectl(MAKE_KEY, tmp_path)
        kubectl(CREATE_SECRET, tmp_path)
        seen.append(base64.b64decode(api.objects[secret]["data"]["keys"]).decode())
    first, second = seen
    assert re.fullmatch(r"\S{43}\n", first)
    assert second.startswith(first)
    assert len(second.splitlines()) == 2


def test_an_update_from_manifests_with_replicas_keeps_the_pods(api: ApiServer) -> None:
    """Without the documented command, `kubectl apply` removes the number of pods, and one pod remains."""
    new = find(render("gke"), "Deployment", "sentiment")
    old = copy.deepcopy(new)
    old["spec"]["replicas"] = 2
    kubectl("kubectl apply -f -", manifest=old)
    before = copy.deepcopy(api.objects)
    kubectl("kubectl apply -f -", manifest=new)
    assert api.objects[DEPLOYMENT]["spec"]["replicas"] == 1

    api.objects.update(before)
    assert kubectl(FORGET_REPLICAS) == "deployment.apps/sentiment edited\n"
    kubectl("kubectl apply -f -", manifest=new)
    assert api.objects[DEPLOYMENT]["spec"]["replicas"] == 2


def test_apply_after_an_undo_restores_the_manifests(api: ApiServer) -> None:
    """`kubectl rollout undo` restores the old pod template, but not the annotation of the last `kubectl apply`."""
    old = find(render("gke"), "Deployment", "sentiment")
    new = copy.deepcopy(old)
    [container] = new["spec"]["template"]["spec"]["containers"]
    container["image"] = "sentiment:next"
    container["envFrom"] = [{"configMapRef": {"name": "sentiment-limits-next"}}]
    for manifest in (old, new):
        kubectl("kubectl apply -f -", manifest=manifest)
    api.objects[DEPLOYMENT]["spec"]["template"] = copy.deepcopy(old["spec"]["template"])
    kubectl("kubectl apply -f -", manifest=new)
    assert api.objects[DEPLOYMENT]["spec"]["template"] == new["spec"]["template"]
