"""A model's versions and their workers, through TorchServe's management API.

TorchServe's documentation describes the API in `management_api.md`. It leaves out two facts. A worker that still loads
has the status `UNLOADING`. And `synchronous=true`, the default when a version is registered, blocks a thread of the
server for seconds, with every request that shares it. So this client sends `false`, and polls.
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
"""How long a change whose request got no answer, or status 500, may still take effect."""
MAX_WORKERS = 1024
"""Of a version. TorchServe starts as many processes as it is asked for, and counts in 32 bits."""
WORKERS_PER_CORE = 2
"""What `scale` takes for the most that is of use: each worker computes on one core."""
MAX_WORKERS_OF_UNKNOWN = 128
"""The same for a server that does not say how many cores it has."""
SPARED_BYTES = 951_000_000
"""The most memory that Java, HAProxy and the server take beside the workers, as the server itself reckons."""
PAGE_MODELS = 100
MAX_DIGITS = 19
LOAD_RETRIES = 2
"""How often TorchServe may restart a worker before this client takes its version for one that does not load."""


@dataclass(frozen=True)
class Settings:
    """TorchServe's settings for one version. The defaults are those of `config.properties`."""

    workers: int = 1
    batch_size: int = 16
    max_batch_delay_ms: int = 1
    response_timeout_s: int = 15


