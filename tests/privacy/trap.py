"""Runs a command in a network from which no packet leaves, and records each packet that would leave.

    unshare --net --uts python -m tests.privacy.trap LOG COMMAND ...

In the new network namespace, every address of the Internet belongs to the loopback interface. A DNS lookup or a
connection is therefore refused at once, and this program sees its first packet, whatever program sends it. Connections
to 127.0.0.1 and ::1 are the product's own and are not recorded. The host name is not in `/etc/hosts`, so a lookup of
the machine's own name is recorded, too.
"""

import ipaddress
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_EVERY_PROTOCOL = 3
"""ETH_P_ALL in linux/if_ether.h."""
_DNS = 53
_SYN, _ACK = 0x02, 0x10

_COMMANDS = (
    "link set lo up",
    # Some programs look up no names on a machine whose only address is 127.0.0.1 (AI_ADDRCONFIG).
    "address add 192.0.2.1/32 dev lo",
    "route add local default dev lo",
    "-6 route add local default dev lo",
)


def main(log: Path, command: list[str]) -> int:
    """Run a command; returns its exit code.

    Args:
        log: the file for the records, one line for each looked-up name and each remote address.
        command: the program and its arguments.
    """
    socket.sethostname("a-name-that-no-hosts-file-has")
    for arguments in _COMMANDS:
        subprocess.run(["ip", *arguments.split()], check=True)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as packets:
        packets.bind(("lo", _EVERY_PROTOCOL))
        packets.settimeout(1)
        stop = threading.Event()
        recorder = threading.Thread(target=_record, args=(packets, log, stop))
        recorder.start()
        try:
            return subprocess.run(command, check=False).returncode
        finally:
            stop.set()
            recorder.join()


def _record(packets: socket.socket, log: Path, stop: threading.Event) -> None:
    with log.open("w", encoding="utf-8") as lines:
        for packet in _received(packets, stop):
            if line := destination(packet):
                lines.write(f"{line}\n")
                lines.flush()


def _received(packets: socket.socket, stop: threading.Event) -> Iterator[bytes]:
    """The IP packets that arrive, until `stop` is set and none is waiting."""
    while True:
        try:
            packet, (_, _, kind, *_) = packets.recvfrom(65_536)
        except TimeoutError:
            if stop.is_set():
                return
            continue
        if kind != socket.PACKET_OUTGOING:  # the loopback interface reports each packet twice, leaving and arriving
            yield packet


def destination(packet: bytes) -> str | None:
    """The destination of the first packet of an exchange, such as `name example.org` or `tcp 192.0.2.7:443`.

    None for responses and for packets that stay on the machine.
    """
    if packet[0] >> 4 == 4:
        address = ipaddress.ip_address(packet[16:20])
        protocol, content = packet[9], packet[4 * (packet[0] & 0x0F) :]
    else:
        address = ipaddress.ip_address(packet[24:40])
        protocol, content = packet[6], packet[40:]
    if protocol == socket.IPPROTO_UDP:
        [port] = struct.unpack_from("!H", content, 2)
        if port == _DNS:
            return f"name {_name(content[8:])}"
        return None if address.is_loopback else f"udp {address}:{port}"
    if protocol == socket.IPPROTO_TCP:
        [port] = struct.unpack_from("!H", content, 2)
        first = content[13] & (_SYN | _ACK) == _SYN
        return f"tcp {address}:{port}" if first and not address.is_loopback else None
    # ICMP reports closed ports, and IPv6 announces its own addresses: neither is an exchange.
    return None


def _name(query: bytes) -> str:
    """The name in a DNS query (RFC 1035, section 4.1.2)."""
    labels, position = [], 12
    while length := query[position]:
        labels.append(query[position + 1 : position + 1 + length].decode(errors="replace"))
        position += 1 + length
    return ".".join(labels)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
