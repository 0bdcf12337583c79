"""A model's versions and their workers, through TorchServe's management API.

TorchServe's documentation describes the API in `management_api.md`. It leaves out two facts. A worker that still loads
has the status `UNLOADING`. And `synchronous=true`, the default when a version is registered, blocks a thread of the
server for seconds, with every request that shares it. So this client sends `false`, and polls.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from client.address import quoted
from client.errors import ClientError, InputError, NotReadyError, RefusedError, UnexpectedAnswerError, UnreachableError
from client.fields import field, is_unicode
from client.inference import MODEL
from client.transport import Client, Transport, shown

URL = "http://127.0.0.1:8081"
READ_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 120.0
POLL_S = 0.1
CHANGE_TIMEOUT_S = 5.0
"""How long a change whose request got no answer, or status 500, may still take effect."""
MAX_WORKERS = 128
"""Of a version. TorchServe starts as many processes as it is asked for, and counts in 32 bits."""
LOAD_RETRIES = 2
"""How often TorchServe may restart a worker before this client takes its version for one that does not load."""


@dataclass(frozen=True)
class Settings:
    """TorchServe's settings for one version."""

    workers: int
    batch_size: int
    max_batch_delay_ms: int
    response_timeout_s: int


@dataclass(frozen=True)
class Version:
    """One version of the model."""

    name: str
    """`1.0`"""

    archive: str
    """The file in the server's model store from which it was registered."""

    default: bool
    settings: Settings
    pending_requests: int
    """Requests that wait for a worker. TorchServe does not report those that workers hold."""

    worker_states: tuple[str, ...]
    worker_pids: frozenset[int]
    worker_starts: tuple[str, ...]
    """When each worker was started: `2026-11-28T22:59:58.517Z`, so that the order of the strings is that of time."""

    @property
    def ready(self) -> bool:
        """Whether it has workers, and all of them are ready."""
        return len(self.worker_states) == self.settings.workers > 0 and set(self.worker_states) == {"READY"}

    def older_than(self, other: "Version") -> bool:
        """Whether all workers of this version were started before all workers of the other."""
        return max(self.worker_starts, default="~") < min(other.worker_starts, default="")

    def workers(self) -> str:
        """`2 READY, 1 UNLOADING`"""
        return ", ".join(f"{n} {state}" for state, n in sorted(Counter(self.worker_states).items())) or "none"