@dataclass(frozen=True)
class Machine:
    """What a server's workers may use, as one of them reports it."""

    cores: int
    memory_bytes: int
    worker_bytes: int
    """Resident memory of a worker of the model that reports it."""

    def most_workers(self, taken_bytes: int) -> int:
        """The number of workers of a version beyond which more are of no use, or do not fit into the memory.

        Args:
            taken_bytes: the memory of the workers of other versions and models.
        """
        fit = (self.memory_bytes - SPARED_BYTES - taken_bytes) // max(self.worker_bytes, 1)
        return max(1, min(self.cores * WORKERS_PER_CORE, fit))


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
    first_worker: int | None
    """The lowest number of a worker; None without workers. TorchServe counts the workers of all versions together, and
    a worker that is started anew keeps its number: so these numbers have the order in which versions were registered.
    """

    @property
    def ready(self) -> bool:
        """Whether it has workers, and all of them are ready."""
        return len(self.worker_states) == self.settings.workers > 0 and set(self.worker_states) == {"READY"}

    def older_than(self, other: "Version") -> bool:
        """Whether this version was registered before the other."""
        return None not in (self.first_worker, other.first_worker) and self.first_worker < other.first_worker  # type: ignore[operator]

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
        retries: int = RETRIES,
    ) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self._path = f"/models/{quoted(model)}"
        super().__init__(Transport(url, token=token, read_timeout_s=read_timeout_s, retries=retries))

    def versions(self) -> list[Version]:
        """All registered versions, 2.0 before 10.0. Exactly one of them is the default.

        Raises:
            RefusedError: with status 404, there is no such model. The error says which there are.
        """
        try:
            return self._versions(self._path)
        except RefusedError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            registered = ", ".join(self.models()) or "none"
            message = f"There is no model {self.model}. Registered: {registered}. Name one by --model."
            raise RefusedError(error.status, error.type, message) from None

    def _versions(self, path: str) -> list[Version]:
        default = field(self._list(path)[0], "modelVersion", str)
        found = [_version(value, default) for value in self._list(f"{path}/all")]
        if [version.name for version in found].count(default) != 1:
            raise UnexpectedAnswerError(f"The default version {default} is not one of those that are registered.")
        return sorted(found, key=lambda version: _by_numbers(version.name))

    def is_registered(self) -> bool:
        """Whether the server has this model, in any version."""
        return self.model in self.models()

    def models(self) -> list[str]:
        """The names of all models that are registered, in the order of the alphabet."""
        names: list[str] = []
        start: str | None = "0"
        while start is not None:
            parameters: dict[str, str | int] = {"limit": PAGE_MODELS, "next_page_token": start}
            page = self._transport.send("GET", "/models", parameters=parameters).value
            names += [
                unicode(field(model, "modelName", str), "a model's name") for model in field(page, "models", list)
            ]
            following = page.get("nextPageToken")
            # A token that does not lead on would never end.
            start = (
                following
                if isinstance(following, str) and following.isdecimal() and int(following) > int(start)
                else None
            )
        return sorted(names)

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
        return self._card(self.model)

    def _card(self, model: str) -> Mapping[str, Any]:
        described = self._list(f"/models/{quoted(model)}?customized=true")[0]
        card = described.get("customizedMetadata") if isinstance(described, dict) else None
        return card if isinstance(card, dict) else {}

    def _machine(self, model: str, versions: Sequence[Version]) -> Machine | None:
        """What the workers may use; None if no worker of the model is ready to say it, or if they do not know.

        Workers know it from the server, which counts it; they do not if TorchServe was started by itself, or if their
        archive is older than this information.
        """
        if not any(version.default and "READY" in version.worker_states for version in versions):
            return None
        try:
            said = self._card(model).get("machine")
            return Machine(*(field(said, name, int) for name in ("cores", "memory_bytes", "worker_bytes")))
        except (UnexpectedAnswerError, RefusedError, UnreachableError):
            return None

    def check_workers(self, workers: int, version: str | None = None) -> None:
        """
        Args:
            version: which is to have so many workers; None for one that is not registered yet.

        Raises:
            InputError: so many workers are of no use on the server's machine, or do not fit into its memory beside the
                workers of all other versions and models.
        """
        registered: dict[str, list[Version]] = {}
        for model in self.models():
            with suppress(RefusedError):  # it may be unregistered meanwhile
                registered[model] = self._versions(f"/models/{quoted(model)}")
        machines = {model: self._machine(model, versions) for model, versions in registered.items()}
        known = [machine for machine in machines.values() if machine is not None]
        # A worker of a new model may take as much as the largest of the others.
        machine = machines.get(self.model) or max(known, key=lambda machine: machine.worker_bytes, default=None)
        most, has = MAX_WORKERS_OF_UNKNOWN, ""
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
            has = (
                f" The server has {machine.cores} cores and {machine.memory_bytes / 2**30:.1f} GiB, and a worker takes "
                f"{machine.worker_bytes / 2**20:.0f} MiB."
            )
            if taken_bytes:
                named = ", ".join(f"{model} {name}: {count}" for (model, name), count in others.items() if count)
                has += f" The workers of other versions ({named}) take {taken_bytes / 2**20:.0f} MiB."
        if workers > most:
            raise InputError(
                f"{workers} workers are more than {most}, the most that are of use here: one for each core is "
                f"best.{has} --force starts them all the same."
            )

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

    def settings_for_a_new_model(self) -> Settings:
        """The settings for a model that the server does not have yet: those of the default version of another model,
        which the server's configuration names, if there is one."""
        for name in sorted(self.models(), key=lambda name: name != MODEL):
            with suppress(RefusedError):  # it may be unregistered meanwhile
                versions = self._versions(f"/models/{quoted(name)}")
                return next(version.settings for version in versions if version.default)
        return Settings()

    def register(self, archive: str, settings: Settings) -> str:
        """Register an archive of the server's model store; returns its version, whose workers are then started.

        The model need not exist: then this is its first version, and its default.

        Raises:
            InputError: `archive` is not Unicode, or there are too many workers.
            RefusedError: the server lets nobody register; no such archive; its version is registered already, with
                status 409.
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
            with self._unless(lambda: self.added(archive, before) is not None):
                self._transport.send("POST", "/models", parameters=parameters, repeat=False)
        except RefusedError as error:
            way_out = _WAYS_OUT.get(error.status, "")
            if error.status == HTTPStatus.CONFLICT:
                name = shlex.quote(archive_name(archive))
                way_out += (
                    f" If {archive} is another model, give it a name of its own: "
                    f"`sentiment register {shlex.quote(archive)} --name {name}`."
                )
            raise RefusedError(error.status, error.type, f"{error.message.rstrip('.')}. {way_out}".strip()) from error
        added = self.added(archive, before)
        if added is None:
            raise UnexpectedAnswerError(f"The server took {archive}, but has no new version of {self.model}.")
        return added

    def added(self, archive: str, before: Set[str]) -> str | None:
        """The version that was registered from `archive` and is not among `before`; None if there is none yet."""
        if not self.is_registered():
            return None
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
        with self._unless(lambda: not self.is_registered() or version not in {left.name for left in self.versions()}):
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


def archive_name(archive: str) -> str:
    """The name of the model in an archive, if nobody gives it another."""
    return PurePosixPath(archive).name.removesuffix(".mar")


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


def _whole(digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) < MAX_DIGITS):
        raise UnexpectedAnswerError(f"Expected a worker's number, not {shown(digits)}.")
    return int(digits)


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
        first_worker=min((_whole(field(worker, "id", str)) for worker in workers), default=None),
    )
