"""A stand-in for Kubernetes' API server, for use with the real kubectl: it stores objects and forwards ports to pods.

It has no controllers and no validation. The pods are servers on this machine. A port-forward uses SPDY/3.1 over an
upgraded HTTP connection; for each forwarded TCP connection, kubectl opens one stream for data and one for errors.
"""

import contextlib
import json
import os
import shutil
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests.k8s.rendered import Manifest

NAMESPACE = "sentiment"
LABELS = {"app.kubernetes.io/name": "sentiment"}
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Forward(Enum):
    """The outcome of a port-forward to a pod."""

    WORKS = auto()
    REFUSED = auto()
    """The user may not forward ports."""
    SILENT = auto()
    """The API server does not respond."""
    BREAKS = auto()
    """The connection to the pod is lost with the first forwarded request."""


@dataclass
class StandInPod:
    """A pod whose ports are ports on this machine."""

    name: str
    ports: dict[int, int] = field(default_factory=dict)
    """The port on this machine for each port of the pod."""
    phase: str = "Running"
    ready: bool = True
    ending: bool = False
    forward: Forward = Forward.WORKS

    def manifest(self) -> Manifest:
        metadata = {"name": self.name, "namespace": NAMESPACE, "labels": LABELS}
        ending = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if self.ending else {}
        ready = {"type": "Ready", "status": "True" if self.ready else "False"}
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": metadata | ending,
            "spec": {"containers": [{"name": "sentiment"}]},
            "status": {"phase": self.phase, "conditions": [ready]},
        }


@dataclass(frozen=True)
class Resource:
    """A kind of object, and its path in the API."""

    version: str
    kind: str
    plural: str

    @property
    def root(self) -> str:
        return f"/api/{self.version}" if self.version == "v1" else f"/apis/{self.version}"

    @property
    def namespaced(self) -> bool:
        return self.kind != "Namespace"

    def described(self) -> Manifest:
        verbs = ["create", "delete", "get", "list", "patch"]
        return {"name": self.plural, "kind": self.kind, "namespaced": self.namespaced, "verbs": verbs}


RESOURCES = [
    Resource("v1", "ConfigMap", "configmaps"),
    Resource("v1", "Event", "events"),
    Resource("v1", "Namespace", "namespaces"),
    Resource("v1", "Pod", "pods"),
    Resource("v1", "Secret", "secrets"),
    Resource("v1", "Service", "services"),
    Resource("v1", "ServiceAccount", "serviceaccounts"),
    Resource("apps/v1", "Deployment", "deployments"),
    Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    Resource("gateway.networking.k8s.io/v1", "Gateway", "gateways"),
    Resource("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"),
    Resource("monitoring.googleapis.com/v1", "PodMonitoring", "podmonitorings"),
    Resource("monitoring.googleapis.com/v1", "Rules", "rules"),
    Resource("networking.gke.io/v1", "GCPBackendPolicy", "gcpbackendpolicies"),
    Resource("networking.gke.io/v1", "HealthCheckPolicy", "healthcheckpolicies"),
    Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
]


class ApiServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.pods: list[StandInPod] = []
        self.objects: dict[str, Manifest] = {}
        """All objects other than pods, by path."""
        self.may_list = True
        self.stopped = threading.Event()
        self.forwards: list[socket.socket] = []
        """The connections of all port-forwards."""

    def get(self, path: str) -> Manifest | None:
        return next((pod.manifest() for pod in self.pods if path == f"{PODS}/{pod.name}"), self.objects.get(path))

    def list(self, collection: str, query: str) -> list[Manifest]:
        """The objects of a collection that a query selects, by equality of labels or by name."""
        manifests = [pod.manifest() for pod in self.pods] if collection == PODS else []
        manifests += [value for path, value in self.objects.items() if path.rpartition("/")[0] == collection]
        parameters = dict(parse_qsl(query))
        labels = dict(part.split("=") for part in parameters.get("labelSelector", "").split(",") if part)
        name = parameters.get("fieldSelector", "").removeprefix("metadata.name=")
        return [
            manifest
            for manifest in manifests
            if labels.items() <= manifest["metadata"].get("labels", {}).items()
            and name in ("", manifest["metadata"]["name"])
        ]

    def lose_forwards(self) -> None:
        """End all port-forwards, as a restart of an API server does."""
        for connection in self.forwards:
            _end(connection)


