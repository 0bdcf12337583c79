"""Tests that web pages in a browser on the server's machine cannot use the management API."""

import socket
from urllib.parse import urlsplit

import pytest
import requests

from tests.e2e.server_process import Server, sentiment

HERE = (
    "localhost",
    "localhost:8081",
    "LOCALHOST:1",
    "127.0.0.1",
    "127.0.0.1:8081",
    "127.1.2.3:8081",
    "[::1]",
    "[::1]:65535",
)
ELSEWHERE = (
    *(
        "evil.example",
        "evil.example:8081",
        "localhost.evil.example",
        "evil.example:localhost",
        "127.0.0.1.evil.example",
    ),
    *("127.0.0.1evil.example", "localhost@evil.example", "localhost:8081:8081", "192.0.2.1", "0.0.0.0", "[::2]", ""),
    *("localhost.", "localhost:", "xlocalhost", "127.0.0.1,evil.example", "localhost evil.example"),
)
SITES = (
    "http://evil.example",
    "https://localhost.evil.example",
    "null",
    "file://",
    "http://127.0.0.1.evil.example:8081",
    "x",
)


def get(server: Server, *headers: str, path: str = "/models", version: str = "1.1") -> int:
    """The status of the response to a GET request with exactly these headers."""
    address = urlsplit(server.project.management)
    lines = [f"GET {path} HTTP/{version}", *headers, "Connection: close", "", ""]
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        reply = b""
        while content := connection.recv(65_536):
            reply += content
    return int(reply.split()[1])


@pytest.mark.parametrize("host", HERE)
def test_requests_to_names_of_this_machine_are_accepted(server: Server, host: str) -> None:
    """`kubectl port-forward` may use any port."""
    assert get(server, f"Host: {host}") == 200
    assert get(server, f"Host: {host}", f"Origin: http://{host}") == 200


@pytest.mark.parametrize("host", ELSEWHERE)
def test_requests_to_other_names_are_refused(server: Server, host: str) -> None:
    """DNS rebinding: the page's name resolves to 127.0.0.1, so the browser lets the page read the response."""
    assert get(server, f"Host: {host}") in (400, 403)
    assert get(server, f"Host: {host}", f"Origin: http://{host}") in (400, 403)


@pytest.mark.parametrize("origin", SITES)
def test_requests_of_other_sites_are_refused(server: Server, origin: str) -> None:
    url = f"{server.project.management}/models"
    before = requests.get(url, timeout=60).json()
    for method in ("POST", "PUT", "DELETE", "GET", "OPTIONS"):
        reply = requests.request(method, f"{url}?url=x.mar", headers={"Origin": origin}, timeout=60)
        assert reply.status_code == 403
        assert reply.json()["type"] == "ForbiddenError"
        assert "access-control-allow-origin" not in reply.headers
    assert requests.get(url, timeout=60).json() == before


def test_a_missing_or_repeated_host_is_refused(server: Server) -> None:
    assert get(server, version="1.0") == 403
    assert get(server) in (400, 403)
    for hosts in (("localhost", "evil.example"), ("evil.example", "localhost")):
        assert get(server, *(f"Host: {host}" for host in hosts)) in (400, 403)
        assert get(server, "Host: localhost", *(f"Origin: http://{host}" for host in hosts)) == 403
    assert get(server, "Host: localhost", path="http://evil.example/models") in (400, 403)


def test_the_command_line_may_use_every_name_of_this_machine(server: Server) -> None:
    port = urlsplit(server.project.management).port
    for host in ("localhost", "127.0.0.1"):
        result = sentiment(server, "status", SENTIMENT_MANAGEMENT_URL=f"http://{host}:{port}")
        assert result.returncode == 0, result.stderr
