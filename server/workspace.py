"""The server's folder for temporary files.

The server removes the folder when it ends. If a server is killed, the next server that starts removes the folder.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from server.address import Address, Endpoint, SocketAddress

PREFIX = "fastai-sentiment-server-"
"""The prefix of the folder's name, which no other program uses: a start removes unlocked folders with this prefix."""
VARIABLES = ("TMPDIR", "TEMP", "TMP")
"""The environment variables that name a folder for temporary files, highest precedence first (`tempfile`)."""
OTHERS = ("/tmp", "/var/tmp", "/dev/shm")
"""The folders that are tried after those of the variables, in order."""
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
"""The longest path of a socket: unix(7), `sun_path` without the byte at its end."""
RANDOM_NAME = "12345678"
"""A name as long as the random part of `tempfile.mkdtemp`'s names."""
SOCKET_NAME = "/.ts.sock.1234567"
"""The longest name of a socket in the folder: that of a worker's socket, which TorchServe numbers from
`initial_worker_port`. HAProxy's temporary name for the door's socket is as long: `/door.1234567.tmp`, with its process
id."""


class NoWorkspaceError(Exception):
    """No folder can hold the temporary files. The message gives the reason for each folder, and what is expected."""


class Workspace:
    """A folder for temporary files, created and locked on construction.

    If a server is killed, its lock (flock(2)) ends with its process, so the next server that starts can recognize and
    remove the folder at once: a container that crashes again and again keeps its volume, and has room for few folders.

    The folder holds TorchServe's unpacked archives and native libraries, and the workers' sockets. It is created in the
    first parent folder that is writable, has enough free space, has a path short enough for a socket, and is not
    mounted `noexec`. If there is none, the first writable parent folder with enough space is used; the workers then
    listen on ports, and TorchServe runs without native libraries.
    """

    def __init__(self, environment: Mapping[str, str], needed_bytes: int) -> None:
        """Create the folder, and remove the folders of killed servers.

        Args:
            environment: the environment variables that name folders for temporary files.
            needed_bytes: the size of the files that the folder will hold.

        Raises:
            NoWorkspaceError: no folder can hold the files.
        """
        self.avoided: list[str] = []
        """The parent folders that cannot be used, each with the reason."""
        self._ports: set[int] = set()

        roots = list(_roots(environment))
        for root in roots:
            with contextlib.suppress(OSError):  # the folder cannot be listed; `_problem` checks whether it can be used
                for folder in root.glob(f"{PREFIX}*"):
                    _remove_if_left(folder)
        for self.has_sockets in (True, False):
            for root in roots:
                problem = self._take(root, needed_bytes)
                if problem is None:
                    return
                self.avoided += [f"{root}: {problem}"] if self.has_sockets else []
        raise NoWorkspaceError(
            f"No folder for temporary files: {'; '.join(self.avoided)}. Set TMPDIR to a writable folder with "
            f"{_mb(needed_bytes)} of free space."
        )

    def _take(self, root: Path, needed_bytes: int) -> str | None:
        """Create and lock the folder in `root`; returns the reason if that is not possible."""
        problem = _problem(root, needed_bytes) or (_problem_of_sockets(root) if self.has_sockets else None)
        if problem is None:
            try:
                while not self._lock_new(Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))):
                    pass
            except OSError as error:
                problem = error.strerror
        return problem

    def _lock_new(self, path: Path) -> bool:
        """Lock a new folder; returns False if another server that starts has removed it before it was locked."""
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits while another server removes the folder
        if not path.exists():
            os.close(lock)
            return False
        self.path, self._lock = path, lock
        return True

    def address(self, name: str) -> Endpoint:
        """An address for communication between the server's processes.

        It is a Unix socket in the folder, or a free port of the loopback interface if the folder cannot hold sockets.

        Args:
            name: the name of the program that will listen there, at most 16 characters.
        """
        if self.has_sockets:
            return SocketAddress(self.path / name)
        port = _free_port(without=self._ports)
        self._ports.add(port)
        return Address(name, "127.0.0.1", port)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _roots(environment: Mapping[str, str]) -> Iterator[Path]:
    """The folders in which temporary files may be, the user's choice first."""
    chosen = [environment.get(name) for name in (*VARIABLES, "XDG_RUNTIME_DIR")]
    names = [*chosen[:-1], *OTHERS, chosen[-1]]
    yield from dict.fromkeys(Path(os.path.abspath(name)) for name in names if name)


def _problem(root: Path, needed_bytes: int) -> str | None:
    """The reason why a folder cannot hold the temporary files; None if it can."""
    try:
        str(root).encode("utf-8")
        space = os.statvfs(root)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError as error:
        return error.strerror
    free_bytes = space.f_bavail * space.f_frsize
    if free_bytes < needed_bytes:
        return f"{_mb(free_bytes)} are free, but {_mb(needed_bytes)} are needed"
    return None


def _problem_of_sockets(root: Path) -> str | None:
    """The reason why a folder cannot hold the sockets of TorchServe and HAProxy; None if it can."""
    length = len(str(root).encode("utf-8"))
    longest = SOCKET_PATH_BYTES - len(f"/{PREFIX}{RANDOM_NAME}{SOCKET_NAME}")
    if length > longest:
        return f"its path has {length} bytes, but a socket's path allows {longest}"
    if "," in str(root):
        return "its path has a comma, which separates addresses in HAProxy's configuration"
    if sys.platform == "linux" and os.statvfs(root).f_flag & os.ST_NOEXEC:
        return "it is mounted noexec, but TorchServe loads native libraries from it"
    return None


def _free_port(without: Container[int]) -> int:
    """A port of the loopback interface on which no program listens now."""
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
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # another user's folder, not a folder, or removed meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # the folder's server runs
        pass
    finally:
        os.close(lock)
