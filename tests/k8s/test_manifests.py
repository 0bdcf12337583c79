"""Tests that every overlay conforms to every rule, and that every rule detects broken manifests, without a cluster."""

import pathlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from handler.limits import ENVIRONMENT_PREFIX, Limits
from tests.k8s import rules
from tests.k8s.rendered import K8S, OVERLAYS, Manifest, find, render, render_folder
from tests.k8s.rules import CHECKS

Check = Callable[[list[Manifest]], list[str]]
Path = tuple[str | int, ...]

POD: Path = ("spec", "template", "spec")
CONTAINER: Path = (*POD, "containers", 0)
ABSENT = object()


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_overlay_conforms_to_every_rule(overlay: str, check: Check) -> None:
    assert check(render(overlay)) == []


@dataclass(frozen=True)
class Broken:
    """The overlay `gke` with one value changed, added or removed (ABSENT)."""

    check: Check
    kind: str
    path: Path
    value: object
    problem: str
    """A part of the problem that the check reports."""

    name: str = ""
    """The beginning of the manifest's name, if there are several manifests of the kind."""

    def __str__(self) -> str:
        return f"{self.kind}.{'.'.join(map(str, self.path))}={'' if self.value is ABSENT else self.value}"

    def manifests(self) -> list[Manifest]:
        manifests = render("gke")
        *parents, last = self.path
        parent: Any = find(manifests, self.kind, self.name)
        for key in parents:
            parent = parent.setdefault(key, {}) if isinstance(parent, dict) else parent[key]
        if self.value is ABSENT:
            del parent[last]
        elif isinstance(parent, list) and last == len(parent):
            parent.append(self.value)
        else:
            parent[last] = self.value
        return manifests


def schemas() -> list[Broken]:
    """A misspelled field in every kind, and values that the schemas do not allow."""
    kinds = {
        "Deployment": ("replica",),
        "Service": ("selectors",),
        "PodDisruptionBudget": ("minAvailabel",),
        "HorizontalPodAutoscaler": ("maxReplica",),
        "Rules": ("group",),
        "Gateway": ("listener",),
        "HTTPRoute": ("hostname",),
        "HealthCheckPolicy": ("defaults",),
        "GCPBackendPolicy": ("defaults",),
    }
    check = rules.schema_problems
    misspelled = [Broken(check, kind, ("spec", *path), 1, "dditional properties") for kind, path in kinds.items()]
    return [
        *misspelled,
        Broken(check, "NetworkPolicy", ("spec", "ingres"), [], "dditional properties", "deny-all"),
        Broken(check, "PodMonitoring", ("spec", "endpoint"), [], "dditional properties", "sentiment-d"),
        Broken(check, "ServiceAccount", ("automountServiceAccountTokens",), False, "dditional properties"),
        Broken(check, "Deployment", (*CONTAINER, "ports", 0, "containerPort"), "http", "is not of type"),
        Broken(check, "Gateway", ("spec", "listeners", 0, "protocol"), "HTTP", "'HTTPS' was expected"),
        Broken(check, "Gateway", ("kind",), "Gatewayy", "no schema"),
        Broken(check, "HTTPRoute", ("apiVersion",), "gateway.networking.k8s.io/v1alpha2", "was expected"),
        Broken(check, "PodMonitoring", ("spec", "endpoints", 0, "interval"), "30", "does not match", "sentiment-d"),
        Broken(check, "GCPBackendPolicy", ("spec", "default", "connectionDraining", "drainTimeoutSec"), 1, "dditional"),
        Broken(check, "HealthCheckPolicy", ("spec", "default", "config", "type"), "TCP", "'HTTP' was expected"),
        Broken(check, "Rules", ("spec", "groups", 0, "rules", 0, "for"), "5m", "is not valid under any"),
    ]


