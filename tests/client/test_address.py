"""Connection settings: validation, proxies, certificates and tokens."""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment import address
from sentiment.errors import ClientError, InputError, UnreachableError
from sentiment.inference import MAX_CONNECTIONS, InferenceClient
from sentiment.management import MAX_WORKERS, ManagementClient
from sentiment.transport import Transport
from tests.client.scripted import Reply, Request, scripted
from tests.e2e.server_process import free_ports, run_client

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in PROXY_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:8080",
        "ftp://127.0.0.1",
        "http://",
        "http://:8080",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:port",
        "http://[::1",
        "http://::1]:8080",
        "http://a b/",
        "http://a\nb/",
        "http://a\\b/",
        "http://127.0.0.1/?x=1",
        "http://127.0.0.1/#x",
        "http://\udcff/",
        "http://user:PASSWORD@127.0.0.1:8080",
        "//127.0.0.1",
        "file:///etc/passwd",
    ],
)
def test_an_invalid_address_is_refused_before_a_request_is_sent(url: str) -> None:
    for client in (InferenceClient, ManagementClient, Transport):
        with pytest.raises(InputError, match="Expected http://HOST:PORT") as caught:
            client(url)
        assert str(caught.value).isprintable()
        assert "PASSWORD" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://a..b", "http://*", f"http://{'a' * 300}", "http://-"])
def test_an_invalid_host_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match=re.escape(url)):
        Transport(url, retries=0).send("GET", "/ping")


@given(
    st.text()
    | st.builds("http://{}".format, st.text())
    | st.builds("https://{}:{}/{}".format, st.text(), st.text(), st.text())
)
def test_any_text_is_a_valid_address_or_is_refused(text: str) -> None:
    try:
        valid = address.address(text)
    except InputError as error:
        assert str(error).isprintable()
        return
    assert urlsplit(valid).scheme in ("http", "https")
    address.proxy(valid)


@pytest.mark.parametrize(
    ("url", "expected"),
    [(" http://localhost:8080/ ", "http://localhost:8080"), ("https://gateway/a/", "https://gateway/a")],
)
def test_an_address(url: str, expected: str) -> None:
    assert address.address(url) == expected


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\nb", "\udcff", "\x1b[31m", "\u202e"])
def test_an_invalid_name_is_refused(name: str) -> None:
    """TorchServe decodes `%2F` to a slash, so `a/b` would be version b of model a; `..` would be another path."""
    for make in (
        lambda: InferenceClient(model=name),
        lambda: ManagementClient(model=name),
        lambda: InferenceClient(version=name),
    ):
        with pytest.raises(InputError, match="cannot be the name") as caught:
            make()
        assert str(caught.value).isprintable()


@given(
    st.text(st.characters(exclude_characters="/"), min_size=1, max_size=20)
    .filter(str.isprintable)
    .filter(lambda name: name.strip("."))
)
def test_any_valid_name_is_quoted_in_the_path(name: str) -> None:
    with scripted(lambda _: Reply(404)) as server:
        with InferenceClient(server.url, name, name, retries=0) as client, pytest.raises(ClientError):
            client.predict("late")
        [request] = server.requests
    parts = request.path.split("/")
    assert [unquote(part) for part in parts] == ["", "predictions", name, name]


@pytest.mark.parametrize("token", ["abc\n", "  abc", "abc\r\n\t"])
def test_whitespace_around_a_token_is_removed(token: str) -> None:
    with scripted(lambda _: Reply()) as server:
        Transport(server.url, token=token).send("GET", "/ping")
        assert server.requests[0].headers["Authorization"] == "Bearer abc"


@pytest.mark.parametrize("token", ["", " ", "\n", None])
def test_an_empty_token_is_none(token: str | None) -> None:
    with scripted(lambda _: Reply()) as server:
        Transport(server.url, token=token).send("GET", "/ping")
        assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize("token", ["SECRET\nX: y", "SECRET KEY", "SECRETé", "SECRET✈", "SECRET\x00", "SECRET\udcff"])
def test_an_invalid_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(InputError) as caught:
        Transport("http://127.0.0.1:1", token=token)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("variable", ["SENTIMENT_TOKEN", "SENTIMENT_MANAGEMENT_TOKEN"])
@pytest.mark.parametrize("token", ["SECRET\nX: y", "SECRETé", "SECRET \n KEY"])
def test_the_command_line_never_shows_a_token(variable: str, token: str) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = {"SENTIMENT_URL": url, "SENTIMENT_MANAGEMENT_URL": url, variable: token}
    result = run_client("status", env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {variable}: The token contains a space, a line break")
    assert "SECRET" not in result.stdout + result.stderr


@pytest.mark.parametrize("connections", [0, -1, MAX_CONNECTIONS + 1, 1_000_000])
def test_the_number_of_connections_is_limited(connections: int) -> None:
    with pytest.raises(InputError, match="connections"):
        InferenceClient(connections=connections)


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1, 2**32 + 1])
def test_the_number_of_workers_is_limited(workers: int) -> None:
    """TorchServe reads the number as 32 bits: 4294967297 became 1."""
    with scripted(lambda _: Reply()) as server, ManagementClient(server.url) as client:
        with pytest.raises(InputError, match="workers"):
            client.scale(workers, "1.0")
        assert server.requests == []


