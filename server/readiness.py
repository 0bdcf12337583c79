"""A small HTTP server that reports whether the server and its models are ready, and whether a restart is needed.

The door forwards to it the requests for `/ready`, those for `/ping` at the metrics address, and those requests of the
Open Inference Protocol that concern the server rather than a model's handler. It asks TorchServe's management API,
because TorchServe's own `/ping` reports healthy while a model still loads, and unhealthy if some workers cannot start
while others answer. It responds within a bounded time, even if TorchServe hangs.
"""

import contextlib
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import unquote

from server import NAME, VERSION, api
from server.address import Endpoint, Endpoints, SocketAddress

T = TypeVar("T")

REQUEST_TIMEOUT_S = 2
"""The timeout of a request to TorchServe."""
CACHE_S = 0.5
"""The time for which a response of TorchServe is reused, so that many probes cause one request."""
FAULT_S = 300
"""The time after which only a restart removes a fault. Without a ready worker for so long, TorchServe stops restarting
its workers (`maxRetryTimeoutInSec`)."""
CONTINUOUS_S = 60
"""The longest time between two observations of one fault. The usual probes ask every 10 s."""
EXTENSIONS = ("binary_tensor_data",)
"""The extensions of the Open Inference Protocol that the server supports: texts may be binary data after the JSON."""


class NotReadyError(Exception):
    """The server or a model is not ready. The message says what was observed."""


class UnknownModelError(Exception):
    """There is no such model, version or path. The message names it."""


def check(defaults: Iterable[Mapping[str, Any]]) -> None:
    """Check that the default version of every model can answer requests.

    A version that is not the default does not count: if it fails to load, clients of the default are not affected.

    Args:
        defaults: the default version of each model, as `api.defaults` returns them.

    Raises:
        NotReadyError: a default version has no ready worker, or there is no model.
    """
    versions = list(defaults)
    if not versions:
        raise NotReadyError("No model is registered.")
    for version in versions:
        check_version(version)


def check_version(version: Mapping[str, Any]) -> None:
    """Check that a version of a model can answer requests.

    Raises:
        NotReadyError: it has no ready worker.
    """
    states = _states(version)
    if "READY" not in states:
        reason = f"its workers are {', '.join(states)}" if states else "it has no worker"
        raise NotReadyError(f"{version['modelName']} {version['modelVersion']} cannot answer: {reason}.")


def _states(version: Mapping[str, Any]) -> list[str]:
    return [worker["status"] for worker in version["workers"]]