def pod_security() -> list[Broken]:
    """A violation of every field of the restricted profile."""
    restricted: list[tuple[Path, object, str]] = [
        ((*POD, "hostNetwork"), True, "hostNetwork"),
        ((*POD, "hostPID"), True, "hostPID"),
        ((*POD, "hostIPC"), True, "hostIPC"),
        ((*POD, "volumes", 0, "hostPath"), {"path": "/"}, "hostPath"),
        ((*POD, "volumes", 1), {"name": "nfs", "nfs": {"server": "files", "path": "/"}}, "nfs"),
        ((*POD, "securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "kernel.msgmax"),
        ((*POD, "securityContext", "runAsNonRoot"), ABSENT, "runAsNonRoot is not true"),
        ((*POD, "securityContext", "runAsNonRoot"), False, "runAsNonRoot is false"),
        ((*CONTAINER, "securityContext", "runAsNonRoot"), False, "runAsNonRoot is false"),
        ((*POD, "securityContext", "runAsUser"), 0, "runAsUser is root"),
        ((*CONTAINER, "securityContext", "runAsUser"), 0, "runAsUser is root"),
        ((*POD, "securityContext", "seccompProfile"), ABSENT, "no seccompProfile"),
        ((*POD, "securityContext", "seccompProfile", "type"), "Unconfined", "seccompProfile is unconfined"),
        ((*CONTAINER, "securityContext", "seccompProfile", "type"), "Unconfined", "seccompProfile is unconfined"),
        ((*POD, "securityContext", "appArmorProfile", "type"), "Unconfined", "appArmorProfile is unconfined"),
        ((*POD, "securityContext", "seLinuxOptions", "type"), "spc_t", "seLinuxOptions.type"),
        ((*POD, "securityContext", "seLinuxOptions", "user"), "system_u", "seLinuxOptions.user"),
        ((*CONTAINER, "securityContext", "seLinuxOptions", "role"), "system_r", "seLinuxOptions.user or role"),
        ((*POD, "securityContext", "windowsOptions", "hostProcess"), True, "hostProcess"),
        ((*CONTAINER, "securityContext", "privileged"), True, "privileged"),
        ((*CONTAINER, "securityContext", "allowPrivilegeEscalation"), True, "allowPrivilegeEscalation"),
        ((*CONTAINER, "securityContext", "allowPrivilegeEscalation"), ABSENT, "allowPrivilegeEscalation"),
        ((*CONTAINER, "securityContext", "capabilities"), ABSENT, "does not drop ALL"),
        ((*CONTAINER, "securityContext", "capabilities", "drop"), ["NET_RAW"], "does not drop ALL"),
        ((*CONTAINER, "securityContext", "capabilities", "add"), ["SYS_ADMIN"], "SYS_ADMIN"),
        ((*CONTAINER, "securityContext", "procMount"), "Unmasked", "procMount"),
        ((*CONTAINER, "ports", 0, "hostPort"), 80, "hostPort 80"),
        ((*POD, "initContainers"), [{"name": "first", "image": "first"}], "first: allowPrivilegeEscalation"),
        ((*POD, "ephemeralContainers"), [{"name": "look", "image": "look"}], "look: does not drop ALL"),
    ]
    check = rules.pod_security_problems
    enforced: Path = ("metadata", "labels", "pod-security.kubernetes.io/enforce")
    return [
        *(Broken(check, "Deployment", *broken) for broken in restricted),
        Broken(check, "Namespace", enforced, "baseline", "restricted is not enforced"),
        Broken(check, "Namespace", enforced, ABSENT, "restricted is not enforced"),
    ]


def hardening() -> list[Broken]:
    check = rules.hardening_problems
    return [
        Broken(check, "Deployment", (*POD, "securityContext", "runAsUser"), ABSENT, "no numeric user"),
        Broken(check, "Deployment", (*POD, "automountServiceAccountToken"), ABSENT, "has a token"),
        Broken(check, "Deployment", (*POD, "enableServiceLinks"), True, "has service links"),
        Broken(check, "Deployment", (*CONTAINER, "securityContext", "readOnlyRootFilesystem"), False, "can be written"),
        Broken(check, "Deployment", (*CONTAINER, "ports", 0, "containerPort"), 8081, "management API"),
        Broken(check, "ServiceAccount", ("automountServiceAccountToken",), True, "has a token"),
    ]


def network() -> list[Broken]:
    check = rules.network_problems
    clients = "inference-for-clients"
    return [
        Broken(check, "NetworkPolicy", ("spec", "policyTypes"), ["Ingress"], "denies everything", "deny-all"),
        Broken(check, "NetworkPolicy", ("spec", "podSelector"), {"matchLabels": {"a": "b"}}, "denies", "deny-all"),
        Broken(check, "NetworkPolicy", ("spec", "ingress"), [{}], "denies everything", "deny-all"),
        Broken(check, "NetworkPolicy", ("spec", "egress"), [{}], "allows egress", clients),
        Broken(check, "NetworkPolicy", ("spec", "ingress", 0, "from"), [], "from every peer", clients),
        Broken(
            check, "NetworkPolicy", ("spec", "ingress", 0, "from", 0, "namespaceSelector"), {}, "every peer", clients
        ),
        Broken(check, "NetworkPolicy", ("spec", "ingress", 0, "ports"), ABSENT, "to every port", clients),
    ]


def references() -> list[Broken]:
    selector, reference = rules.selector_problems, rules.reference_problems
    labels = {"app.kubernetes.io/name": "sentimental"}
    spread: Path = (*POD, "topologySpreadConstraints", 0, "labelSelector", "matchLabels")
    return [
        Broken(selector, "Service", ("spec", "selector"), labels, "selects no pod"),
        Broken(selector, "PodDisruptionBudget", ("spec", "selector", "matchLabels"), labels, "selects no pod"),
        Broken(selector, "PodMonitoring", ("spec", "selector", "matchLabels"), labels, "selects no pod", "sentiment-d"),
        Broken(selector, "NetworkPolicy", ("spec", "podSelector", "matchLabels"), labels, "selects no pod", "metrics"),
        Broken(selector, "Deployment", spread, labels, "selects no pod"),
        Broken(selector, "Deployment", ("spec", "selector", "matchLabels"), labels, "does not match its own pods"),
        Broken(reference, "HorizontalPodAutoscaler", ("spec", "scaleTargetRef", "name"), "x", "no Deployment x"),
        Broken(reference, "HealthCheckPolicy", ("spec", "targetRef", "name"), "x", "no Service x"),
        Broken(reference, "GCPBackendPolicy", ("spec", "targetRef", "name"), "x", "no Service x"),
        Broken(reference, "HTTPRoute", ("spec", "parentRefs", 0, "name"), "x", "no Gateway x"),
        Broken(reference, "HTTPRoute", ("spec", "rules", 0, "backendRefs", 0, "name"), "x", "no Service x"),
        Broken(reference, "Deployment", (*POD, "serviceAccountName"), "x", "no ServiceAccount x"),
        Broken(reference, "Deployment", (*CONTAINER, "envFrom", 0, "configMapRef", "name"), "x", "no ConfigMap x"),
        Broken(reference, "Deployment", (*CONTAINER, "volumeMounts", 0, "name"), "x", "no volume x"),
        Broken(reference, "Service", ("metadata", "namespace"), "x", "no Namespace x"),
    ]


def ports() -> list[Broken]:
    check = rules.port_problems
    ingress: Path = ("spec", "ingress", 0, "ports", 0, "port")
    endpoints: Path = ("spec", "endpoints")
    health: Path = ("spec", "default", "config", "httpHealthCheck", "port")
    return [
        Broken(check, "Service", ("spec", "ports", 0, "targetPort"), "web", "no container has the port web"),
        Broken(check, "NetworkPolicy", ingress, 8081, "no container has the port 8081", "inference-for-clients"),
        Broken(
            check, "PodMonitoring", (*endpoints, 0, "port"), "prom", "no container has the port prom", "sentiment-d"
        ),
        Broken(
            check, "PodMonitoring", (*endpoints, 1), {"port": "metrics"}, "two endpoints on one port", "sentiment-d"
        ),
        Broken(check, "HealthCheckPolicy", health, 80, "no container has the port 80"),
        Broken(check, "HTTPRoute", ("spec", "rules", 0, "backendRefs", 0, "port"), 8080, "has no port 8080"),
        Broken(check, "HTTPRoute", ("spec", "parentRefs", 0, "sectionName"), "http", "has no listener http"),
    ]


def probes() -> list[Broken]:
    check = rules.probe_problems
    startup, ready, live = ((*CONTAINER, name) for name in ("startupProbe", "readinessProbe", "livenessProbe"))
    health: Path = ("spec", "default", "config", "httpHealthCheck", "requestPath")
    return [
        Broken(check, "Deployment", startup, ABSENT, "no startupProbe"),
        Broken(check, "Deployment", (*startup, "failureThreshold"), 5, "gives up before the server"),
        Broken(check, "Deployment", (*ready, "httpGet", "path"), "/ping", "readinessProbe requests"),
        Broken(check, "Deployment", live, ABSENT, "no livenessProbe"),
        Broken(check, "Deployment", (*live, "httpGet", "port"), "management", "livenessProbe requests"),
        Broken(check, "Deployment", (*live, "httpGet", "port"), "http", "while clients hold all connections"),
        Broken(check, "Deployment", (*live, "httpGet", "path"), "/ready", "livenessProbe requests"),
        Broken(check, "HealthCheckPolicy", health, "/ping", "requests /ping"),
    ]


def ending() -> list[Broken]:
    check = rules.ending_problems
    update: Path = ("spec", "strategy", "rollingUpdate")
    drain: Path = ("spec", "default", "connectionDraining", "drainingTimeoutSec")
    sleep: Path = (*CONTAINER, "lifecycle", "preStop", "sleep", "seconds")
    return [
        Broken(check, "Deployment", (*update, "maxUnavailable"), 1, "before its successor"),
        Broken(check, "Deployment", (*update, "maxSurge"), 0, "before its successor"),
        Broken(check, "Deployment", (*POD, "terminationGracePeriodSeconds"), 60, "killed after 60 s"),
        Broken(check, "Deployment", sleep, 10, "before the load balancers deregister"),
        Broken(check, "Deployment", sleep, 10, "before the longest request"),
        Broken(check, "GCPBackendPolicy", drain, 30, "cuts the longest request"),
        Broken(check, "GCPBackendPolicy", ("spec", "default", "timeoutSec"), 30, "times out before the door"),
    ]


def resources() -> list[Broken]:
    check = rules.resource_problems
    requests: Path = (*CONTAINER, "resources", "requests")
    limits: Path = (*CONTAINER, "resources", "limits")
    return [
        Broken(check, "Deployment", (*requests, "cpu"), "two", "'two' is not a quantity"),
        Broken(check, "Deployment", (*limits, "memory"), "2GB", "'2GB' is not a quantity"),
        Broken(check, "Deployment", (*requests, "memory"), "3Gi", "more memory than its limit"),
        Broken(check, "Deployment", (*limits, "memory"), ABSENT, "no limit of memory"),
        Broken(check, "Deployment", (*limits, "memory"), "1Gi", "less memory than its processes"),
        # Enough for two workers of 240 MB, not for two of 420 MB.
        Broken(check, "Deployment", (*limits, "memory"), "1400Mi", "less memory than its processes"),
        Broken(check, "Deployment", (*limits, "cpu"), "4", "less memory than its processes"),
        Broken(check, "Deployment", (*POD, "volumes", 0, "emptyDir"), {}, "volume tmp has no limit"),
        Broken(check, "Deployment", (*POD, "volumes", 0, "emptyDir", "sizeLimit"), "1Gi", "larger than its ephemeral"),
    ]


def autoscalers() -> list[Broken]:
    check = rules.autoscaler_problems
    return [
        Broken(check, "Deployment", ("spec", "replicas"), 2, "sets the number of pods"),
        Broken(check, "HorizontalPodAutoscaler", ("spec", "minReplicas"), 1, "from 1 to 10 pods"),
        Broken(check, "HorizontalPodAutoscaler", ("spec", "maxReplicas"), 2, "from 2 to 2 pods"),
    ]


def spread() -> list[Broken]:
    check, problem = rules.spread_problems, "all its pods may be in one zone"
    zone: Path = (*POD, "topologySpreadConstraints", 0)
    return [
        Broken(check, "Deployment", zone, ABSENT, problem),
        Broken(check, "Deployment", (*zone, "topologyKey"), "kubernetes.io/hostname", problem),
        Broken(check, "Deployment", (*zone, "whenUnsatisfiable"), "ScheduleAnyway", problem),
        Broken(check, "Deployment", (*zone, "minDomains"), ABSENT, problem),
        Broken(check, "Deployment", (*zone, "maxSkew"), 2, problem),
        Broken(check, "Deployment", (*zone, "nodeTaintsPolicy"), ABSENT, problem),
    ]


def metrics() -> list[Broken]:
    check = rules.metric_problems
    rule: Path = ("spec", "groups", 0, "rules")
    external: Path = ("spec", "metrics", 1, "external", "metric")
    panel = '{"panels": [{"targets": [{"expr": "sum by (pod) (rate(ts_requests{namespace=\\"sentiment\\"}[2m]))"}]}]}'
    return [
        Broken(check, "Rules", (*rule, 1, "expr"), "rate(Requests5xx[5m]) > 0", "no metric Requests5xx"),
        Broken(check, "Rules", (*rule, 0, "record"), "sentiment_queue", "no metric sentiment_queue_milliseconds"),
        Broken(check, "ConfigMap", ("data", "dashboard.json"), panel, "no metric ts_requests", "sentiment-dashboard"),
        Broken(
            check,
            "HorizontalPodAutoscaler",
            (*external, "name"),
            "prometheus.googleapis.com|ts_queue_latency_microseconds|gauge",
            "no rule records",
        ),
        Broken(
            check,
            "HorizontalPodAutoscaler",
            (*external, "selector", "matchLabels", "resource.labels.namespace"),
            "default",
            "another namespace's metric",
        ),
    ]


BROKEN = [
    *schemas(),
    *pod_security(),
    *hardening(),
    *network(),
    *references(),
    *ports(),
    *probes(),
    *ending(),
    *resources(),
    *autoscalers(),
    *spread(),
    *metrics(),
]


@pytest.mark.parametrize("broken", BROKEN, ids=str)
def test_a_broken_manifest_is_detected(broken: Broken) -> None:
    problems = broken.check(broken.manifests())
    assert any(broken.problem in problem for problem in problems), problems


def test_two_autoscalers_of_one_deployment_are_detected() -> None:
    manifests = render("gke")
    manifests.append(find(manifests, "HorizontalPodAutoscaler", "sentiment"))
    assert rules.autoscaler_problems(manifests) == ["Deployment/sentiment: 2 autoscalers"]


def test_every_check_has_a_broken_manifest() -> None:
    assert {broken.check for broken in BROKEN} == set(CHECKS)


def test_every_own_schema_is_needed() -> None:
    kinds = {manifest["kind"].lower() for manifest in render("gke")}
    assert {path.stem for path in rules.SCHEMAS.glob("*.json")} <= kinds


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (pod) (rate(a_total{b="c", d!~"e|f"}[2m]))', {"a_total"}),
        ("a / on (b) group_left c > 0.01 or vector(0)", {"a", "c"}),
        ("max_over_time(level:a:sum[5m]) unless 1e3 * b", {"level:a:sum", "b"}),
        ("sum(rate(a[1m])) without (b) / sum(count(c) by (d))", {"a", "c"}),
    ],
)
def test_metric_names_are_read_from_promql(expression: str, names: set[str]) -> None:
    assert rules.metric_names(expression) == names


