"""A small HTTP server that says whether this server is ready. The door sends it the requests for `/ready` and for what
the Open Inference Protocol asks of a server rather than of a model's handler.

It asks TorchServe, which itself says yes under `/ping` while a model still loads. It answers within a bounded time,
also if TorchServe hangs.
"""

import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar
from urllib.parse import quote, unquote

from server import NAME, VERSION, api
from server.address import Endpoint, Endpoints, SocketAddress

ANSWER_S = 2
"""How long TorchServe may take to answer."""
FRESH_S = 0.5
"""How long an answer of TorchServe is reused, so that many probes cause one request."""
EXTENSIONS = ("binary_tensor_data",)
"""Of the Open Inference Protocol: texts may come in binary, behind the JSON."""


class NotReadyError(Exception):
    """The message says what was seen."""


class UnknownModelError(Exception):
    """The message names the model."""


def check(defaults: Iterable[Mapping[str, Any]]) -> None:
    """Check that every model can answer.

    Args:
        defaults: the default version of each model, as `api.defaults` returns them.

    Raises:
        NotReadyError: a model's default version has no worker that answers, or there is no model. Another version that
            does not load takes nobody's answer away.
    """
    versions = list(defaults)
    if not versions:
        raise NotReadyError("No model is registered.")
    for version in versions:
        check_version(version)


def check_version(version: Mapping[str, Any]) -> None:
    """Check that a version of a model can answer.

    Raises:
        NotReadyError: it has no worker that answers.
    """
    states = _states(version)
    if "READY" not in states:
        found = f"its workers are {', '.join(states)}" if states else "it has no worker"
        raise NotReadyError(f"{version['modelName']} {version['modelVersion']} cannot answer: {found}.")


def _states(version: Mapping[str, Any]) -> list[str]:
    return [worker["status"] for worker in version["workers"]]