class Readiness:
    """The HTTP server, in threads of this process."""

    def __init__(self, address: Endpoint, torchserve: Endpoints) -> None:
        """Start to listen.

        Args:
            address: the address to listen on, which only the door can reach.
            torchserve: the addresses of TorchServe.
        """
        models = _Models(torchserve)

        class Handler(_Handler):
            answers = _Answers(models)

        self._answers = Handler.answers
        self._server = _server(address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="readiness", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Report from now on that the server is not ready."""
        self._answers.draining = True

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Cached(Generic[T]):
    """What TorchServe reports. One thread asks at a time, and the response is reused."""

    def __init__(self, ask: Callable[[], T]) -> None:
        """Keep the function that asks.

        Args:
            ask: requests a value from TorchServe; raises `api.ERRORS`.
        """
        self._ask = ask
        self._lock = threading.Lock()
        self._asked_s = float("-inf")  # monotonic
        self._value: T
        self._problem: str | None = None

    def value(self) -> T:
        """The value, at most `CACHE_S` old.

        Raises:
            NotReadyError: TorchServe does not respond, or not as expected.
        """
        if not self._lock.acquire(timeout=REQUEST_TIMEOUT_S):
            raise NotReadyError(_problem(TimeoutError()))
        try:
            if time.monotonic() - self._asked_s > CACHE_S:
                self._refresh()
            if self._problem is not None:
                raise NotReadyError(self._problem)
            return self._value
        finally:
            self._lock.release()

    def _refresh(self) -> None:
        try:
            self._value, self._problem = self._ask(), None
        except api.ERRORS as error:
            self._problem = _problem(error)
        self._asked_s = time.monotonic()


class _Models:
    """TorchServe and its models, as its APIs describe them."""

    def __init__(self, torchserve: Endpoints) -> None:
        self._torchserve = torchserve
        self._responds = _Cached(self._ask_whether_it_responds)
        self._defaults = _Cached(self._ask_defaults)
        self._all = _Cached(self._ask_all)
        self._faults: dict[str, tuple[float, float]] = {}  # first and last observation, monotonic

    def check_live(self) -> None:
        """Check that the server works, or may still recover without a restart.

        Raises:
            NotReadyError: TorchServe does not respond; or for `FAULT_S`, its management API has given no valid answer,
                or the default version of a model has had no ready worker.
        """
        self._responds.value()
        with contextlib.suppress(NotReadyError):  # the management API may be busy for a moment
            self._defaults.value()
        for fault, (first_s, last_s) in self._faults.items():
            if last_s - first_s > FAULT_S:
                raise NotReadyError(f"{fault} for {FAULT_S} s.")

    def defaults(self) -> list[dict[str, Any]]:
        """The default version of each model.

        Raises:
            NotReadyError: TorchServe does not respond, or not as expected.
        """
        return self._defaults.value()

    def index(self) -> dict[str, Any]:
        """The names of all models, in the form of KServe's list, and their versions.

        Raises:
            NotReadyError: TorchServe does not respond, or not as expected.
        """
        defaults = [api.name_and_version(version) for version in self.defaults()]
        return {
            "models": [name for name, _ in defaults],
            "versions": [_entry(version, defaults) for version in self._all.value()],
        }

    def version(self, name: str, version: str) -> dict[str, Any]:
        """A version of a model.

        Raises:
            NotReadyError: TorchServe does not respond, or not as expected.
            UnknownModelError: there is no such version.
        """
        for description in self._all.value():
            if api.name_and_version(description) == (name, version):
                return description
        raise UnknownModelError(f"There is no version {version} of a model {name}.")

    def _ask_whether_it_responds(self) -> None:
        with contextlib.suppress(api.AnswerError):  # a response without status 200 is a response
            api.get(self._torchserve.inference, "/ping", REQUEST_TIMEOUT_S)

    def _ask_defaults(self) -> list[dict[str, Any]]:
        try:
            versions = _checked(api.defaults(self._torchserve.management, REQUEST_TIMEOUT_S))
        except api.ERRORS:
            self._faults |= self._observed(["TorchServe's management API has given no valid answer"])
            raise
        without = [each["modelName"] for each in versions if each["minWorkers"] and "READY" not in _states(each)]
        self._faults = self._observed([f"{name} has had no ready worker" for name in without])
        return versions

    def _observed(self, faults: Iterable[str]) -> dict[str, tuple[float, float]]:
        """The first and the last observation of faults that are observed now."""
        now_s = time.monotonic()
        spans = {fault: self._faults.get(fault, (now_s, now_s)) for fault in faults}
        return {
            fault: (first_s if now_s - last_s <= CONTINUOUS_S else now_s, now_s)
            for fault, (first_s, last_s) in spans.items()
        }

    def _ask_all(self) -> list[dict[str, Any]]:
        return _checked(api.versions(self._torchserve.management, REQUEST_TIMEOUT_S))


def _checked(versions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same versions; raises one of `api.ERRORS` if their form is not the expected one."""
    for version in versions:
        api.name_and_version(version)
        _states(version)
    return versions


def _entry(version: Mapping[str, Any], defaults: Container[tuple[str, str]]) -> dict[str, Any]:
    """A version's entry in the list of models, in the form of Triton's repository index."""
    name, number = api.name_and_version(version)
    entry = {"name": name, "version": number, "default": (name, number) in defaults}
    try:
        check_version(version)
    except NotReadyError as error:
        return entry | {"state": "UNAVAILABLE", "reason": str(error)}
    return entry | {"state": "READY"}


def _problem(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"TorchServe has not answered within {REQUEST_TIMEOUT_S} s."
    if isinstance(error, OSError):
        return "TorchServe does not answer: it is starting, or it has ended."
    return f"TorchServe's response is not the expected one: {error or type(error).__name__}"


class _Answers:
    """The responses by path."""

    def __init__(self, models: _Models) -> None:
        self._models = models
        self.draining = False

    def answer(self, path: str) -> tuple[HTTPStatus, dict[str, Any]]:
        """The status and the JSON body of the response to a GET request for `path`."""
        try:
            return HTTPStatus.OK, self._content([unquote(part) for part in path.partition("?")[0].split("/")[1:]])
        except NotReadyError as error:
            return _error(path, HTTPStatus.SERVICE_UNAVAILABLE, error)
        except UnknownModelError as error:
            return _error(path, HTTPStatus.NOT_FOUND, error)

    def _content(self, parts: list[str]) -> dict[str, Any]:
        """The JSON body for a path.

        Raises:
            NotReadyError: the server or the model is not ready.
            UnknownModelError: there is no such model, version or path.
        """
        match parts:
            case ["ready"]:
                self._check()
                return {"status": "Ready"}
            case ["ping"]:
                self._models.check_live()
                return {"status": "Healthy"}
            case ["v2"] | ["v2", ""]:
                return {"name": NAME, "version": VERSION, "extensions": list(EXTENSIONS)}
            case ["v2", "health", "live"]:
                self._models.check_live()
                return {"live": True}
            case ["v2", "health", "ready"]:
                self._check()
                return {"ready": True}
            case ["v2", "models", *rest]:
                return self._model_content(rest)
        raise UnknownModelError("There is nothing at this address.")

    def _model_content(self, parts: list[str]) -> dict[str, Any]:
        """The JSON body for a path under `/v2/models`; raises the same errors as `_content`."""
        match parts:
            case []:
                return self._models.index()
            case [name, "ready"]:
                self._check_model(self._default(name))
                return {"name": name, "ready": True}
            case [name, "versions", version, "ready"]:
                self._check_model(self._models.version(name, version))
                return {"name": name, "version": version, "ready": True}
        raise UnknownModelError("There is nothing at this address.")

    def _check(self) -> None:
        self._check_draining()
        check(self._models.defaults())

    def _check_model(self, version: Mapping[str, Any]) -> None:
        self._check_draining()
        check_version(version)

    def _check_draining(self) -> None:
        if self.draining:
            raise NotReadyError("The server is stopping.")

    def _default(self, name: str) -> dict[str, Any]:
        for version in self._models.defaults():
            if version["modelName"] == name:
                return version
        raise UnknownModelError(f"There is no model {name}.")


def _error(path: str, status: HTTPStatus, error: Exception) -> tuple[HTTPStatus, dict[str, Any]]:
    """An error in the form of the Open Inference Protocol for its paths, and in TorchServe's form for other paths."""
    if path.startswith("/v2"):
        return status, {"error": str(error)}
    return status, {"code": status.value, "type": type(error).__name__, "message": str(error)}


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[_Answers]
    timeout = REQUEST_TIMEOUT_S
    """The timeout of the socket: the door sends a request in one piece."""

    def do_GET(self) -> None:
        """Respond to a GET or a HEAD request."""
        status, content = self.answers.answer(self.path)
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815  # the library's name

    def version_string(self) -> str:
        """The value of the header `Server`."""
        return NAME

    def log_message(self, *_: object) -> None:
        """Log nothing: a probe arrives every few seconds."""


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print a traceback, unless the door closed the connection or never sent its request."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _SocketServer(_TcpServer):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def _server(address: Endpoint, handler: type[_Handler]) -> _TcpServer:
    if isinstance(address, SocketAddress):
        return _SocketServer(str(address.path), handler)  # type: ignore[arg-type]  # a path is this family's address
    return _TcpServer((address.host, address.port), handler)