@contextlib.contextmanager
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """An API server without pods, to which kubectl is configured to connect.

    Without kubectl, the test is skipped, or fails if the variable CI is true.
    """
    if shutil.which("kubectl") is None:
        reason = "kubectl is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with ApiServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        configuration = {
            "kind": "Config",
            "apiVersion": "v1",
            "clusters": [{"name": "stand-in", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in"}}],
            "current-context": "stand-in",
        }
        (folder / "kubeconfig").write_text(json.dumps(configuration))
        monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))
        monkeypatch.setenv("KUBECACHEDIR", str(folder / "cache"))
        try:
            yield server
        finally:
            server.stopped.set()
            server.lose_forwards()
            server.shutdown()


class _Requests(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ApiServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if discovered := _discovery(path):
            self._answer(200, discovered)
        elif path.endswith("/portforward"):
            # Newer clients try a WebSocket first, which older servers do not support.
            self._fail(400, "BadRequest", "Upgrade request required")
        elif path.endswith("/log"):
            self._answer(200, [])
        elif path == PODS and not self.server.may_list:
            self._fail(403, "Forbidden", 'pods is forbidden: User "somebody" cannot list resource "pods"')
        elif manifest := self.server.get(path):
            self._answer(200, manifest)
        elif resources := [
            resource
            for resource in RESOURCES
            if path.startswith(resource.root) and path.endswith(f"/{resource.plural}")
        ]:
            items = self.server.list(path, query)
            kind, version = f"{resources[0].kind}List", resources[0].version
            self._answer(200, {"kind": kind, "apiVersion": version, "items": items})
        else:
            self._fail(404, "NotFound", f"{path} not found")

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/portforward"):
            self._forward(next(pod for pod in self.server.pods if path == f"{PODS}/{pod.name}/portforward"))
            return
        created = self._body()
        self._store(f"{path}/{created['metadata']['name']}", created)

    def do_PATCH(self) -> None:
        path = self.path.partition("?")[0]
        self._store(path, _merged(self.server.objects[path], self._body()))

    def do_DELETE(self) -> None:
        self._body()
        path = self.path.partition("?")[0]
        if deleted := self.server.objects.pop(path, None):
            self._answer(200, deleted)
        else:
            self._fail(404, "NotFound", f"{path} not found")

    def _store(self, path: str, value: Manifest) -> None:
        if value["kind"] == "Deployment":
            value["spec"].setdefault("replicas", 1)  # the API server's default
        value["metadata"].setdefault("uid", path)
        self.server.objects[path] = value
        self._answer(200, value)

    def _body(self) -> Manifest:
        value: Manifest = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        return value

    def _forward(self, pod: StandInPod) -> None:
        if pod.forward is Forward.SILENT:
            self.server.stopped.wait()
            self.close_connection = True
        elif pod.forward is Forward.REFUSED:
            self._fail(403, "Forbidden", f'pods "{pod.name}" is forbidden: User "somebody" cannot create portforward')
        else:
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "SPDY/3.1")
            self.send_header("X-Stream-Protocol-Version", "portforward.k8s.io")
            self.end_headers()
            self.server.forwards.append(self.connection)
            with contextlib.suppress(OSError):
                _Session(self, pod).run()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass

    def _fail(self, code: int, reason: str, message: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self._answer(code, status | {"message": message})

    def _answer(self, code: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _discovery(path: str) -> Manifest | None:
    """The response to a discovery request, which kubectl sends before all others; None for other paths."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        versions = sorted({each.version for each in RESOURCES} - {"v1"})
        groups = []
        for version in versions:
            group, _, number = version.partition("/")
            described = {"groupVersion": version, "version": number}
            groups.append({"name": group, "versions": [described], "preferredVersion": described})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if group_resources := [resource for resource in RESOURCES if path == resource.root]:
        resources = [resource.described() for resource in group_resources]
        return {"kind": "APIResourceList", "groupVersion": group_resources[0].version, "resources": resources}
    return None


def _merged(value: Any, patch: Any) -> Any:
    """The result of a JSON merge patch (RFC 7396) that merges lists of objects by Kubernetes' merge keys."""
    if isinstance(patch, dict):
        merged = dict(value) if isinstance(value, dict) else {}
        for name, change in patch.items():
            if change is None:
                merged.pop(name, None)
            elif not name.startswith("$"):
                merged[name] = _merged(merged.get(name), change)
        return merged
    for key in ("mountPath", "name"):
        if isinstance(patch, list) and patch and all(isinstance(each, dict) and key in each for each in patch):
            by_key = {element[key]: element for element in value or []}
            for element in patch:
                if element.get("$patch") == "delete":
                    del by_key[element[key]]
                else:
                    by_key[element[key]] = _merged(by_key.get(element[key]), element)
            return list(by_key.values())
    return patch


SYN_STREAM, SYN_REPLY, PING = 1, 2, 6
FIN = 1


class _Session:
    """The streams of a port-forward (SPDY Protocol, draft 3.1, sections 2.2 and 2.6)."""

    def __init__(self, request: _Requests, pod: StandInPod) -> None:
        self._request = request
        self._pod = pod
        self._lock = threading.Lock()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._error_streams: dict[str, int] = {}
        self._targets: dict[int, socket.socket] = {}

    def run(self) -> None:
        read = self._request.rfile.read
        try:
            while header := read(8):
                first, rest = struct.unpack("!II", header)
                flags, payload = rest >> 24, read(rest & 0xFFFFFF)
                if not first >> 31:
                    self._data(first, payload, flags)
                elif first & 0xFFFF == SYN_STREAM:
                    self._open(payload)
                elif first & 0xFFFF == PING:
                    self._control(PING, payload)
        finally:
            for target in self._targets.values():
                _end(target)
                target.close()
            _end(self._request.connection)

    def _open(self, payload: bytes) -> None:
        [stream] = struct.unpack("!I", payload[:4])
        headers = _headers(self._inflate.decompress(payload[10:]))
        reply = self._deflate.compress(struct.pack("!I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._control(SYN_REPLY, struct.pack("!I", stream) + reply)
        if headers["streamtype"] == "error":
            self._error_streams[headers["requestid"]] = stream
            return
        errors = self._error_streams[headers["requestid"]]
        try:
            target = socket.create_connection(("127.0.0.1", self._pod.ports[int(headers["port"])]))
        except OSError as error:
            self._send(errors, str(error).encode(), FIN)
            self._send(stream, b"", FIN)
        else:
            self._targets[stream] = target
            threading.Thread(target=self._copy, args=(target, stream, errors), daemon=True).start()

    def _copy(self, target: socket.socket, stream: int, errors: int) -> None:
        with contextlib.suppress(OSError):
            while data := target.recv(65_536):
                self._send(stream, data)
            self._send(stream, b"", FIN)
            self._send(errors, b"", FIN)

    def _data(self, stream: int, payload: bytes, flags: int) -> None:
        target = self._targets.get(stream)
        if target is None:
            return
        if payload and self._pod.forward is Forward.BREAKS:
            raise ConnectionAbortedError
        target.sendall(payload)
        if flags & FIN:
            with contextlib.suppress(OSError):  # the peer has closed the connection already
                target.shutdown(socket.SHUT_WR)

    def _control(self, kind: int, payload: bytes) -> None:
        self._write(struct.pack("!HHI", 0x8003, kind, len(payload)) + payload)

    def _send(self, stream: int, data: bytes, flags: int = 0) -> None:
        self._write(struct.pack("!II", stream, flags << 24 | len(data)) + data)

    def _write(self, frame: bytes) -> None:
        with self._lock:
            self._request.connection.sendall(frame)


def _headers(block: bytes) -> dict[str, str]:
    words = []
    offset = 4
    while offset < len(block):
        [length] = struct.unpack_from("!I", block, offset)
        words.append(block[offset + 4 : offset + 4 + length].decode())
        offset += 4 + length
    return dict(zip(words[::2], words[1::2], strict=True))


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


# The dictionary with which both sides compress headers (section 2.6.10.1).
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status|200 OK|version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_PHRASES = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    "Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    "00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(
        struct.pack("!I", len(word)) + word.encode()
        for part in _WORDS.split("|")
        for word in ([part] if part == "200 OK" else part.split())
    )
    + _PHRASES.encode()
)
