"""Rules for manifests: functions that take all manifests of an overlay and return a list of problems.

An API server would accept most of these problems, such as a port that no container has, a selector that selects
nothing, or an alert on a metric that does not exist.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from server import door, memory
from server.cli import DRAIN_TIMEOUT_S
from server.torchserve import START_TIMEOUT_S, STOP_TIMEOUT_S
from tests.k8s.rendered import Manifest
from tests.paths import ROOT

KUBERNETES = "1.33"
SCHEMAS = Path(__file__).parent / "schemas"
MANAGEMENT_PORT = 8081
ARCHIVE_BYTES = 10_000_000
"""Size of the embedded model's unpacked archive."""


# -- Schemas --


def schema_problems(manifests: list[Manifest]) -> list[str]:
    """Every manifest is valid, without unknown fields. The schemas of CRDs are in the folder `schemas`."""
    problems = []
    for manifest in manifests:
        own_schema = SCHEMAS / f"{manifest['kind'].lower()}.json"
        try:
            if own_schema.is_file():
                jsonschema.Draft202012Validator(json.loads(own_schema.read_text(encoding="utf-8"))).validate(manifest)
            else:
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        except jsonschema.ValidationError as error:
            problems.append(f"{_title(manifest)}: {'.'.join(map(str, error.absolute_path))}: {error.message}")
        except kubernetes_validate.SchemaNotFoundError:
            problems.append(f"{_title(manifest)}: no schema")
    return problems


# -- Security --

VOLUME_TYPES = frozenset(
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"]
)
SAFE_SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    ]
)


def pod_security_problems(manifests: list[Manifest]) -> list[str]:
    """Every pod conforms to the restricted profile, and its namespace enforces the profile.

    The profile includes the baseline profile (kubernetes.io/docs/concepts/security/pod-security-standards).
    """
    problems = [
        f"{_title(each)}: restricted is not enforced"
        for each in manifests
        if each["kind"] == "Namespace"
        and each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted"
    ]
    for pod in _pods(manifests):
        problems += [f"{pod.title}: {problem}" for problem in _restricted_pod(pod.spec)]
        for container in _all_containers(pod.spec):
            violations = _restricted_container(container, pod.spec.get("securityContext", {}))
            problems += [f"{pod.title}: {container['name']}: {problem}" for problem in violations]
    return problems


def _restricted_pod(spec: Manifest) -> Iterator[str]:
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field, False):
            yield field
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUME_TYPES:
            yield f"volume {volume['name']}: {', '.join(kinds)}"
    context = spec.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    yield from _restricted_context(context)


def _restricted_container(container: Manifest, pod: Manifest) -> Iterator[str]:
    context = container.get("securityContext", {})
    yield from _restricted_context(context)
    if context.get("privileged", False):
        yield "privileged"
    if context.get("allowPrivilegeEscalation", True):
        yield "allowPrivilegeEscalation"
    if context.get("runAsNonRoot", pod.get("runAsNonRoot", False)) is not True:
        yield "runAsNonRoot is not true"
    if "seccompProfile" not in context and "seccompProfile" not in pod:
        yield "no seccompProfile"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield "does not drop ALL capabilities"
    if added := set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield f"adds capabilities: {', '.join(added)}"
    if context.get("procMount", "Default") != "Default":
        yield "procMount"
    for port in container.get("ports", []):
        if port.get("hostPort", 0):
            yield f"hostPort {port['hostPort']}"


