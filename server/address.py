"""Where TorchServe and the door listen."""

import socket
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

ANY_HOST = {"0.0.0.0", "::"}
"""Hosts that stand for every address of this machine."""


@dataclass(frozen=True)
class Address:
    """A host and a port."""

    setting: str
    """The setting that decides the port."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """For a client on this machine."""
        return "127.0.0.1" if self.host in ANY_HOST else self.host

    def url(self) -> str:
        """For a client on this machine."""
        return f"http://{self.reachable_host}:{self.port}"

    @property
    def for_torchserve(self) -> str:
        """As TorchServe's configuration has it."""
        return f"http://{self.host}:{self.port}"

    @property
    def for_haproxy(self) -> str:
        """As HAProxy's configuration has it; TorchServe takes IPv4 addresses alone, too."""
        return f"ipv4@{self.host}:{self.port}"

    def bound(self) -> socket.socket:
        """A socket at the address.

        Raises:
            OSError: the address is in use, or cannot be used.
        """
        opened = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(opened, (self.host, self.port))

    def connection(self, timeout_s: float) -> HTTPConnection:
        """A connection to the address, not yet opened."""
        return HTTPConnection(self.reachable_host, self.port, timeout=timeout_s)


@dataclass(frozen=True)
class SocketAddress:
    """A Unix socket."""

    path: Path

    @property
    def for_torchserve(self) -> str:
        """As TorchServe's configuration has it."""
        return f"unix:{self.path}"

    @property
    def for_haproxy(self) -> str:
        """As HAProxy's configuration has it."""
        return f"unix@{self.path}"

    def bound(self) -> socket.socket:
        """A socket at the path.

        Raises:
            OSError: there is something at the path, or it cannot be used.
        """
        return _bound(socket.socket(socket.AF_UNIX), str(self.path))

    def connection(self, timeout_s: float) -> HTTPConnection:
        """A connection to the socket, not yet opened."""
        return _SocketConnection(self.path, timeout_s)


class _SocketConnection(HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _bound(opened: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


Endpoint = Address | SocketAddress


@dataclass(frozen=True)
class Endpoints:
    """The addresses of the three HTTP APIs that TorchServe has."""

    inference: Endpoint
    management: Endpoint
    metrics: Endpoint
