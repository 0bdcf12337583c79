"""A model's versions and their workers, through TorchServe's management API.

Described in TorchServe's documentation, `management_api.md`. What it leaves out: a worker that still loads is called
`UNLOADING`; `synchronous=true`, the default when a version is registered, holds up every request that shares a thread
with this one until the workers are there, for seconds. So this client asks for `false`, and waits itself.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from client.errors import NotReadyError, RefusedError, UnexpectedAnswerError
from client.inference import MODEL
from client.transport import Client, Transport

URL = "http://127.0.0.1:8081"
READ_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 120.0
POLL_S = 0.1
LOAD_RETRIES = 2
"""How often TorchServe may start a worker anew before its version counts as one that does not load."""


@dataclass(frozen=True)
class Settings:
    """How TorchServe runs a version."""

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
    """The file in the server's model store that it came from."""

    default: bool
    settings: Settings
    pending_requests: int
    """That wait for a worker. What the workers hold is not told."""

    worker_states: tuple[str, ...]
    worker_pids: frozenset[int]

    @property
    def ready(self) -> bool:
        """Whether all its workers answer, and it has any."""
        return len(self.worker_states) == self.settings.workers > 0 and set(self.worker_states) == {"READY"}

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
        self._path = f"/models/{quote(model, safe='')}"
        super().__init__(Transport(url, token=token, read_timeout_s=read_timeout_s))

    def versions(self) -> list[Version]:
        """All versions that are registered, 2.0 before 10.0; exactly one of them is the default.

        Raises:
            RefusedError: with status 404, there is no such model.
        """
        [default] = self._list(self._path)
        described = self._list(f"{self._path}/all")
        found = [_version(value, value["modelVersion"] == default["modelVersion"]) for value in described]
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
        """The default version's card: where the model comes from, and how good it is. A worker answers it."""
        [described] = self._list(f"{self._path}?customized=true")
        card: Mapping[str, Any] = described.get("customizedMetadata") or {}
        return card

    def scale(self, workers: int, version: str) -> None:
        """Set a version's number of workers, and wait until they answer.

        Where they become fewer, TorchServe ends them at once: what they were at work on is answered 500.

        Raises:
            NotReadyError: see `wait_until_ready`.
        """
        parameters: dict[str, str | int] = {"min_worker": workers, "max_worker": workers, "synchronous": "false"}
        self._transport.send("PUT", self._version_path(version), parameters=parameters, repeat=False)
        self.wait_until_ready(version)

    def register(self, archive: str, settings: Settings) -> str:
        """Register an archive of the server's model store; returns its version, whose workers are then started.

        Raises:
            RefusedError: the server lets nobody register; no such archive; its version is registered already.
        """
        before = {version.name for version in self.versions()}
        parameters: dict[str, str | int] = {
            "url": archive,
            "model_name": self.model,
            "initial_workers": settings.workers,
            "synchronous": "false",
            "batch_size": settings.batch_size,
            "max_batch_delay": settings.max_batch_delay_ms,
            "response_timeout": settings.response_timeout_s,
        }
        try:
            self._transport.send("POST", "/models", parameters=parameters, repeat=False)
        except RefusedError as error:
            way_out = _WAYS_OUT.get(error.status, "")
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {way_out}".strip()) from error
        added = self.added(archive, before)
        if added is None:
            raise UnexpectedAnswerError(f"The server took {archive}, but has no new version of {self.model}.")
        return added

    def added(self, archive: str, before: Set[str]) -> str | None:
        """The version that came from `archive` and is none of those before; None if there is none yet."""
        return next((new.name for new in self.versions() if new.archive == archive and new.name not in before), None)

    def wait_until_ready(self, version: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when all of a version's workers answer.

        Raises:
            NotReadyError: they end while they load, or not all answer in time.
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
        """Have a version answer `/predictions/NAME`. Requests that wait for the one before are still answered by it."""
        self._transport.send("PUT", f"{self._version_path(version)}/set-default", repeat=False)

    def unregister(self, version: str) -> None:
        """Remove a version at once: what waits for it, or is with its workers, is lost.

        Raises:
            RefusedError: with status 403, it is the default.
        """
        self._transport.send("DELETE", self._version_path(version), repeat=False)

    def _version_path(self, version: str) -> str:
        return f"{self._path}/{quote(version, safe='')}"

    def _list(self, path: str) -> list[Any]:
        value = self._transport.send("GET", path).value
        if not isinstance(value, list) or not value:
            raise UnexpectedAnswerError(f"Expected descriptions of {self.model}, not {str(value)[:100]}.")
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
    """A key to sort by: digits as the numbers that they are. A version may have any name."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _version(value: Mapping[str, Any], default: bool) -> Version:
    try:
        workers = value["workers"]
        return Version(
            name=value["modelVersion"],
            archive=value["modelUrl"],
            default=default,
            settings=Settings(
                workers=value["minWorkers"],
                batch_size=value["batchSize"],
                max_batch_delay_ms=value["maxBatchDelay"],
                response_timeout_s=value["responseTimeout"],
            ),
            pending_requests=value["jobQueueStatus"]["pendingRequests"],
            worker_states=tuple(worker["status"] for worker in workers),
            worker_pids=frozenset(worker["pid"] for worker in workers if worker["pid"] > 0),
        )
    except (KeyError, TypeError) as error:
        raise UnexpectedAnswerError(f"A version's description lacks {error}: {str(value)[:100]}.") from error