class ManagementClient(Client):
    """One model, as TorchServe's management API shows it. Its methods raise what `Transport.send` raises."""

    def __init__(
        self,
        url: str = URL,
        model: str = MODEL,
        *,
        token: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._path = f"/models/{quoted(model)}"
        super().__init__(Transport(url, token=token, read_timeout_s=read_timeout_s))

    def versions(self) -> list[Version]:
        """All registered versions, 2.0 before 10.0. Exactly one of them is the default.

        Raises:
            RefusedError: with status 404, there is no such model.
        """
        default = field(self._list(self._path)[0], "modelVersion", str)
        found = [_version(value, default) for value in self._list(f"{self._path}/all")]
        if [version.name for version in found].count(default) != 1:
            raise UnexpectedAnswerError(f"The default version {default} is not one of those that are registered.")
        return sorted(found, key=lambda version: _by_numbers(version.name))

    def default(self) -> Version:
        return next(version for version in self.versions() if version.default)

    def version(self, name: str) -> Version:
        """
        Raises:
            RefusedError: with status 404, there is no such version.
        """
        for version in self.versions():
            if version.name == name:
                return version
        raise RefusedError(HTTPStatus.NOT_FOUND, "ModelVersionNotFoundException", f"No version {name} of {self.model}.")

    def card(self) -> Mapping[str, Any]:
        """The default version's card: the model's origin and its metrics. A worker answers this request."""
        described = self._list(f"{self._path}?customized=true")[0]
        card = described.get("customizedMetadata") if isinstance(described, dict) else None
        return card if isinstance(card, dict) else {}

    def scale(self, workers: int, version: str) -> None:
        """Set a version's number of workers, and wait until they are ready.

        If the number decreases, TorchServe ends workers at once. Requests that they hold are answered 500.

        Raises:
            InputError: more than `MAX_WORKERS`.
            NotReadyError: see `wait_until_ready`.
        """
        parameters: dict[str, str | int] = {
            "min_worker": whole_workers(workers),
            "max_worker": workers,
            "synchronous": "false",
        }
        with self._unless(lambda: self.version(version).settings.workers == workers):
            self._transport.send("PUT", self._version_path(version), parameters=parameters, repeat=False)
        self.wait_until_ready(version)

    def register(self, archive: str, settings: Settings) -> str:
        """Register an archive of the server's model store; returns its version, whose workers are then started.

        Raises:
            InputError: `archive` is not Unicode, or there are too many workers.
            RefusedError: the server lets nobody register; no such archive; its version is registered already, with
                status 409.
        """
        if not archive or not is_unicode(archive):
            raise InputError(f"{archive!r} cannot be an archive's name.")
        before = {version.name for version in self.versions()}
        parameters: dict[str, str | int] = {
            "url": archive,
            "model_name": self.model,
            "initial_workers": whole_workers(settings.workers),
            "synchronous": "false",
            "batch_size": settings.batch_size,
            "max_batch_delay": settings.max_batch_delay_ms,
            "response_timeout": settings.response_timeout_s,
        }
        try:
            with self._unless(lambda: self.added(archive, before) is not None):
                self._transport.send("POST", "/models", parameters=parameters, repeat=False)
        except RefusedError as error:
            way_out = _WAYS_OUT.get(error.status, "")
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {way_out}".strip()) from error
        added = self.added(archive, before)
        if added is None:
            raise UnexpectedAnswerError(f"The server took {archive}, but has no new version of {self.model}.")
        return added

    def added(self, archive: str, before: Set[str]) -> str | None:
        """The version that was registered from `archive` and is not among `before`; None if there is none yet."""
        return next((new.name for new in self.versions() if new.archive == archive and new.name not in before), None)

    def wait_until_ready(self, version: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when all workers of a version are ready.

        Raises:
            NotReadyError: workers end while they load, or are not all ready in time.
        """
        deadline = time.monotonic() + timeout_s
        pids: set[int] = set()
        while not (described := self.version(version)).ready:
            pids |= described.worker_pids
            if len(pids) > described.settings.workers + LOAD_RETRIES:
                raise NotReadyError(f"Version {version} does not load: its workers end. The server's log says why.")
            if time.monotonic() > deadline:
                raise NotReadyError(f"Version {version} is not ready after {timeout_s:g} s: {described.workers()}.")
            time.sleep(POLL_S)

    def set_default(self, version: str) -> None:
        """Let a version answer `/predictions/NAME`. The version before still answers the requests that wait for it."""
        with self._unless(lambda: self.default().name == version):
            self._transport.send("PUT", f"{self._version_path(version)}/set-default", repeat=False)

    def unregister(self, version: str) -> None:
        """Remove a version at once. Requests that wait for it, or that its workers hold, are lost.

        Raises:
            RefusedError: with status 403, it is the default.
        """
        with self._unless(lambda: version not in {left.name for left in self.versions()}):
            self._transport.send("DELETE", self._version_path(version), repeat=False)

    @contextmanager
    def _unless(self, done: Callable[[], bool]) -> Iterator[None]:
        """Let a change's request fail if the change itself takes effect.

        A port-forward or a load balancer may drop the connection while the server goes on, and TorchServe answers
        500 where only the end of a worker failed. What the server then has decides.
        """
        try:
            yield
        except (UnreachableError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            deadline = time.monotonic() + (CHANGE_TIMEOUT_S if isinstance(error, UnreachableError) else 0)
            while not _holds(done):
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def _version_path(self, version: str) -> str:
        return f"{self._path}/{quoted(version)}"

    def _list(self, path: str) -> list[Any]:
        value = self._transport.send("GET", path).value
        if not isinstance(value, list) or not value:
            raise UnexpectedAnswerError(f"Expected descriptions of {self.model}, not {shown(value)}.")
        return value


_WAYS_OUT: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "Archives are named as they are in the server's model store.",
    HTTPStatus.METHOD_NOT_ALLOWED: "Registering is off: set enable_model_api=true in the server's config.properties, "
    "and start it anew.",
    HTTPStatus.CONFLICT: "An archive's version is set by `python -m training archive --version`; a file that is no "
    "archive counts as 1.0.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The archive may be broken; the server's log says more.",
}


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """A key to sort versions by, with digits as numbers. A version may have any name."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def whole_workers(number: int) -> int:
    """A version's number of workers.

    Raises:
        InputError: it is not from 1 to `MAX_WORKERS`.
    """
    if not 1 <= number <= MAX_WORKERS:
        raise InputError(
            f"{number} is not from 1 to {MAX_WORKERS} workers. One for each core is best; for more than {MAX_WORKERS}, "
            "start more servers."
        )
    return number


def _holds(done: Callable[[], bool]) -> bool:
    try:
        return done()
    except ClientError:
        return False


def _version(value: object, default: str) -> Version:
    workers = field(value, "workers", list)
    name = field(value, "modelVersion", str)
    return Version(
        name=name,
        archive=field(value, "modelUrl", str),
        default=name == default,
        settings=Settings(
            workers=field(value, "minWorkers", int),
            batch_size=field(value, "batchSize", int),
            max_batch_delay_ms=field(value, "maxBatchDelay", int),
            response_timeout_s=field(value, "responseTimeout", int),
        ),
        pending_requests=field(field(value, "jobQueueStatus", dict), "pendingRequests", int),
        worker_states=tuple(field(worker, "status", str) for worker in workers),
        worker_pids=frozenset(pid for worker in workers if (pid := field(worker, "pid", int)) > 0),
        worker_starts=tuple(field(worker, "startTime", str) for worker in workers),
    )
