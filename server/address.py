"""The addresses on which TorchServe and the door listen."""

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
    """The name of the setting that sets the port."""

    host: str
    port: int

    @property
    def reachable_host(self) -> str:
        """The host under which clients on this machine reach the address."""
        return "127.0.0.1" if self.host in ANY_HOST else self.host

    def url(self) -> str:
        """The URL under which clients on this machine reach the address."""
        return f"http://{self.reachable_host}:{self.port}"

    @property
    def for_torchserve(self) -> str:
        """The address in the syntax of TorchServe's configuration."""
        return f"http://{self.host}:{self.port}"

    @property
    def for_haproxy(self) -> str:
        """The address in the syntax of HAProxy's configuration. It is an IPv4 address: TorchServe accepts no other."""
        return f"ipv4@{self.host}:{self.port}"

    def bound(self) -> socket.socket:
        """A socket that is bound to the address.

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
        """The address in the syntax of TorchServe's configuration."""
        return f"unix:{self.path}"

    @property
    def for_haproxy(self) -> str:
        """The address in the syntax of HAProxy's configuration."""
        return f"unix@{self.path}"

    def bound(self) -> socket.socket:
        """A socket that is bound to the path.

        Raises:
            OSError: the path exists already, or cannot be used.
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
        """Connect to the socket."""
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
    """The addresses of TorchServe's three HTTP APIs."""

    inference: Endpoint
    management: Endpoint
    metrics: Endpoint
