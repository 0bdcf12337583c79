"""A simulation of TorchServe's two APIs without a model: the parts that rollouts need, with failures on demand."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.client.scripted import Reply, Request, Scripted, error, scripted

ARCHIVES = {"sentiment.mar": "1.0", "sentiment-2.mar": "2.0", "sentiment-3.mar": "3.0"}


@dataclass
class Registered:
    archive: str
    workers: int
    batch_size: int = 16
    max_batch_delay: int = 1
    response_timeout: int = 120
    polls_until_ready: int = 0
    pending: int = 0
    started: int = 0
    """Position in the order of the registrations; 0 for a version from the server's start."""


@dataclass
class FakeTorchServe:
    """A server with the model `sentiment`, version 1.0. It logs requests without their queries, as `GET /models`."""

    versions: dict[str, Registered] = field(default_factory=lambda: {"1.0": Registered("sentiment.mar", 2)})
    default: str = "1.0"
    polls_until_ready: int = 2
    """Number of polls after which a new version's workers are ready; -1 if the workers end again and again."""

    others: tuple[str, ...] = ()
    """Names of other models, each with three workers."""

    machine: dict[str, Any] = field(default_factory=dict)
    """The part of the card with the workers' resources, `{"machine": {...}}`; empty if they report none."""

    machine_of_others: dict[str, Any] = field(default_factory=dict)
    """The same part of the other models' cards."""

    label: Callable[[str, str], str] = lambda version, text: "negative"
    answer: Callable[[str, list[str]], list[Any]] | None = None
    """Function from a version and texts to predictions; replaces `label`."""

    before: Callable[[str], Reply | None] = lambda line: None
    """Function that is called before each request. If it returns a reply, this reply is sent."""

    log: list[str] = field(default_factory=list)
    pid: int = 100

    def __call__(self, request: Request) -> Reply:
        parts = urlsplit(request.path)
        line = f"{request.method} {parts.path}"
        self.log.append(line)
        parameters = dict(parse_qsl(parts.query))
        return self.before(line) or self._answer(request, parts.path.strip("/").split("/"), parameters)

    def _answer(  # noqa: PLR0911, PLR0912  # one for each kind of request
        self, request: Request, path: list[str], parameters: dict[str, str]
    ) -> Reply:
        match request.method, *path:
            case "GET", "ping":
                return _json({"status": "Healthy"})
            case "POST", "predictions", "sentiment", *version:
                return self._predict(request, *version)
            case "GET", "v2", "models":
                return _json({"models": ["sentiment", *self.others]})
            case "GET", "models":
                names = ["sentiment", *self.others]
                return _json({"models": [{"modelName": name, "modelUrl": f"{name}.mar"} for name in names]})
            case "POST", "predictions", name, *_:
                return error(404, "ModelNotFoundException", f"Model not found: {name}")
            case "GET", "models", "sentiment" if "customized" in parameters:
                card: dict[str, Any] = {"notes": "A model.\n\nMore.", "exported": {"commit": "c" * 40}} | self.machine
                return _json([self._described(self.default) | {"customizedMetadata": card}])
            case "GET", "models", "sentiment":
                return _json([self._described(self.default)])
            case "GET", "models", name, *_ if name in self.others:
                described = _description("1.0", Registered(f"{name}.mar", 3), "READY", self.pid)
                return _json([described | {"customizedMetadata": self.machine_of_others}])
            case "GET", "models", "sentiment", "all":
                return _json([self._described(version) for version in self.versions])
            case "POST", "models":
                return self._register(parameters)
            case "PUT", "models", "sentiment", version, "set-default" if version in self.versions:
                self.default = version
                return _json({"status": "done"})
            case "PUT", "models", "sentiment", version if version in self.versions:
                self.versions[version].workers = int(parameters["min_worker"])
                return _json({"status": "done"})
            case "DELETE", "models", "sentiment", version if version in self.versions:
                if version == self.default:
                    return error(403, "InvalidModelVersionException")
                del self.versions[version]
                return _json({"status": "done"})
        return error(404, "ResourceNotFoundException")

    def _described(self, name: str) -> dict[str, Any]:
        version = self.versions[name]
        ready = version.polls_until_ready == 0
        if version.polls_until_ready < 0:
            self.pid += 1
        else:
            version.polls_until_ready -= not ready
        if version.pending:
            version.pending -= 1
        return _description(name, version, "READY" if ready else "UNLOADING", self.pid)

    def _register(self, parameters: dict[str, str]) -> Reply:
        assert parameters["synchronous"] == "false"
        archive = parameters["url"]
        if archive not in ARCHIVES:
            return error(404, "ModelNotFoundException", f"Model not found at: {archive}")
        version = ARCHIVES[archive]
        if version in self.versions:
            return error(
                409, "ConflictStatusException", f"Model version {version} is already registered for model sentiment"
            )
        self.versions[version] = Registered(
            archive,
            workers=int(parameters["initial_workers"]),
            batch_size=int(parameters["batch_size"]),
            max_batch_delay=int(parameters["max_batch_delay"]),
            response_timeout=int(parameters["response_timeout"]),
            polls_until_ready=self.polls_until_ready,
            started=1 + max(version.started for version in self.versions.values()),
        )
        return Reply(202, b'{"status": "Processing worker updates..."}')

    def _predict(self, request: Request, version: str | None = None) -> Reply:
        version = version or self.default
        if version not in self.versions:
            return error(404, "ModelVersionNotFoundException")
        asked = request.json
        texts = asked if isinstance(asked, list) else [asked["text"]]
        predictions = (self.answer or self._labelled)(version, texts)
        body = predictions if isinstance(asked, list) else predictions[0]
        return Reply(200, json.dumps(body).encode(), {"X-Model-Version": version})

    def _labelled(self, version: str, texts: list[str]) -> list[Any]:
        labels = [self.label(version, text) for text in texts]
        scores = {"negative": 0.0, "positive": 0.0, "other": 0.25}
        return [{"label": label, "score": 0.75, "scores": scores | {label: 0.75}} for label in labels]


def _description(name: str, version: Registered, status: str, pid: int) -> dict[str, Any]:
    return {
        "modelVersion": name,
        "modelUrl": version.archive,
        "minWorkers": version.workers,
        "batchSize": version.batch_size,
        "maxBatchDelay": version.max_batch_delay,
        "responseTimeout": version.response_timeout,
        "jobQueueStatus": {"pendingRequests": version.pending},
        "workers": [
            {"status": status, "pid": pid + index, "id": str(9000 + 100 * version.started + index)}
            for index in range(version.workers)
        ],
        "loadedAtStartup": True,  # TorchServe reports it for the model, not for the version
    }


def _json(value: object) -> Reply:
    return Reply(200, json.dumps(value).encode())


@contextmanager
def serving(fake: FakeTorchServe) -> Iterator[Scripted]:
    """Serve both APIs at one address."""
    with scripted(fake) as server:
        yield server
