"""The pages about Kubernetes: their figures are those of the manifests, and their commands run without a cluster."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from sentiment.transport import READ_TIMEOUT_S
from tests.approximately import approximately
from tests.e2e.server_process import Project, Server, run_client, serving
from tests.k8s import rules
from tests.k8s.api_server import StandInPod, cluster
from tests.k8s.rendered import K8S, find, kustomize, render
from tests.paths import CLIENT, MODEL, ROOT
from training.export.archive import archive

README = (K8S / "README.md").read_text(encoding="utf-8")
OPERATE = (ROOT / "docs" / "guides" / "operate.md").read_text(encoding="utf-8")
SIZING = (ROOT / "docs" / "guides" / "sizing.md").read_text(encoding="utf-8")


def blocks_of(page: str, language: str = "sh") -> list[str]:
    """The code blocks of a page, without the indentation that a block in a numbered step has."""
    blocks = re.findall(rf"^ *```{language}\n.*?^ *```$", page, flags=re.DOTALL | re.MULTILINE)
    return ["".join(f"{line}\n" for line in textwrap.dedent(block).splitlines()[1:-1]) for block in blocks]


BLOCKS = blocks_of(README)
SENTIMENT = [line for block in blocks_of(OPERATE) for line in block.splitlines() if line.startswith(".venv/bin/sent")]

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.md")})
BLOCKING = re.compile(
    r"^(kubectl port-forward|kubectl .*(--watch|--follow)|make serve"
    r"|\S*python -m server|(podman|docker) run (?!.*--detach))"
)
"""Commands that run until somebody ends them."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server as in an image with two versions; a rollout waits for as long as a worker may hold a request."""
    settings = {"defaultVersion": True, "marName": "sentiment.mar", "batchSize": 16, "maxBatchDelay": 1}
    models = {"sentiment": {"1.0": settings | {"responseTimeout": 3}}}
    project = Project(tmp_path_factory.mktemp("pod"), mar, models=json.dumps(models))
    archive(MODEL, project.folder / "model_store" / "sentiment-2.mar", "2.0", "int8")
    with serving(project) as running:
        yield running


