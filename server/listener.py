"""The public listening sockets. This program binds them, and the door inherits them and accepts the connections.

So if the door restarts, new connections wait in the sockets' queues and are not refused. When the server stops, no
connection in a queue is reset.
"""

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
"""A packet filter program that drops each packet (`linux/filter.h`): `BPF_RET | BPF_K` with a length of 0 bytes."""
REFUSE_S = 1
"""The longest time to wait until the door has accepted all connections in the queues."""
POLL_S = 0.05


def bound(address: Address, configuration: Path) -> socket.socket:
    """A socket that is bound to an address of the configuration.

    Raises:
        ConfigurationError: the address is in use, or cannot be used.
    """
    try:
        return address.bound()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {address.host}:{address.port} ({address.setting} in {configuration.name}): "
            f"{error.strerror}. Stop the program that listens there (`lsof -i :{address.port}` shows it), or choose "
            "another port."
        ) from error


class Listeners:
    """One listening socket per address."""

    def __init__(self, addresses: Sequence[Address], configuration: Path) -> None:
        """Bind the sockets and listen.

        Args:
            addresses: the addresses to listen on.
            configuration: the file that sets the addresses.

        Raises:
            ConfigurationError: an address is in use, or cannot be used.
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
        """Refuse new connections, and return when the door has accepted all connections made before.

        Closing a listening socket resets the connections in its queue. On Linux, this method therefore drops packets
        to the socket first: a client that is connecting retries after one second and is refused then.
        """
        if sys.platform != "linux":
            return
        program = ctypes.create_string_buffer(_DROP_EVERYTHING)
        attached = struct.pack("@HP", 1, ctypes.addressof(program))
        for listener in self.sockets:
            with contextlib.suppress(OSError):  # a sandbox without packet filters
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
        deadline = time.monotonic() + REFUSE_S
        while any(map(_waiting, self.sockets)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        time.sleep(POLL_S)  # the client that connected last is about to send its request

    def close(self) -> None:
        """Close the sockets."""
        for listener in self.sockets:
            listener.close()


def _waiting(listener: socket.socket) -> int:
    """The number of connections in the queue of a listening socket (tcp(7), `TCP_INFO`, `tcpi_unacked`)."""
    try:
        return int(struct.unpack_from("@I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)[0])
    except (OSError, struct.error):
        return 0
