"""A model's versions and their workers, through TorchServe's management API.

TorchServe's documentation describes the API in `management_api.md`, except for two facts. A worker that is loading has
the status `UNLOADING`. A registration with `synchronous=true`, the default, blocks a thread of the server for seconds,
and with it all requests on this thread. Therefore this client sends `synchronous=false`, and polls.
"""

import re
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any

from sentiment.address import quoted
from sentiment.errors import (
    ClientError,
    InputError,
    NotReadyError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from sentiment.fields import field, is_unicode, unicode
from sentiment.inference import MODEL
from sentiment.transport import RETRIES, Client, Transport, shown

URL = "http://127.0.0.1:8081"
READ_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 120.0
POLL_S = 0.1
CHANGE_TIMEOUT_S = 5.0
"""How long a change may take to take effect, if its request failed or was answered with status 500."""
MAX_WORKERS = 1024
"""Maximum number of workers of a version. TorchServe itself has no limit, and overflows at 32 bits."""
WORKERS_PER_CORE = 2
"""Useful maximum of workers for each core: each worker computes on one core."""
MAX_WORKERS_OF_UNKNOWN = 128
"""Useful maximum of workers of a server that does not report its cores."""
RESERVED_BYTES = 951_000_000
"""Memory for Java, HAProxy and the server beside the workers: the server reserves the same amount."""
PAGE_MODELS = 100
MAX_DIGITS = 18
LOAD_RETRIES = 2
"""Number of worker restarts by TorchServe after which a version counts as one that does not load."""


@dataclass(frozen=True)
class Settings:
    """TorchServe's settings for one version. The defaults are those of `config.properties`."""

    workers: int = 1
    batch_size: int = 16
    max_batch_delay_ms: int = 1
    response_timeout_s: int = 15


@dataclass(frozen=True)
class Machine:
    """The resources of a server's workers, as reported by a worker."""

    cores: int
    """Number of cores that all workers may use together."""

    memory_bytes: int
    """Memory that all workers may use together."""

    worker_bytes: int
    """Resident memory of the worker that reports it."""

    def most_workers(self, taken_bytes: int) -> int:
        """Maximum number of workers of a version that are useful and fit into the memory.

        Args:
            taken_bytes: memory of the workers of other versions and models.
        """
        fit = (self.memory_bytes - RESERVED_BYTES - taken_bytes) // max(self.worker_bytes, 1)
        return max(1, min(self.cores * WORKERS_PER_CORE, fit))


@dataclass(frozen=True)
class Version:
    """One version of the model."""

    name: str
    """The version's name, such as `1.0`."""

    archive: str
    """The file in the server's model store that the version was registered from."""

    default: bool
    settings: Settings
    pending_requests: int
    """Number of requests in the queue. TorchServe does not report the requests that workers process."""

    worker_states: tuple[str, ...]
    worker_pids: frozenset[int]
    first_worker: int | None
    """The lowest number of a worker; None without workers. TorchServe numbers the workers of all versions in one
    sequence, and a restarted worker keeps its number. Therefore these numbers show the order of the registrations."""

    @property
    def ready(self) -> bool:
        """Whether the version has workers, and all of them are ready."""
        return len(self.worker_states) == self.settings.workers > 0 and set(self.worker_states) == {"READY"}

    def older_than(self, other: "Version") -> bool:
        """Whether this version was registered before the other; False if one of them has no worker."""
        return None not in (self.first_worker, other.first_worker) and self.first_worker < other.first_worker  # type: ignore[operator]

    def workers(self) -> str:
        """The workers by state, such as `2 READY, 1 UNLOADING`."""
        return ", ".join(f"{n} {state}" for state, n in sorted(Counter(self.worker_states).items())) or "none"


class ManagementClient(Client):
    """Client of TorchServe's management API, for one model. It can be shared by threads.

    Its methods raise a `ClientError` if a request fails; `Transport.send` lists the subclasses.
    """

    def __init__(
        self,
        url: str = URL,
        model: str = MODEL,
        *,
        token: str | None = None,
        read_timeout_s: float = READ_TIMEOUT_S,
        retries: int = RETRIES,
    ) -> None:
        """Connect to no server yet.

        Args:
            url: the management address.
            model: the model's name.
            token: sent as `Authorization: Bearer`.
            read_timeout_s: timeout for a request with its whole reply, in seconds.
            retries: maximum number of retries after a 502, a 503 or a failed connection.

        Raises:
            InputError: the address, the model's name or the token is invalid.
        """
        self.model = model
        self._path = f"/models/{quoted(model)}"
        super().__init__(Transport(url, token=token, read_timeout_s=read_timeout_s, retries=retries))

    def versions(self) -> list[Version]:
        """All registered versions, in numeric order (2.0 before 10.0). Exactly one of them is the default.

        Raises:
            RefusedError: status 404: the model is not registered. The error names the registered models.
        """
        try:
            return self._versions(self._path)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            registered = ", ".join(self.models()) or "none"
            message = f"There is no model {self.model}. Registered: {registered}. Choose one with --model."
            raise RefusedError(error.status, error.type, message) from None

    def _versions(self, path: str) -> list[Version]:
        default = field(self._list(path)[0], "modelVersion", str)
        versions = [_version(value, default) for value in self._list(f"{path}/all")]
        if [version.name for version in versions].count(default) != 1:
            raise UnexpectedAnswerError(f"The default version {default} is not among the registered versions.")
        return sorted(versions, key=lambda version: _by_numbers(version.name))

    def is_registered(self) -> bool:
        """Whether any version of the model is registered."""
        return self.model in self.models()

    def models(self) -> list[str]:
        """Names of all registered models, in alphabetical order."""
        names: list[str] = []
        start: str | None = "0"
        while start is not None:
            parameters: dict[str, str | int] = {"limit": PAGE_MODELS, "next_page_token": start}
            page = self._transport.send("GET", "/models", parameters=parameters).value
            names += [
                unicode(field(model, "modelName", str), "a model's name") for model in field(page, "models", list)
            ]
            following = page.get("nextPageToken")
            # A token that does not increase would make this loop endless.
            start = (
                following
                if isinstance(following, str) and following.isdecimal() and int(following) > int(start)
                else None
            )
        return sorted(names)

    def default(self) -> Version:
        """The default version."""
        return next(version for version in self.versions() if version.default)

    def version(self, name: str) -> Version:
        """One version, by its name.

        Raises:
            RefusedError: status 404: the version is not registered.
        """
        for version in self.versions():
            if version.name == name:
                return version
        raise RefusedError(HTTPStatus.NOT_FOUND, "ModelVersionNotFoundException", f"No version {name} of {self.model}.")

    def card(self) -> Mapping[str, Any]:
        """The card of the default version: the model's origin and its metrics. A worker must be ready to answer."""
        return self._card(self.model)

    def _card(self, model: str) -> Mapping[str, Any]:
        described = self._list(f"/models/{quoted(model)}?customized=true")[0]
        card = described.get("customizedMetadata") if isinstance(described, dict) else None
        return card if isinstance(card, dict) else {}

    def _machine(self, model: str, versions: Sequence[Version]) -> Machine | None:
        """The resources that a worker of the model reports; None if no worker is ready, or if it reports none.

        Workers get the figures from `python -m server`. They report none if TorchServe was started without it, or if
        the archive was built by an older release.
        """
        if not any(version.default and "READY" in version.worker_states for version in versions):
            return None
        try:
            machine = self._card(model).get("machine")
            return Machine(*(field(machine, name, int) for name in ("cores", "memory_bytes", "worker_bytes")))
        except (UnexpectedAnswerError, RefusedError, UnreachableError):
            return None

    def check_workers(self, workers: int, version: str | None = None) -> None:
        """Check that a number of workers is useful on the server's machine, and fits into its memory.

        Args:
            workers: number of workers of the version.
            version: the version to scale; None for a version that is not registered yet.

        Raises:
            InputError: the number is too large for the server's cores, or for its memory beside the workers of all
                other versions and models.
        """
        registered: dict[str, list[Version]] = {}
        for model in self.models():
            with suppress(RefusedError):  # the model may be unregistered at the same time
                registered[model] = self._versions(f"/models/{quoted(model)}")
        machines = {model: self._machine(model, versions) for model, versions in registered.items()}
        known = [machine for machine in machines.values() if machine is not None]
        # Estimate the memory of a new model's worker by the largest worker of another model.
        machine = machines.get(self.model) or max(known, key=lambda machine: machine.worker_bytes, default=None)
        most, resources = MAX_WORKERS_OF_UNKNOWN, ""
        if machine is not None:
            worker_bytes = {model: (own or machine).worker_bytes for model, own in machines.items()}
            others = {
                (model, other.name): max(other.settings.workers, len(other.worker_states))
                for model, versions in registered.items()
                for other in versions
                if (model, other.name) != (self.model, version)
            }
            taken_bytes = sum(count * worker_bytes[model] for (model, _), count in others.items())
            most = machine.most_workers(taken_bytes)
            resources = (
                f" The server has {machine.cores} cores and {machine.memory_bytes / 2**30:.1f} GiB of memory; a worker "
                f"takes {machine.worker_bytes / 2**20:.0f} MiB."
            )
            if taken_bytes:
                named = ", ".join(f"{model} {name}: {count}" for (model, name), count in others.items() if count)
                resources += f" The workers of other versions ({named}) take {taken_bytes / 2**20:.0f} MiB."
        if workers > most:
            raise InputError(
                f"{workers} workers are too many: the useful maximum here is {most}, and one for each core is best."
                f"{resources} Use --force to start them anyway."
            )

    def scale(self, workers: int, version: str) -> None:
        """Set a version's number of workers, and wait until they are ready.

        If the number decreases, TorchServe ends workers at once. HAProxy sends the requests that they process to the
        others; without HAProxy, they are answered with status 500.

        Raises:
            InputError: the number is not from 1 to `MAX_WORKERS`.
            NotReadyError: see `wait_until_ready`.
        """
        parameters: dict[str, str | int] = {
            "min_worker": whole_workers(workers),
            "max_worker": workers,
            "synchronous": "false",
        }
        with self._failure_ignored_if(lambda: self.version(version).settings.workers == workers):
            self._transport.send("PUT", self._version_path(version), parameters=parameters, repeat=False)
        self.wait_until_ready(version)

    def settings_for_a_new_model(self) -> Settings:
        """The settings for a model that is not registered yet.

        They are the settings of the default version of another model, if there is one.
        """
        for name in sorted(self.models(), key=lambda name: name != MODEL):
            with suppress(RefusedError):  # the model may be unregistered at the same time
                versions = self._versions(f"/models/{quoted(name)}")
                return next(version.settings for version in versions if version.default)
        return Settings()

    def register(self, archive: str, settings: Settings) -> str:
        """Register an archive of the server's model store; returns its version, whose workers are starting.

        The first version of a model becomes its default.

        Args:
            archive: the archive's file name in the model store.
            settings: the version's settings.

        Raises:
            InputError: the archive's name is invalid, or the number of workers is not from 1 to `MAX_WORKERS`.
            RefusedError: the server's registration is disabled; the archive is missing or broken; or its version is
                already registered (status 409).
        """
        if not archive or not is_unicode(archive):
            raise InputError(f"{archive!r} cannot be an archive's name.")
        before = {version.name for version in self.versions()} if self.is_registered() else set()
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
            with self._failure_ignored_if(lambda: self.added(archive, before) is not None):
                self._transport.send("POST", "/models", parameters=parameters, repeat=False)
        except RefusedError as error:
            hint = _HINTS.get(error.status, "")
            if error.status == HTTPStatus.CONFLICT:
                name = shlex.quote(archive_name(archive))
                hint += (
                    f" If {archive} is another model, register it under another name: "
                    f"`sentiment register {shlex.quote(archive)} --name {name}`."
                )
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {hint}".strip()) from error
        added = self.added(archive, before)
        if added is None:
            raise UnexpectedAnswerError(f"The server accepted {archive}, but has no new version of {self.model}.")
        return added

    def added(self, archive: str, before: Set[str]) -> str | None:
        """The new version from `archive`, which is not among `before`; None if there is none yet."""
        if not self.is_registered():
            return None
        return next((new.name for new in self.versions() if new.archive == archive and new.name not in before), None)

    def wait_until_ready(self, version: str, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until all workers of a version are ready.

        Raises:
            NotReadyError: the workers end while they load, or not all of them are ready after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        pids: set[int] = set()
        while not (described := self.version(version)).ready:
            pids |= described.worker_pids
            if len(pids) > described.settings.workers + LOAD_RETRIES:
                raise NotReadyError(f"Version {version} does not load: its workers end. See the server's log.")
            if time.monotonic() > deadline:
                raise NotReadyError(f"Version {version} is not ready after {timeout_s:g} s: {described.workers()}.")
            time.sleep(POLL_S)

    def set_default(self, version: str) -> None:
        """Make a version the default, which answers `/predictions/NAME`. The old one answers its queued requests."""
        with self._failure_ignored_if(lambda: self.default().name == version):
            self._transport.send("PUT", f"{self._version_path(version)}/set-default", repeat=False)

    def unregister(self, version: str) -> None:
        """Remove a version at once. Its queued requests and those that its workers process are lost.

        Raises:
            RefusedError: status 403: the version is the default.
        """
        with self._failure_ignored_if(
            lambda: not self.is_registered() or version not in {other.name for other in self.versions()}
        ):
            self._transport.send("DELETE", self._version_path(version), repeat=False)

    @contextmanager
    def _failure_ignored_if(self, done: Callable[[], bool]) -> Iterator[None]:
        """Ignore the failure of a change's request if the change takes effect.

        A port-forward or a load balancer may drop the connection while the server continues, and TorchServe answers
        with status 500 if only the end of a worker failed. Therefore the server's state decides.

        Args:
            done: whether the change has taken effect.
        """
        try:
            yield
        except (UnreachableError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.status != HTTPStatus.INTERNAL_SERVER_ERROR:
                raise
            deadline = time.monotonic() + (CHANGE_TIMEOUT_S if isinstance(error, UnreachableError) else 0)
            while not _is_done(done):
                if time.monotonic() > deadline:
                    raise
                time.sleep(POLL_S)

    def _version_path(self, version: str) -> str:
        return f"{self._path}/{quoted(version)}"

    def _list(self, path: str) -> list[Any]:
        value = self._transport.send("GET", path).value
        if not isinstance(value, list) or not value:
            raise UnexpectedAnswerError(f"Expected a list of versions of {self.model}, not {shown(value)}.")
        return value


_HINTS: Mapping[int, str] = {
    HTTPStatus.NOT_FOUND: "Use the archive's file name in the server's model store.",
    HTTPStatus.METHOD_NOT_ALLOWED: "Registration is disabled. Set enable_model_api=true in the server's "
    "config.properties, and restart the server.",
    HTTPStatus.CONFLICT: "Set an archive's version with `python -m training archive --version`. A file that is not an "
    "archive counts as version 1.0.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The archive may be broken. See the server's log.",
}


def archive_name(archive: str) -> str:
    """Default name of the model in an archive."""
    return PurePosixPath(archive).name.removesuffix(".mar")


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Sort key of a version's name, with digits as numbers. The name may be any text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def whole_workers(number: int) -> int:
    """A version's number of workers.

    Raises:
        InputError: the number is not from 1 to `MAX_WORKERS`.
    """
    if not 1 <= number <= MAX_WORKERS:
        raise InputError(
            f"{number} workers: expected 1 to {MAX_WORKERS}. One for each core is best. For more than {MAX_WORKERS}, "
            "start more servers."
        )
    return number


def _whole(digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS):
        raise UnexpectedAnswerError(f"Expected a worker's number, not {shown(digits)}.")
    return int(digits)


def _is_done(done: Callable[[], bool]) -> bool:
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
        first_worker=min((_whole(field(worker, "id", str)) for worker in workers), default=None),
    )