def test_the_management_commands_do_what_is_said(live: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the page's order: look, scale, register and unregister a version, put it in the first's place, go back."""
    ports = {8080: live.project.inference, 8081: live.project.management}
    seen = []
    with cluster(tmp_path, monkeypatch) as api:
        api.pods.append(StandInPod("sentiment-1", {port: int(url.rpartition(":")[2]) for port, url in ports.items()}))
        for line in SENTIMENT:
            result = run_client(*line.split()[1:])
            assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
            assert result.stdout.startswith("sentiment-1:\n"), line
            described = requests.get(f"{live.project.management}/models/sentiment/all", timeout=10).json()
            default = requests.get(f"{live.project.management}/models/sentiment", timeout=10).json()
            seen.append((default[0]["modelVersion"], {each["modelVersion"]: each["minWorkers"] for each in described}))
            assert all(worker["status"] == "READY" for each in described for worker in each["workers"]), line
    assert seen[1:] == [
        ("1.0", {"1.0": 1}),
        ("1.0", {"1.0": 2}),
        ("1.0", {"1.0": 2, "2.0": 1}),
        ("1.0", {"1.0": 2}),
        ("2.0", {"2.0": 2}),
        ("1.0", {"1.0": 2}),
    ]


def test_the_commands_that_compare_a_new_model_with_the_old_one_run(live: Server, tmp_path: Path) -> None:
    """One server stands in for both models, so no label changes."""
    section = README.partition("\n## Deploy a new version\n")[2].partition("\n## ")[0]
    evaluate, score = (block for block in blocks_of(section) if block.startswith(".venv/bin/"))
    texts = ["Late again", "Thank you, for the great flight!", "Which gate?"]
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        rows = zip(texts, ["negative", "positive", "neutral"], ["validation"] * 3, strict=True)
        csv.writer(file).writerows([("text", "label", "split"), *rows])
    shutil.copy(tmp_path / "labelled.csv", tmp_path / "texts.csv")

    def run(block: str) -> str:
        for address in ('"https://${DOMAIN:?}"', "http://127.0.0.1:8080"):
            assert address in block
            block = block.replace(address, live.project.inference)
        block = block.replace(".venv/bin/python", sys.executable)
        block = block.replace(".venv/bin/sentiment", f"{sys.executable} -m sentiment")
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{CLIENT}"}
        command = ["bash", "-e", "-c", block]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    assert run(evaluate).count('"accuracy"') == 2
    assert run(score).endswith("0 of 3\n")


def test_a_local_deployment_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    [shown] = blocks_of(README, "text")
    with cluster(tmp_path, monkeypatch):
        command = ["kubectl", "apply", "--validate=false", "-k", "k8s/overlays/local"]
        applied = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert applied.stdout + 'deployment "sentiment" successfully rolled out\n' == shown
    [request] = blocks_of(README, "console")
    command_line, _, answer = request.removeprefix("$ ").partition("\n")
    command_line = command_line.replace("http://127.0.0.1:8080", server.project.inference)
    replied = subprocess.run(["bash", "-c", command_line], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(replied.stdout) == approximately(json.loads(answer), 0.005)


def test_the_digest_goes_into_the_overlay(tmp_path: Path) -> None:
    """The page's block, on a copy, and what kustomize makes of it; the registry's commands say what they would."""
    command = kustomize()
    if command is None:
        render("gke")  # skips or fails
        return
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "gke"
    before = overlay.joinpath("kustomization.yaml").read_text(encoding="utf-8")
    [block] = [block for block in BLOCKS if "\n  sed " in block]
    digest = f"sha256:{'0123456789abcdef' * 4}"

    def run(docker: str, gcloud: str) -> None:
        programs = f"docker() {{ {docker}; }}; gcloud() {{ {gcloud}; }}; git() {{ :; }}; export REGION=r PROJECT=p"
        subprocess.run(["bash", "-c", f"{programs}\n{block}"], cwd=tmp_path, check=False, timeout=60)

    for docker, gcloud in [("false", f"echo {digest}"), ("true", "false"), ("true", "true")]:
        run(docker, gcloud)
        assert overlay.joinpath("kustomization.yaml").read_text(encoding="utf-8") == before, (docker, gcloud)
    run("true", f"echo {digest}")
    rendered = subprocess.run([*command, str(overlay)], capture_output=True, text=True, check=True)
    assert f"image: r-docker.pkg.dev/p/sentiment/sentiment@{digest}\n" in rendered.stdout
    assert {path.name for path in overlay.iterdir()} == {path.name for path in (K8S / "overlays" / "gke").iterdir()}


def test_the_public_address_is_watched_from_outside(tmp_path: Path) -> None:
    """The page's block, with a stand-in for gcloud that records its arguments."""
    [block] = [block for block in BLOCKS if "monitoring uptime create" in block]
    calls = tmp_path / "calls"
    stand_in = f"""gcloud() {{ printf '%s\\0' "$@" $'\\n' >> {calls}; echo projects/p/notificationChannels/1; }}"""
    program = f"{stand_in}; export PROJECT=p DOMAIN=sentiment.example.com\n{block}"
    subprocess.run(["bash", "-e", "-c", program], check=True, timeout=60)
    uptime, channel, policy = (call.split("\0")[:-1] for call in calls.read_text().split("\n\0")[:-1])

    def option(call: list[str], name: str) -> str:
        return call[call.index(name) + 1]

    assert uptime[:3] == ["monitoring", "uptime", "create"]
    assert option(uptime, "--resource-labels") == "host=sentiment.example.com,project_id=p"
    assert option(uptime, "--protocol") == "https"
    assert option(uptime, "--path") == rules.PROBES["readinessProbe"]
    assert option(uptime, "--validate-ssl") == "true"
    assert option(channel, "--channel-labels") == "email_address=on-call@example.com"
    assert option(policy, "--notification-channels") == "projects/p/notificationChannels/1"
    assert 'resource.label.host="sentiment.example.com"' in option(policy, "--condition-filter")
    assert json.loads(option(policy, "--aggregation"))["crossSeriesReducer"] == "REDUCE_COUNT_FALSE"
    assert (ROOT / option(policy, "--documentation")).is_file()
    assert f"`{option(policy, '--display-name')}`" in OPERATE


def test_the_cluster_collects_the_metrics_that_the_alerts_read() -> None:
    """Kube state metrics have a component of the cluster for each kind of object."""
    [components] = re.findall(r"--enable-managed-prometheus \\\n +--monitoring (\S+)$", README, flags=re.MULTILINE)
    [group] = find(render("gke"), "Rules", "sentiment")["spec"]["groups"]
    names = set().union(*(rules.metric_names(rule["expr"]) for rule in group["rules"]))
    kinds = {name.split("_")[1].upper() for name in names if name.startswith("kube_")}
    assert kinds == {"DEPLOYMENT", "POD"}
    assert kinds | {"SYSTEM"} <= set(components.split(","))


def commands(block: str) -> list[str]:
    """A block's commands, each with its continuation lines."""
    return re.sub(r"(\\|&&)\n", " ", block).splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_blocks_is_alone_in_its_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(text):
        blocking = [command for command in commands(block) if BLOCKING.search(command.strip())]
        assert not blocking or len(commands(block)) == 1, f"{blocking[0]} is followed by others:\n{block}"


def test_nothing_waits_for_ever() -> None:
    lines = [line for block in BLOCKS for command in commands(block) for line in command.split("  ")]
    lines += re.findall(r"`(kubectl delete [^`]+)`", README)
    waiting = [line for line in lines if re.match(r"kubectl (rollout status|wait|delete)", line.strip())]
    assert len(waiting) >= 7
    assert [line for line in waiting if "--timeout" not in line] == []


def test_no_variable_hides_a_failure() -> None:
    """`export X="$(false)"` succeeds, and X is empty from then on."""
    assert not re.findall(r"^.*\bexport \w+=\S*\$\(.*$", README, flags=re.MULTILINE)


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
    for folder in re.findall(r"-k ([a-z0-9/]+)", README):
        assert (ROOT / folder / "kustomization.yaml").is_file(), folder
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (K8S / link).exists(), link


def test_the_numbers_are_the_manifests() -> None:
    manifests = render("gke")
    pod = find(manifests, "Deployment", "sentiment")["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]["limits"]
    autoscaler = find(manifests, "HorizontalPodAutoscaler", "sentiment")["spec"]
    cpu, queue = autoscaler["metrics"]
    policy = find(manifests, "GCPBackendPolicy", "sentiment")["spec"]["default"]
    stated = {
        f"**CPU: {resources['cpu']}.**",
        f"**Memory: {resources['memory'].removesuffix('Gi')} GiB",
        f"**Disk: {resources['ephemeral-storage'].removesuffix('Mi')} MiB.**",
        f"limited to {pod['volumes'][0]['emptyDir']['sizeLimit'].removesuffix('Mi')} MiB",
        f"**Autoscaling by CPU: {cpu['resource']['target']['averageUtilization']} %.**",
        f"**Autoscaling by queue time: {queue['external']['target']['value']} ms.**",
        f"for {pod['containers'][0]['lifecycle']['preStop']['sleep']['seconds']} s the pod answers as before",
        f"and its draining | more than the longest request | {policy['timeoutSec']} |",
        f"| {rules.longest_request_s()} |\n| load balancer's timeout",
        f"and of the page | more than the longest request | {READ_TIMEOUT_S:g} |",
        f"After {pod['terminationGracePeriodSeconds']} s (`terminationGracePeriodSeconds`)",
    }
    assert policy["timeoutSec"] == policy["connectionDraining"]["drainingTimeoutSec"]
    assert {text for text in stated if text not in SIZING + OPERATE} == set()
    assert f"**Number of pods: {autoscaler['minReplicas']} to {autoscaler['maxReplicas']}.**" in SIZING


def test_every_alert_is_in_the_table() -> None:
    [group] = find(render("gke"), "Rules", "sentiment")["spec"]["groups"]
    alerts = {rule["alert"]: rule["labels"]["severity"] for rule in group["rules"] if "alert" in rule}
    rows = re.findall(r"^\| \[`(Sentiment\w+)`\]\(../runbooks/\1.md\) \| (\w+) \|", OPERATE, flags=re.MULTILINE)
    assert dict(rows) == alerts


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard = json.loads((K8S / "components" / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "namespace"]