def _restricted_context(context: Manifest) -> Iterator[str]:
    """The problems of the fields that the security contexts of pods and containers have in common."""
    if context.get("runAsNonRoot", True) is not True:
        yield "runAsNonRoot is false"
    if context.get("runAsUser") == 0:
        yield "runAsUser is root"
    if context.get("seccompProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile is unconfined"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in ("RuntimeDefault", "Localhost"):
        yield "appArmorProfile is unconfined"
    linux = context.get("seLinuxOptions", {})
    if linux.get("type", "") not in ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"):
        yield "seLinuxOptions.type"
    if linux.get("user") or linux.get("role"):
        yield "seLinuxOptions.user or role"
    if context.get("windowsOptions", {}).get("hostProcess", False):
        yield "hostProcess"


def hardening_problems(manifests: list[Manifest]) -> list[str]:
    """Every pod conforms to this project's requirements beyond the restricted profile."""
    problems = []
    for pod in _pods(manifests):
        if not pod.spec.get("securityContext", {}).get("runAsUser"):
            problems.append(f"{pod.title}: no numeric user")
        if pod.spec.get("automountServiceAccountToken") is not False:
            problems.append(f"{pod.title}: has a token")
        if pod.spec.get("enableServiceLinks") is not False:
            problems.append(f"{pod.title}: has service links")
        for container in _all_containers(pod.spec):
            if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
                problems.append(f"{pod.title}: {container['name']}: the root can be written")
            if MANAGEMENT_PORT in (port["containerPort"] for port in container.get("ports", [])):
                problems.append(f"{pod.title}: {container['name']}: the management API is not private")
    problems += [
        f"{_title(each)}: has a token"
        for each in manifests
        if each["kind"] == "ServiceAccount" and each.get("automountServiceAccountToken") is not False
    ]
    return problems


def network_problems(manifests: list[Manifest]) -> list[str]:
    """All traffic is denied, except from peers and to ports that a policy names."""
    policies = [each for each in manifests if each["kind"] == "NetworkPolicy"]
    problems = []
    if not any(_denies_all(policy["spec"]) for policy in policies):
        problems.append("no policy denies everything by default")
    for policy in policies:
        spec = policy["spec"]
        if spec.get("egress"):
            problems.append(f"{_title(policy)}: allows egress")
        for rule in spec.get("ingress", []):
            if not rule.get("from") or any(not any(peer.values()) for peer in rule["from"]):
                problems.append(f"{_title(policy)}: allows ingress from every peer")
            if not rule.get("ports"):
                problems.append(f"{_title(policy)}: allows ingress to every port")
    return problems


def _denies_all(spec: Manifest) -> bool:
    rules = spec.get("ingress", []) + spec.get("egress", [])
    return not spec["podSelector"] and not rules and set(spec["policyTypes"]) == {"Ingress", "Egress"}


# -- References --


def selector_problems(manifests: list[Manifest]) -> list[str]:
    """Every selector selects a pod of this overlay."""
    labels = [pod.labels for pod in _pods(manifests)]
    problems = []
    for manifest in manifests:
        for field, selector in _selectors(manifest):
            if not any(selector.items() <= pod_labels.items() for pod_labels in labels):
                problems.append(f"{_title(manifest)}: {field} selects no pod: {selector}")
    problems += [
        f"{pod.title}: its selector does not match its own pods"
        for pod in _pods(manifests)
        if not pod.selector or not pod.selector.items() <= pod.labels.items()
    ]
    return problems


def _selectors(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "Service":
            yield "selector", spec["selector"]
        case "PodDisruptionBudget" | "PodMonitoring":
            yield "selector", spec["selector"]["matchLabels"]
        case "NetworkPolicy":
            yield "podSelector", spec["podSelector"].get("matchLabels", {})
        case "Deployment":
            for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
                yield f"spread over {constraint['topologyKey']}", constraint["labelSelector"]["matchLabels"]


def reference_problems(manifests: list[Manifest]) -> list[str]:
    """Every name by which a manifest refers to another one exists."""
    names = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    problems = []
    for manifest in manifests:
        for kind, name in _references(manifest):
            if (kind, name) not in names:
                problems.append(f"{_title(manifest)}: no {kind} {name}")
        namespace = manifest["metadata"].get("namespace")
        if manifest["kind"] != "Namespace" and ("Namespace", namespace) not in names:
            problems.append(f"{_title(manifest)}: no Namespace {namespace}")
    for pod in _pods(manifests):
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        for container in _all_containers(pod.spec):
            mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
            problems += [f"{pod.title}: no volume {name}" for name in mounts - volumes]
    return problems


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    spec = manifest.get("spec", {})
    match manifest["kind"]:
        case "HorizontalPodAutoscaler":
            yield spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"]
        case "HealthCheckPolicy" | "GCPBackendPolicy":
            yield spec["targetRef"]["kind"], spec["targetRef"]["name"]
        case "HTTPRoute":
            yield from (("Gateway", parent["name"]) for parent in spec["parentRefs"])
            yield from (("Service", backend["name"]) for rule in spec["rules"] for backend in rule["backendRefs"])
        case "Deployment":
            pod = spec["template"]["spec"]
            yield "ServiceAccount", pod["serviceAccountName"]
            for container in _all_containers(pod):
                for source in container.get("envFrom", []):
                    yield "ConfigMap", source["configMapRef"]["name"]


def port_problems(manifests: list[Manifest]) -> list[str]:
    """Every port in a reference, by name or number, exists in a container, service or listener."""
    pods = {port for pod in _pods(manifests) for port in _ports(pod.spec)}
    services = {
        (each["metadata"]["name"], port["port"])
        for each in manifests
        if each["kind"] == "Service"
        for port in each["spec"]["ports"]
    }
    listeners = {
        (each["metadata"]["name"], listener["name"])
        for each in manifests
        if each["kind"] == "Gateway"
        for listener in each["spec"]["listeners"]
    }
    problems = []
    for manifest in manifests:
        spec = manifest.get("spec", {})
        referenced: list[object] = []
        match manifest["kind"]:
            case "Service":
                referenced = [port.get("targetPort", port["port"]) for port in spec["ports"]]
            case "NetworkPolicy":
                referenced = [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
            case "PodMonitoring":
                referenced = [endpoint["port"] for endpoint in spec["endpoints"]]
                if len(set(referenced)) < len(referenced):
                    problems.append(f"{_title(manifest)}: Managed Prometheus refuses two endpoints on one port")
            case "HealthCheckPolicy":
                referenced = [spec["default"]["config"]["httpHealthCheck"]["port"]]
            case "HTTPRoute":
                backends = {(each["name"], each["port"]) for rule in spec["rules"] for each in rule["backendRefs"]}
                problems += [
                    f"{_title(manifest)}: service {name} has no port {port}" for name, port in backends - services
                ]
                parents = {(parent["name"], parent["sectionName"]) for parent in spec["parentRefs"]}
                problems += [f"{_title(manifest)}: {name} has no listener {part}" for name, part in parents - listeners]
        problems += [f"{_title(manifest)}: no container has the port {port}" for port in referenced if port not in pods]
    return problems


def _ports(spec: Manifest) -> Iterator[object]:
    for container in _all_containers(spec):
        for port in container.get("ports", []):
            yield port["containerPort"]
            yield port["name"]


# -- Probes and termination --


PROBES = {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/ping"}


def probe_problems(manifests: list[Manifest]) -> list[str]:
    """The readiness probe checks the workers; the liveness probe checks whether a restart would help."""
    problems = []
    for pod in _pods(manifests):
        for container in pod.spec["containers"]:
            title = f"{pod.title}: {container['name']}"
            ports = {port["name"] for port in container["ports"]}
            for name, path in PROBES.items():
                request = container.get(name, {}).get("httpGet", {})
                if name not in container:
                    problems.append(f"{title}: no {name}")
                elif request.get("path") != path or request.get("port") not in ports:
                    problems.append(f"{title}: {name} requests {request}")
            if container.get("livenessProbe", {}).get("httpGet", {}).get("port") == "http":
                problems.append(f"{title}: livenessProbe fails while clients hold all connections")
            startup = container.get("startupProbe", {})
            if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) < START_TIMEOUT_S:
                problems.append(f"{title}: startupProbe gives up before the server does ({START_TIMEOUT_S} s)")
    for policy in (each for each in manifests if each["kind"] == "HealthCheckPolicy"):
        request = policy["spec"]["default"]["config"]["httpHealthCheck"]
        if request["requestPath"] != PROBES["readinessProbe"]:
            problems.append(f"{_title(policy)}: requests {request['requestPath']}")
    return problems


LOAD_BALANCERS_LEARN_S = 15
"""The time until no load balancer sends a new request to a terminating pod."""


def ending_problems(manifests: list[Manifest]) -> list[str]:
    """A rollout loses no request: the load balancers deregister a pod, then the server drains, then the pod ends."""
    policies = [each for each in manifests if each["kind"] == "GCPBackendPolicy"]
    request_s = longest_request_s()
    problems = []
    for deployment in (each for each in manifests if each["kind"] == "Deployment"):
        title = _title(deployment)
        update = deployment["spec"]["strategy"].get("rollingUpdate", {})
        if update.get("maxUnavailable", "25%") != 0 or update.get("maxSurge", "25%") in (0, "0%"):
            problems.append(f"{title}: a pod ends before its successor is ready")
        spec = deployment["spec"]["template"]["spec"]
        sleep_s = spec["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace_s = spec.get("terminationGracePeriodSeconds", 30)
        # Each of the door's two processes has this timeout; Java has one STOP_TIMEOUT_S, and the workers another.
        needed_s = sleep_s + DRAIN_TIMEOUT_S + 2 * door.STOP_TIMEOUT_S + 2 * STOP_TIMEOUT_S
        if grace_s <= needed_s:
            problems.append(f"{title}: killed after {grace_s} s, but its stop takes up to {needed_s} s")
        if sleep_s <= LOAD_BALANCERS_LEARN_S:
            problems.append(f"{title}: preStop ({sleep_s} s) ends before the load balancers deregister the pod")
        if sleep_s + DRAIN_TIMEOUT_S < LOAD_BALANCERS_LEARN_S + request_s:
            problems.append(f"{title}: the drain ends before the longest request ({request_s} s)")
    for policy in policies:
        default = policy["spec"]["default"]
        if default.get("timeoutSec", 30) <= request_s:
            problems.append(f"{_title(policy)}: times out before the door does ({request_s} s)")
        if default.get("connectionDraining", {}).get("drainingTimeoutSec", 0) <= request_s:
            problems.append(f"{_title(policy)}: cuts the longest request ({request_s} s)")
    return problems


@functools.cache
def longest_request_s() -> int:
    """The longest duration of a request by the door's timeouts, in seconds.

    It is the sum of the timeouts for the headers and the body, and of those for queue and response for each attempt.
    """
    configuration = (ROOT / "door" / "haproxy.cfg").read_text(encoding="utf-8")
    defaults = (ROOT / "door" / "shared.cfg").read_text(encoding="utf-8")
    [arrival_s], [queue_s], [answer_s] = (
        re.findall(rf"^ *timeout {name} (\d+)s$", defaults, flags=re.MULTILINE)
        for name in ("http-request", "queue", "server")
    )
    [retries] = set(re.findall(r"^ *retries (\d+)$", configuration, flags=re.MULTILINE))
    return 2 * int(arrival_s) + (1 + int(retries)) * (int(queue_s) + int(answer_s))


# -- Resources --

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {None: Decimal(1), "m": Decimal("0.001")}
_FACTORS |= {unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T"), start=1)}
_FACTORS |= {unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), start=1)}

MODEL_BYTES = 10_000_000
"""The size of the embedded model's files in a worker."""


def quantity(text: object) -> Decimal:
    """The value of a Kubernetes quantity such as `2Gi` or `500m`, in bytes or cores.

    Raises:
        ValueError: the text is not a quantity.
    """
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(match[1]) * _FACTORS[match[2]]


def resource_problems(manifests: list[Manifest]) -> list[str]:
    """Quantities are valid, requests are within limits, and the memory suffices for one worker per core."""
    problems = []
    for pod in _pods(manifests):
        try:
            problems += [f"{pod.title}: {problem}" for problem in _resources(pod.spec)]
        except ValueError as error:
            problems.append(f"{pod.title}: {error}")
    return problems


def _resources(spec: Manifest) -> Iterator[str]:
    storage = Decimal(0)
    for volume in spec.get("volumes", []):
        if "sizeLimit" not in volume.get("emptyDir", {"sizeLimit": 0}):
            yield f"volume {volume['name']} has no limit"
        storage += quantity(volume.get("emptyDir", {}).get("sizeLimit", 0))
    for container in _all_containers(spec):
        resources = container.get("resources", {})
        requests, limits = resources.get("requests", {}), resources.get("limits", {})
        for name in ("cpu", "memory"):
            if name not in requests or name not in limits:
                yield f"{container['name']}: no request or no limit of {name}"
        for name in requests.keys() & limits.keys():
            if quantity(requests[name]) > quantity(limits[name]):
                yield f"{container['name']}: requests more {name} than its limit"
        if quantity(limits.get("ephemeral-storage", 0)) < storage:
            yield f"{container['name']}: its volumes are larger than its ephemeral-storage"
        cores = quantity(limits.get("cpu", 0))
        if quantity(limits.get("memory", 0)) < memory.RESERVED_BYTES + cores * (memory.WORKER_BYTES + MODEL_BYTES):
            yield f"{container['name']}: less memory than its processes may take"


def autoscaler_problems(manifests: list[Manifest]) -> list[str]:
    """A Deployment has at most one autoscaler, and sets no number of pods, which each `kubectl apply` would restore."""
    autoscalers = [each for each in manifests if each["kind"] == "HorizontalPodAutoscaler"]
    deployments = [each for each in manifests if each["kind"] == "Deployment"]
    problems = [f"{_title(each)}: sets the number of pods" for each in deployments if "replicas" in each["spec"]]
    for name in (each["metadata"]["name"] for each in deployments):
        count = sum(each["spec"]["scaleTargetRef"]["name"] == name for each in autoscalers)
        if count > 1:
            problems.append(f"Deployment/{name}: {count} autoscalers")
    for autoscaler in autoscalers:
        spec = autoscaler["spec"]
        if not 1 < spec["minReplicas"] < spec["maxReplicas"]:
            problems.append(f"{_title(autoscaler)}: from {spec['minReplicas']} to {spec['maxReplicas']} pods")
    return problems


ZONE = "topology.kubernetes.io/zone"


def spread_problems(manifests: list[Manifest]) -> list[str]:
    """The pods of a Deployment with an autoscaler, two at least, are never all in one zone."""
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in manifests if each["kind"] == "HorizontalPodAutoscaler"}
    problems = []
    for deployment in (each for each in manifests if each["kind"] == "Deployment"):
        constraints = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        if deployment["metadata"]["name"] in scaled and not any(map(_keeps_zones_apart, constraints)):
            problems.append(f"{_title(deployment)}: all its pods may be in one zone")
    return problems


def _keeps_zones_apart(constraint: Manifest) -> bool:
    """Whether two pods are scheduled in two zones, and further pods in the remaining zones if one zone fails."""
    needed = {"topologyKey": ZONE, "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1, "nodeTaintsPolicy": "Honor"}
    return needed.items() <= constraint.items() and constraint.get("minDomains", 1) >= 2


# -- Metrics --

_PROMQL_WORDS = frozenset(
    ["and", "bool", "by", "group_left", "group_right", "ignoring", "on", "or", "unless", "without"]
)


def metric_problems(manifests: list[Manifest]) -> list[str]:
    """Rules, dashboards and autoscalers use metrics that the server exposes or that a rule records."""
    known = exposed_metrics() | {rule["record"] for _, rule in _recorded_and_alerts(manifests) if "record" in rule}
    problems = []
    for manifest, rule in _recorded_and_alerts(manifests):
        problems += [f"{_title(manifest)}: no metric {name}" for name in metric_names(rule["expr"]) - known]
    for manifest in (each for each in manifests if "grafana_dashboard" in each["metadata"].get("labels", {})):
        for dashboard in manifest["data"].values():
            expressions = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
            for name in set().union(*map(metric_names, expressions)) - known:
                problems.append(f"{_title(manifest)}: no metric {name}")
    for manifest in (each for each in manifests if each["kind"] == "HorizontalPodAutoscaler"):
        for metric in (each["external"] for each in manifest["spec"]["metrics"] if each["type"] == "External"):
            _, name, kind = metric["metric"]["name"].split("|")
            if name not in known - exposed_metrics() or kind != "gauge":
                problems.append(f"{_title(manifest)}: no rule records {name} ({kind})")
            labels = metric["metric"]["selector"]["matchLabels"]
            if labels.get("resource.labels.namespace") != manifest["metadata"]["namespace"]:
                problems.append(f"{_title(manifest)}: another namespace's metric: {labels}")
    return problems


def metric_names(expression: str) -> set[str]:
    """The metrics in a PromQL expression: the words that are no function, keyword, label or duration."""
    bare = re.sub(r"\"[^\"]*\"|\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    return set(re.findall(r"\b[A-Za-z_:][\w:]*\b(?!\s*\()", bare)) - _PROMQL_WORDS


def _recorded_and_alerts(manifests: list[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    for manifest in (each for each in manifests if each["kind"] == "Rules"):
        for group in manifest["spec"]["groups"]:
            yield from ((manifest, rule) for rule in group["rules"])


@functools.cache
def exposed_metrics() -> frozenset[str]:
    """The names of all metrics of the server.

    They are the names in the list that TorchServe reads (a histogram has three), and the documented names of the door's
    and of Kubernetes' metrics.
    """
    declared = yaml.safe_load((ROOT / "metrics.yaml").read_text(encoding="utf-8"))
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    torchserves = {
        metric["name"] + suffix
        for part in ("ts_metrics", "model_metrics")
        for kind, group in declared[part].items()
        for metric in group
        for suffix in suffixes.get(kind, ("",))
    }
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    return frozenset(torchserves | set(re.findall(r"^\| `((?:haproxy|kube)_\w+)` ", page, flags=re.MULTILINE)))


# -- Manifests --


@dataclass(frozen=True)
class Pod:
    """The pods of a Deployment."""

    title: str
    selector: Manifest
    labels: Manifest
    spec: Manifest


def _pods(manifests: list[Manifest]) -> list[Pod]:
    deployments = [each for each in manifests if each["kind"] == "Deployment"]
    return [
        Pod(
            _title(deployment),
            deployment["spec"]["selector"]["matchLabels"],
            deployment["spec"]["template"]["metadata"]["labels"],
            deployment["spec"]["template"]["spec"],
        )
        for deployment in deployments
    ]


def _all_containers(spec: Manifest) -> list[Any]:
    return [*spec.get("initContainers", []), *spec["containers"], *spec.get("ephemeralContainers", [])]


def _title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


CHECKS: tuple[Callable[[list[Manifest]], list[str]], ...] = (
    schema_problems,
    pod_security_problems,
    hardening_problems,
    network_problems,
    selector_problems,
    reference_problems,
    port_problems,
    probe_problems,
    ending_problems,
    resource_problems,
    autoscaler_problems,
    spread_problems,
    metric_problems,
)
