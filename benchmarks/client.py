"""A load generator on raw sockets.

It has one thread and needs little processor time for each request, because it shares the cores with the server that it
measures. At a given rate, the latency of a request counts from when the request was due, not from when a connection was
free. So the latency includes the delay of a server that falls behind ("coordinated omission"; Tene, "How NOT to Measure
Latency").
"""

import math
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

HEADERS = (
    "User-Agent: python-requests/2.32.5\r\nAccept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\n"
)
"""The headers that Python's most common HTTP client, requests, sends. A server needs time to parse them."""

_READ_SIZE = 1 << 16
_TIMEOUT_S = 120


@dataclass
class Load:
    """The result of sending requests for a time."""

    seconds: float
    """The time from the first request to the last response."""

    latencies: list[float] = field(default_factory=list)
    """The latency of each answered request, in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    """The number of responses with each status."""

    @property
    def throughput(self) -> float:
        """Responses per second."""
        return sum(self.statuses.values()) / self.seconds

    def percentile(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies, percent))


def to_request(url: str, body: bytes, content_type: str) -> bytes:
    """The bytes of an HTTP request."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n{HEADERS}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def load(
    url: str,
    requests: Iterator[bytes],
    connections: int,
    seconds: float = math.inf,
    rate: float | None = None,
    limit: int | None = None,
    check: Callable[[bytes, bytes], None] | None = None,
) -> Load:
    """Send requests for a time, and wait for the last responses.

    Args:
        url: the server's URL.
        requests: requests made by `to_request`.
        connections: the number of persistent connections; each has at most one request in flight.
        seconds: the time for which requests are sent.
        rate: requests per second at equal intervals, until all that are due within `seconds` are sent, however long
            that takes; None to send the next request on a connection as soon as its response arrives.
        limit: the maximum number of requests.
        check: called with each request and the body of its response.

    Raises:
        ConnectionError: the server cannot be reached, or closes a connection before its response is complete.
        TimeoutError: there is no response for a long time.
        ValueError: `requests` ends before all requests are sent.
    """
    address = (urlsplit(url).hostname, urlsplit(url).port)
    selector = selectors.DefaultSelector()
    opened = [_Connection(address, selector) for _ in range(connections)]
    idle = deque(opened)
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    sent = 0
    started = last = time.perf_counter()
    try:
        while True:
            now = time.perf_counter()
            sending = (now - started if rate is None else sent / rate) < seconds and sent != limit
            while idle and sent != limit and sending and (rate is None or started + sent / rate <= now):
                due = now if rate is None else started + sent / rate
                request = next(requests, None)
                if request is None:
                    raise ValueError(f"All {sent} requests are sent, but more are needed.")
                idle.popleft().send(request, due)
                sent += 1
            if len(idle) == connections and not sending:
                break
            wait = _TIMEOUT_S if rate is None else max(started + sent / rate - time.perf_counter(), 0)
            if not idle or not sending:
                wait = _TIMEOUT_S
            ready = selector.select(wait)
            if not ready and wait == _TIMEOUT_S:
                raise TimeoutError(f"{url}: no response for {_TIMEOUT_S} s")
            for key, _ in ready:
                connection: _Connection = key.data
                status = connection.receive()
                if status:
                    last = time.perf_counter()
                    latencies.append(last - connection.due)
                    statuses[status] += 1
                    if check:
                        check(connection.request, connection.body)
                    idle.append(connection)
    finally:
        for connection in opened:
            connection.close()
        selector.close()
    return Load(last - started, latencies, statuses)


class _Connection:
    """A connection that has at most one request in flight."""

    def __init__(self, address: tuple[str | None, int | None], selector: selectors.BaseSelector) -> None:
        self._address, self._selector = address, selector
        self._open()
        self.due = 0.0
        self.request = self.body = b""
        self._received = b""
        self._under_way = False

    def send(self, request: bytes, due: float) -> None:
        """Send a request; open the connection if the server has closed it."""
        if self._socket.fileno() < 0:
            self._open()
        self.due = due
        self.request = request
        self._received = b""
        self._under_way = True
        self._socket.sendall(request)

    def receive(self) -> int:
        """Read the bytes that have arrived; returns the status of a complete response, else 0."""
        part = self._socket.recv(_READ_SIZE)
        if not part:
            if self._under_way:
                raise ConnectionError(f"{self._address}: the connection ended before a complete response")
            self.close()  # the next request opens an idle connection again
            return 0
        self._received += part
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return 0
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return 0
        self._under_way = False
        self.body = body
        if fields.get(b"connection") == b"close":
            self.close()
        return int(head.split(b" ", 2)[1])

    def _open(self) -> None:
        self._socket = socket.create_connection(self._address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(self._socket, selectors.EVENT_READ, self)

    def close(self) -> None:
        """Close the connection if it is open."""
        if self._socket.fileno() >= 0:
            self._selector.unregister(self._socket)
            self._socket.close()
