"""A server's own folder for temporary files. The server removes it when it ends; if it is killed, the next one does."""

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from server.address import Address, Endpoint, SocketAddress

PREFIX = "fastai-sentiment-server-"
"""No one else's: what is left of the name is removed."""
NEW_S = 60
"""A folder younger than this may be one whose server has not locked it yet."""
VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""The environment variables that name a folder for temporary files, in the order of their weight (`tempfile`)."""
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")
"""Where else there may be room, in order."""
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path of a socket: unix(7), `sun_path` without the byte at its end."""
RANDOM_NAME = "12345678"
"""As `tempfile.mkdtemp` has them."""
SOCKET_NAME = "/.ts.sock.1234567"
"""The longest name of a socket in the folder: a worker's, which TorchServe counts up from `initial_worker_port`. The
door's is as long while HAProxy makes it: `/door.1234567.tmp`, with the process's number."""


class NoWorkspaceError(Exception):
    """Temporary files cannot be in any folder. The message gives the reason for each folder, and what is expected."""


class Workspace:
    """Made and locked on construction. A server that is killed cannot remove its own, so the next one that starts
    does: the lock (flock(2)) ends with the process that holds it.

    TorchServe unpacks archives and its native libraries there, and the workers' sockets are there. The first folder is
    taken that is writable, has room, has a path short enough for a socket, and is not mounted `noexec`. If there is
    none, the first writable folder with room is taken; the workers then listen on ports, without native libraries.
    """

    def __init__(self, environment: Mapping[str, str], needed_bytes: int) -> None:
        """
        Args:
            needed_bytes: what will be put there.

        Raises:
            NoWorkspaceError: there is no such folder.
        """
        self.avoided: list[str] = []
        """Each folder that was passed over, with the reason."""
        self._ports: set[int] = set()

        roots = list(_roots(environment))
        for root in roots:
            with contextlib.suppress(OSError):  # it cannot be listed; `_problem` says whether it can be used
                for folder in root.glob(f"{PREFIX}*"):
                    _remove_if_left(folder)
        for self.has_sockets in (True, False):
            for root in roots:
                problem = self._take(root, needed_bytes)
                if problem is None:
                    self._lock = os.open(self.path, os.O_RDONLY)
                    fcntl.flock(self._lock, fcntl.LOCK_EX)
                    return
                self.avoided += [f"{root}: {problem}"] if self.has_sockets else []
        raise NoWorkspaceError(
            f"No folder for temporary files: {'; '.join(self.avoided)}. Expected one that is writable and has "
            f"{_mb(needed_bytes)} free; TMPDIR names it."
        )

    def _take(self, root: Path, needed_bytes: int) -> str | None:
        """Make the folder in `root`; returns the reason if that is not possible."""
        problem = _problem(root, needed_bytes) or (_problem_of_sockets(root) if self.has_sockets else None)
        if problem is None:
            try:
                self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
            except OSError as error:
                problem = error.strerror
        return problem

    def address(self, name: str) -> Endpoint:
        """An address that this server's processes alone can use: a Unix socket in the folder, or, if sockets cannot be
        there, a free port of the loopback interface.

        Args:
            name: what listens there; at most 16 characters.
        """
        if self.has_sockets:
            return SocketAddress(self.path / name)
        port = _free_port(without=self._ports)
        self._ports.add(port)
        return Address(name, "127.0.0.1", port)

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _roots(environment: Mapping[str, str]) -> Iterator[Path]:
    """Folders for temporary files, the user's choice first."""
    chosen = [environment.get(name) for name in (*VARIABLES, "XDG_RUNTIME_DIR")]
    names = [*chosen[:-1], *OTHERS, chosen[-1]]
    yield from dict.fromkeys(Path(os.path.abspath(name)) for name in names if name)


def _problem(root: Path, needed_bytes: int) -> str | None:
    """The reason why temporary files cannot be in a folder; None if they can."""
    try:
        str(root).encode("utf-8")
        space = os.statvfs(root)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError as error:
        return error.strerror
    free_bytes = space.f_bavail * space.f_frsize
    if free_bytes < needed_bytes:
        return f"{_mb(free_bytes)} are free, and {_mb(needed_bytes)} are needed"
    return None


def _problem_of_sockets(root: Path) -> str | None:
    """The reason why TorchServe and HAProxy cannot have their sockets in a folder; None if they can."""
    length = len(str(root).encode("utf-8"))
    longest = SOCKET_PATH_BYTES - len(f"/{PREFIX}{RANDOM_NAME}{SOCKET_NAME}")
    if length > longest:
        return f"its path has {length} bytes, over the {longest} that leave room for a socket's name"
    if "," in str(root):
        return "its path has a comma, at which HAProxy divides addresses"
    if sys.platform == "linux" and os.statvfs(root).f_flag & os.ST_NOEXEC:
        return "it is mounted noexec, and TorchServe's native libraries are unpacked there"
    return None


def _free_port(without: Container[int]) -> int:
    """A port of the loopback interface that nobody listens on now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in without:
            return port


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _remove_if_left(folder: Path) -> None:
    try:
        if time.time() - folder.stat().st_mtime < NEW_S:
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's, no folder, or gone meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # its server runs
        pass
    finally:
        os.close(lock)