LOOPBACK = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST",
    "a.localhost",
    "127.255.0.9",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "127.1",
    "0.0.0.0",
    "[::]",
]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", LOOPBACK)
def test_no_proxy_is_used_for_this_machine(host: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    assert address.proxy(f"http://{host}:8080") is None


@pytest.mark.usefixtures("no_proxies", "closed_proxy")
def test_a_request_to_this_machine_does_not_use_the_proxy() -> None:
    with (
        scripted(lambda _: Reply(body=b'{"status": "Healthy"}')) as server,
        InferenceClient(server.url, retries=0) as client,
    ):
        assert client.health() == "Healthy"


def through(proxy: Callable[[Request], Reply], monkeypatch: pytest.MonkeyPatch) -> ClientError | str:
    with scripted(proxy) as server:
        monkeypatch.setenv("http_proxy", server.url.replace("://", "://user:PASSWORD@"))
        with InferenceClient("http://sentiment.example", retries=0) as client:
            try:
                return client.health()
            except ClientError as error:
                assert "PASSWORD" not in str(error)
                assert server.url.removeprefix("http://") in str(error)
                return error


def test_requests_to_other_machines_use_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    def proxy(request: Request) -> Reply:
        assert request.path == "http://sentiment.example/ping"
        return Reply(body=b'{"status": "Healthy"}')

    assert through(proxy, monkeypatch) == "Healthy"


@pytest.mark.parametrize("reply", [Reply(502), Reply(503), Reply(drop=True)], ids=["502", "503", "dropped"])
def test_the_error_names_a_proxy_that_fails(reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(through(lambda _: reply, monkeypatch), ClientError)


def test_the_error_names_a_proxy_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    [closed] = free_ports(1)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed}")
    with pytest.raises(UnreachableError, match=f"\\(through the proxy http://127.0.0.1:{closed}\\) does not answer"):
        Transport("http://sentiment.example", retries=0).send("GET", "/ping")


@pytest.mark.parametrize(
    "proxy", ["http://[::", "socks5://127.0.0.1:9", "nonsense://x", "http://", "http://127.0.0.1:99999"]
)
def test_an_invalid_proxy_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(ClientError, match="proxy"):
        Transport("http://sentiment.example", retries=0).send("GET", "/ping")


def test_the_variable_no_proxy_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "sentiment.example")
    assert address.proxy("http://sentiment.example") is None
    assert address.proxy("http://other.example") == "http://127.0.0.1:9"


def test_missing_certificates_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(InputError, match=r"REQUESTS_CA_BUNDLE names .*none.pem, which does not exist"):
        Transport("https://127.0.0.1:1")
    (tmp_path / "none.pem").write_text("nonsense")
    with pytest.raises(ClientError):
        Transport("https://127.0.0.1:1", retries=0).send("GET", "/ping")


def test_netrc_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A password must not be sent to a server that did not ask for it."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with scripted(lambda _: Reply()) as server:
        Transport(server.url).send("GET", "/ping")
        assert "Authorization" not in server.requests[0].headers