class Readiness:
    """The HTTP server, in threads of this process."""

    def __init__(self, address: Endpoint, torchserve: Endpoints) -> None:
        """Start to listen.

        Args:
            address: where it listens; only the door may be able to connect.
            torchserve: where TorchServe listens.
        """
        models = _Models(torchserve)

        class Handler(_Handler):
            answers = _Answers(models, torchserve)

        self._answers = Handler.answers
        self._server = _server(address, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="readiness", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Say from now on that the server is not ready."""
        self._answers.draining = True

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Versions:
    """Versions of models, as TorchServe describes them. One thread asks at a time, and the answer is reused."""

    def __init__(self, ask: Callable[[], list[dict[str, Any]]]) -> None:
        """
        Args:
            ask: asks TorchServe; raises `api.ERRORS`.
        """
        self._ask = ask
        self._lock = threading.Lock()
        self._asked_s = float("-inf")  # monotonic
        self._described: list[dict[str, Any]] = []
        self._problem: str | None = None

    def described(self) -> list[dict[str, Any]]:
        """
        Raises:
            NotReadyError: TorchServe does not answer as it should.
        """
        if not self._lock.acquire(timeout=ANSWER_S):
            raise NotReadyError(_problem(TimeoutError()))
        try:
            if time.monotonic() - self._asked_s > FRESH_S:
                self._describe()
            if self._problem is not None:
                raise NotReadyError(self._problem)
            return self._described
        finally:
            self._lock.release()

    def _describe(self) -> None:
        try:
            self._described, self._problem = self._ask(), None
            for version in self._described:  # of the form that is expected
                _states(version)
        except api.ERRORS as error:
            self._problem = _problem(error)
        self._asked_s = time.monotonic()


class _Models:
    """What TorchServe says of its models."""

    def __init__(self, torchserve: Endpoints) -> None:
        self._management = torchserve.management
        self._defaults = _Versions(lambda: api.defaults(self._management, ANSWER_S))
        self._all = _Versions(lambda: api.versions(self._management, ANSWER_S))

    def defaults(self) -> list[dict[str, Any]]:
        """The default version of each model.

        Raises:
            NotReadyError: TorchServe does not answer as it should.
        """
        return self._defaults.described()

    def index(self) -> dict[str, Any]:
        """The names of all models, as KServe lists them, and their versions.

        Raises:
            NotReadyError: TorchServe does not answer as it should.
        """
        defaults = [(version["modelName"], version["modelVersion"]) for version in self.defaults()]
        return {
            "models": [name for name, _ in defaults],
            "versions": [_entry(version, defaults) for version in self._all.described()],
        }

    def version(self, name: str, version: str) -> dict[str, Any]:
        """
        Raises:
            NotReadyError: TorchServe does not answer as it should.
            UnknownModelError: there is no such version.
        """
        try:
            path = f"/models/{quote(name, safe='')}/{quote(version, safe='')}"
            if version == "all":  # TorchServe's word for every version
                raise UnknownModelError(f"There is no version {version} of a model {name}.")
            [found] = api.get(self._management, path, ANSWER_S)
            _states(found)
        except api.AnswerError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                raise UnknownModelError(f"There is no version {version} of a model {name}.") from error
            raise NotReadyError(_problem(error)) from error
        except api.ERRORS as error:
            raise NotReadyError(_problem(error)) from error
        described: dict[str, Any] = found
        return described


def _entry(version: Mapping[str, Any], defaults: Container[tuple[str, str]]) -> dict[str, Any]:
    """A version in the list of the models, in the words of Triton's repository index."""
    name, number = version["modelName"], version["modelVersion"]
    entry = {"name": name, "version": number, "default": (name, number) in defaults}
    try:
        check_version(version)
    except NotReadyError as error:
        return entry | {"state": "UNAVAILABLE", "reason": str(error)}
    return entry | {"state": "READY"}


def _problem(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"TorchServe has not answered within {ANSWER_S} s."
    if isinstance(error, OSError):
        return "TorchServe does not answer: it is starting, or it has ended."
    return f"TorchServe did not answer as it should: {error or type(error).__name__}"


class _Answers:
    """What is answered to a path."""

    def __init__(self, models: _Models, torchserve: Endpoints) -> None:
        self._models = models
        self._inference = torchserve.inference
        self.draining = False

    def answer(self, path: str) -> tuple[HTTPStatus, dict[str, Any]]:
        """The status and the JSON for a request of `path`."""
        try:
            return HTTPStatus.OK, self._content([unquote(part) for part in path.partition("?")[0].split("/")[1:]])
        except NotReadyError as error:
            return _error(path, HTTPStatus.SERVICE_UNAVAILABLE, error)
        except UnknownModelError as error:
            return _error(path, HTTPStatus.NOT_FOUND, error)

    def _content(self, parts: list[str]) -> dict[str, Any]:
        """
        Raises:
            NotReadyError: what was asked for is not ready.
            UnknownModelError: there is no such model, version or path.
        """
        match parts:
            case ["ready"]:
                self._check()
                return {"status": "Ready"}
            case ["v2"] | ["v2", ""]:
                return {"name": NAME, "version": VERSION, "extensions": list(EXTENSIONS)}
            case ["v2", "health", "live"]:
                self._check_live()
                return {"live": True}
            case ["v2", "health", "ready"]:
                self._check()
                return {"ready": True}
            case ["v2", "models", *rest]:
                return self._model_content(rest)
        raise UnknownModelError("There is nothing at this address.")

    def _model_content(self, parts: list[str]) -> dict[str, Any]:
        """As `_content`, for the paths under `/v2/models`."""
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

    def _check_live(self) -> None:
        try:
            api.get(self._inference, "/ping", ANSWER_S)
        except api.ERRORS as error:
            raise NotReadyError(_problem(error)) from error

    def _default(self, name: str) -> dict[str, Any]:
        for version in self._models.defaults():
            if version["modelName"] == name:
                return version
        raise UnknownModelError(f"There is no model {name}.")


def _error(path: str, status: HTTPStatus, error: Exception) -> tuple[HTTPStatus, dict[str, Any]]:
    """In the form of the Open Inference Protocol for its paths, in TorchServe's form for others."""
    if path.startswith("/v2"):
        return status, {"error": str(error)}
    return status, {"code": status.value, "type": type(error).__name__, "message": str(error)}


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar[_Answers]
    timeout = ANSWER_S
    """Of the socket: the door sends a request in one piece."""

    def do_GET(self) -> None:
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
        return NAME

    def log_message(self, *_: object) -> None:
        """Nothing: there is a probe every few seconds."""


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), OSError):  # the door has gone, or never sent its request
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _SocketServer(_TcpServer):
    address_family = socket.AF_UNIX
    allow_reuse_address = False


def _server(address: Endpoint, handler: type[_Handler]) -> _TcpServer:
    if isinstance(address, SocketAddress):
        return _SocketServer(str(address.path), handler)  # type: ignore[arg-type]  # a path is this family's address
    return _TcpServer((address.host, address.port), handler)
