"""The sockets where clients ask. This program binds them, and the door accepts the connections: while the door starts
again, clients wait rather than find nobody, and a stop resets no connection that the door has not accepted yet."""

import contextlib
import ctypes
import socket
import struct
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from server.address import Address
from server.properties import ConfigurationError

_SO_ATTACH_FILTER = 26
_DROP_EVERYTHING = struct.pack("@HBBI", 0x06, 0, 0, 0)
"""A program of the packet filter (`linux/filter.h`): `BPF_RET | BPF_K`, no byte of the packet."""
REFUSE_S = 1
"""How long this program waits at most for the door to accept all connections."""
POLL_S = 0.05


def bound(address: Address, configuration: Path) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigurationError: the address is in use, or cannot be used.
    """
    try:
        return address.bound()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {address.host}:{address.port} ({address.setting} in {configuration.name}): "
            f"{error.strerror}. Stop what listens there (`lsof -i :{address.port}` names it), or choose another port."
        ) from error


class Listeners:
    """A listening socket for each of several addresses."""

    def __init__(self, addresses: Sequence[Address], configuration: Path) -> None:
        """
        Args:
            configuration: where the addresses are from.

        Raises:
            ConfigurationError: one of them cannot be listened on.
        """
        self.sockets: list[socket.socket] = []
        try:
            for address in addresses:
                self.sockets.append(bound(address, configuration))
                self.sockets[-1].listen(socket.SOMAXCONN)
        except BaseException:
            self.close()
            raise

    def refuse(self) -> None:
        """Refuse new connections; returns when the door has accepted the connections that were made before.

        Closing a listening socket resets the connections that are not accepted yet. So, on Linux, packets to it are
        dropped first: a client that tries to connect tries again a second later, and is refused then.
        """
        if sys.platform != "linux":
            return
        program = ctypes.create_string_buffer(_DROP_EVERYTHING)
        for each in self.sockets:
            with contextlib.suppress(OSError):  # a sandbox without packet filters
                each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(program)))
        deadline = time.monotonic() + REFUSE_S
        while any(map(_waiting, self.sockets)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        time.sleep(POLL_S)  # what has connected last is about to send its request

    def close(self) -> None:
        for each in self.sockets:
            each.close()


def _waiting(listener: socket.socket) -> int:
    """How many connections wait to be accepted (tcp(7), `TCP_INFO`; `tcpi_unacked` of a listening socket)."""
    try:
        return int(struct.unpack_from("@I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)[0])
    except (OSError, struct.error):
        return 0
