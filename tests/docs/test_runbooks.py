"""The runbooks: every alert has one, and their commands run.

kubectl runs against a stand-in for the API server, everything else against the tests' server.
"""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_documents import run, with_addresses_of
from tests.e2e.server_process import Server
from tests.k8s.api_server import StandInPod, cluster
from tests.k8s.rendered import find, render
from tests.k8s.test_readme import BLOCKING, README, blocks_of, commands
from tests.paths import ROOT

RUNBOOKS = ROOT / "docs" / "runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
SECTIONS = ["Symptom", "Causes", "Commands", "Actions"]
COMMANDS = sorted(
    {
        command.strip()
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        for command in commands(block)
    }
)
CURL = [command for command in COMMANDS if command.startswith("curl")]
EXEC = re.compile(r"^kubectl exec [^|]* -- ")
"""The beginning of a command that runs in a pod."""
IN_A_POD = [command for command in COMMANDS if EXEC.search(command)]
KUBECTL = [
    command
    for command in COMMANDS
    if command.startswith("kubectl") and command not in IN_A_POD and not BLOCKING.search(command)
]
GCLOUD = [command for command in COMMANDS if command.startswith("gcloud")]
ELSEWHERE = {
    "kubectl port-forward --namespace sentiment pod/NAME 8082:8082": "tests/k8s/test_readme.py",
    "kubectl port-forward --namespace sentiment deployment/sentiment 8082:8082": "tests/k8s/test_readme.py",
    "kubectl port-forward --namespace sentiment deployment/sentiment 8080:8080 8082:8082": "tests/k8s/test_readme.py",
    ".venv/bin/sentiment --every-pod status": "tests/k8s/test_readme.py",
    ".venv/bin/python -m training evaluate --data Tweets.csv --split validation": "tests/docs/test_documents.py",
}
"""Tests by the command that they run. `port-forward` runs until Ctrl-C; its test asserts that no command follows it."""


def test_every_alert_names_its_runbook() -> None:
    [group] = find(render("gke"), "Rules", "sentiment")["spec"]["groups"]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in group["rules"] if "alert" in rule}
    assert urls == {page.stem: str(page.relative_to(ROOT)) for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_runbook_goes_from_the_symptom_to_the_actions(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall("^## (.*)", text, flags=re.MULTILINE) == SECTIONS
    [group] = find(render("gke"), "Rules", "sentiment")["spec"]["groups"]
    [rule] = [rule for rule in group["rules"] if rule.get("alert") == page.stem]
    assert f"| Severity | {rule['labels']['severity']} |" in text
    actions = re.findall(r"^\d+\. (.*)", text.partition("## Actions")[2], flags=re.MULTILINE)
    assert len(actions) >= 4
    assert all(action.startswith("If ") for action in actions)


def test_every_command_is_run_by_a_test() -> None:
    assert set(COMMANDS) == {*KUBECTL, *IN_A_POD, *CURL, *GCLOUD, *ELSEWHERE}


@pytest.mark.parametrize("command", GCLOUD)
def test_a_gcloud_command_is_one_of_the_deployment(command: str) -> None:
    """There is no cluster here, so no test can show more."""
    assert command in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_address_of_a_command_is_forwarded_before(page: Path) -> None:
    """The tests' server has other addresses, so running a command does not show that its port was forwarded."""
    text = page.read_text(encoding="utf-8")
    for curl in re.finditer(r"^curl .*127\.0\.0\.1:(\d+)", text, flags=re.MULTILINE):
        assert re.search(rf"^kubectl port-forward .* {curl[1]}:{curl[1]}\b", text[: curl.start()], flags=re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_that_reads_one_pod_shows_how_to_choose_it(page: Path) -> None:
    """`deployment/sentiment` is any one of the pods, and the alert may be about another one."""
    text = page.read_text(encoding="utf-8")
    if re.search(r"^kubectl (port-forward|exec) ", text, flags=re.MULTILINE):
        assert "pod/NAME" in text


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cluster with one pod and the objects of the overlay `gke`."""
    render("gke")  # skips the tests, or fails them, if nothing renders
    with pytest.MonkeyPatch.context() as environment, cluster(tmp_path_factory.mktemp("cluster"), environment) as api:
        api.pods.append(StandInPod("sentiment-1"))
        run("kubectl apply --validate=false -k k8s/overlays/gke", ROOT)
        yield


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize("command", KUBECTL)
def test_a_kubectl_command_runs(command: str) -> None:
    run(command.replace("pod/NAME", "pod/sentiment-1"), ROOT)


@pytest.mark.parametrize("command", CURL)
def test_a_curl_command_shows_what_the_runbook_says(command: str, server: Server) -> None:
    """`run` fails if `grep` finds no metric."""
    command = command.replace("https://DOMAIN", server.project.inference)
    shown = run(f"set -o pipefail; {with_addresses_of(server, command)}", ROOT)
    if "/explanations/" in command:
        unknown = {token["token"] for token in json.loads(shown)["tokens"] if token["weight"] == 0}
        assert {"danke", "für"} <= unknown
    for name in metric_names(command):
        assert re.search(rf"^{name}(_(bucket|sum|count))?\{{", shown, flags=re.MULTILINE), f"no {name}:\n{shown}"


def metric_names(command: str) -> set[str]:
    """The metrics that a `grep` names: `prefix_(a|b)` is `prefix_a` and `prefix_b`."""
    [pattern] = re.findall(r"grep (?:-E )?'\^([^']*)'", command) or [""]
    prefix, _, rest = pattern.partition("(")
    if not pattern or "proxy" in prefix:
        return {pattern.partition(".proxy")[0]} - {""}
    return {prefix + name for name in rest.partition(")")[0].split("|")} - {"classifier_drift"}


def test_connections_are_counted_by_client(server: Server) -> None:
    [command] = IN_A_POD
    host, port = server.project.inference.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))):
        shown = run(EXEC.sub("", command).replace("1F90", f"{int(port):04X}"), ROOT)
    assert re.search(r"^ *\d+ 0100007F$", shown, flags=re.MULTILINE), shown
