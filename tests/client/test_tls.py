"""HTTPS, to a server with a self-signed certificate."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sentiment import bounds
from sentiment.errors import UnexpectedAnswerError, UnreachableError
from sentiment.transport import Transport
from tests.client.scripted import Answer, Reply, scripted


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File with a certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no openssl to make a certificate with")
        pytest.skip("needs openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *files, *names]
    subprocess.run(command, capture_output=True, check=True)
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
    return both


@contextmanager
def secure(answer: Answer, certificate: Path) -> Iterator[str]:
    with scripted(answer) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        yield server.url.replace("http://", "https://")


def test_a_certificate_that_the_environment_trusts_is_accepted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with secure(lambda _: Reply(body=b"[1]"), certificate) as url:
        transport = Transport(url, retries=0)
        assert [transport.send("GET", "/ping").value for _ in range(3)] == [[1]] * 3
        transport.close()


def test_the_limits_apply_over_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setattr(bounds, "MAX_ANSWER_BYTES", 2**20)
    with (
        secure(lambda _: Reply(body=b" " * 2**21), certificate) as url,
        pytest.raises(UnexpectedAnswerError, match="sent more than"),
    ):
        Transport(url, retries=0).send("GET", "/ping")
    with (
        secure(lambda _: Reply(body_delay_s=2), certificate) as url,
        pytest.raises(UnreachableError, match=r"no complete reply after 0\.5 s"),
    ):
        Transport(url, retries=0, read_timeout_s=0.5).send("GET", "/ping")


def test_an_untrusted_certificate_fails_without_a_retry(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with (
        secure(lambda _: Reply(), certificate) as url,
        pytest.raises(UnreachableError, match=r"does not answer: \[SSL: CERTIFICATE_VERIFY_FAILED\]"),
    ):
        Transport(url, retries=9, backoff_s=100).send("GET", "/ping")