def test_the_limits_equal_the_defaults_of_the_code() -> None:
    lines = (K8S / "base" / "limits.env").read_text(encoding="utf-8").splitlines()
    declared = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert declared == {f"{ENVIRONMENT_PREFIX}{name.upper()}": str(value) for name, value in vars(Limits()).items()}
    for overlay in OVERLAYS:
        assert find(render(overlay), "ConfigMap", "sentiment-limits")["data"] == declared


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_limit_starts_a_rollout(overlay: str) -> None:
    name = find(render(overlay), "ConfigMap", "sentiment-limits")["metadata"]["name"]
    assert re.fullmatch(r"sentiment-limits-[a-z0-9]{10}", name)


def test_the_image_is_pinned_on_gke_and_never_pulled_locally() -> None:
    on_gke = find(render("gke"), "Deployment", "sentiment")["spec"]["template"]["spec"]["containers"][0]
    assert re.search(r"@sha256:[0-9a-f]{64}$", on_gke["image"])
    locally = find(render("local"), "Deployment", "sentiment")["spec"]["template"]["spec"]["containers"][0]
    assert (locally["image"], locally["imagePullPolicy"]) == ("sentiment:local", "Never")


def test_another_model_needs_only_another_namespace_and_image(tmp_path: pathlib.Path) -> None:
    """In a copy of the overlay, every other name stays the same."""
    overlay = pathlib.Path(shutil.copytree(K8S, tmp_path / "k8s"), "overlays", "gke")
    kustomization = overlay / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8").replace("namespace: sentiment\n", "namespace: reviews\n")
    text = re.sub("newName: .*", "newName: example.com/reviews", text)
    kustomization.write_text(text, encoding="utf-8")
    manifests = render_folder(overlay)
    assert {each["metadata"].get("namespace", "reviews") for each in manifests} == {"reviews"}
    assert find(manifests, "Namespace", "reviews")
    gateway = find(manifests, "Gateway", "sentiment")
    assert gateway["metadata"]["annotations"]["networking.gke.io/certmap"] == "reviews"
    assert [address["value"] for address in gateway["spec"]["addresses"]] == ["reviews"]
    metrics = find(manifests, "HorizontalPodAutoscaler", "sentiment")["spec"]["metrics"]
    [external] = [metric["external"] for metric in metrics if metric["type"] == "External"]
    assert external["metric"]["selector"]["matchLabels"]["resource.labels.namespace"] == "reviews"
    [container] = find(manifests, "Deployment", "sentiment")["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("example.com/reviews@sha256:")
    assert all(not check(manifests) for check in CHECKS)


def test_no_dashboard_and_no_rule_names_a_model_or_a_namespace() -> None:
    for name in ("dashboard.json", "rules.yaml"):
        text = (K8S / "components" / "monitoring" / name).read_text(encoding="utf-8")
        assert not re.search(r"(namespace|model_name)=~?\\?\"(?!\$)", text), name


def test_the_autoscaler_uses_cpu_and_queue_time() -> None:
    metrics = find(render("gke"), "HorizontalPodAutoscaler", "sentiment")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "External"]
