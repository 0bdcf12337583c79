"""Retries, timeouts and errors, against a real HTTP server."""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus

import pytest
from urllib3.connection import HTTPConnection

from sentiment.errors import (
    ClientError,
    NotAuthorizedError,
    OverloadedError,
    RefusedError,
    UnexpectedAnswerError,
    UnreachableError,
)
from sentiment.inference import InferenceClient
from sentiment.transport import READ_TIMEOUT_S, Answer, Transport
from tests.client.scripted import Answer as Script
from tests.client.scripted import Reply, error, in_turn, scripted
from tests.e2e.server_process import free_ports
from tests.k8s.rules import longest_request_s

RETRIES = 3
OVERLOADED = error(503, "ServiceUnavailableException")
LOST = Reply(502, b"<html>")
"""The reply of a load balancer whose connection to the server was dropped."""
DROPPED = Reply(drop=True)


def ask(script: Script, repeat: bool = True, **settings: float) -> tuple[Answer | ClientError, int]:
    """Send one request; returns its answer or error, and the number of requests that the server received."""
    with scripted(script) as server:
        transport = Transport(server.url, retries=RETRIES, **({"backoff_s": 0.001} | settings))  # type: ignore[arg-type]
        try:
            return transport.send("POST", "/predictions/sentiment", body={"text": "late"}, repeat=repeat), len(
                server.requests
            )
        except ClientError as problem:
            return problem, len(server.requests)
        finally:
            transport.close()


@pytest.mark.parametrize("failure", [OVERLOADED, LOST, DROPPED], ids=["503", "502", "dropped connection"])
def test_temporary_failures_are_retried(failure: Reply) -> None:
    answer, requests = ask(in_turn(failure, failure, Reply(body=b'{"label": "x"}')))
    assert isinstance(answer, Answer), answer
    assert (answer.value, requests) == ({"label": "x"}, 3)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(OVERLOADED, OverloadedError), (LOST, UnreachableError), (DROPPED, UnreachableError)],
    ids=["503", "502", "dropped connection"],
)
def test_the_number_of_retries_is_limited(failure: Reply, kind: type[ClientError]) -> None:
    problem, requests = ask(lambda _: failure)
    assert isinstance(problem, kind)
    assert requests == RETRIES + 1


@pytest.mark.parametrize("failure", [OVERLOADED, LOST, DROPPED], ids=["503", "502", "dropped connection"])
def test_a_request_that_must_not_be_repeated_is_sent_once(failure: Reply) -> None:
    problem, requests = ask(lambda _: failure, repeat=False)
    assert isinstance(problem, ClientError)
    assert requests == 1


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 500, 507])
def test_a_refusal_is_not_retried_and_quotes_the_server(status: int) -> None:
    problem, requests = ask(lambda _: error(status, "SomeError", "Because."))
    assert isinstance(problem, RefusedError)
    assert (problem.status, problem.type, problem.message, requests) == (status, "SomeError", "Because.", 1)
    assert str(problem) == "SomeError: Because."


@pytest.mark.parametrize("failure", [error(400, "InvalidKeyException"), error(401, "Unauthorized")])
def test_a_wrong_token_is_a_not_authorized_error(failure: Reply) -> None:
    """Otherwise `score` would take TorchServe's status 400 for an error of the texts."""
    with (
        scripted(lambda _request: failure) as server,
        pytest.raises(NotAuthorizedError, match="requires a valid token"),
    ):
        InferenceClient(server.url).predict_each(["one", "two"])
    assert len(server.requests) == 1


def test_a_refusal_without_a_body_has_the_reason_phrase() -> None:
    problem, _ = ask(lambda _: Reply(413, b""))
    assert isinstance(problem, RefusedError)
    assert (problem.status, problem.type) == (413, HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase)


@pytest.mark.parametrize("slow", [Reply(delay_s=0.6), Reply(body_delay_s=0.6)], ids=["no answer", "half an answer"])
def test_a_read_timeout_is_not_retried(slow: Reply) -> None:
    problem, requests = ask(lambda _: slow, read_timeout_s=0.2)
    assert isinstance(problem, UnreachableError)
    assert "timed out" in str(problem)
    assert requests == 1


def test_the_read_timeout_is_longer_than_the_longest_request() -> None:
    """Otherwise the client would give up while HAProxy's retry is still computed."""
    assert longest_request_s() < READ_TIMEOUT_S


def test_retry_after_is_respected() -> None:
    started = time.monotonic()
    answer, requests = ask(in_turn(error(503, "OverloadedError", **{"Retry-After": "1"}), Reply()))
    assert isinstance(answer, Answer)
    assert requests == 2
    assert time.monotonic() - started >= 1


def test_a_long_retry_after_is_reported_without_waiting() -> None:
    problem, requests = ask(lambda _: error(503, "OverloadedError", **{"Retry-After": "600"}))
    assert isinstance(problem, OverloadedError)
    assert (problem.retry_after_s, requests) == (600, 1)


def test_an_invalid_retry_after_is_ignored() -> None:
    problem, requests = ask(lambda _: error(503, "OverloadedError", **{"Retry-After": "soon"}))
    assert isinstance(problem, OverloadedError)
    assert (problem.retry_after_s, requests) == (None, RETRIES + 1)


def test_the_pause_between_retries_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", _waiting_through(pauses, above=1))
    ask(lambda _: OVERLOADED, backoff_s=4)
    assert len(pauses) == RETRIES
    for attempt, pause_s in enumerate(pauses):
        assert 2 * 2**attempt <= pause_s <= 4 * 2**attempt


def test_clients_that_the_server_refuses_do_not_return_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server asks all of them for the same pause."""
    pauses: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", _waiting_through(pauses, above=1))
    ask(lambda _: error(503, "OverloadedError", **{"Retry-After": "2"}))
    assert len(set(pauses)) == RETRIES
    assert all(2 <= pause_s <= 4 for pause_s in pauses)


def _waiting_through(pauses: list[float], above: float) -> Callable[[threading.Event, float | None], bool]:
    really = threading.Event.wait

    def wait(event: threading.Event, seconds: float | None = None) -> bool:
        if seconds is None or seconds <= above:
            return really(event, seconds)
        pauses.append(seconds)
        return False

    return wait


def test_closing_a_transport_ends_a_request_that_is_connecting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = HTTPConnection.connect
    with scripted(lambda _: Reply()) as server:
        transport = Transport(server.url)

        def closed_meanwhile(connection: HTTPConnection) -> None:
            transport.close()
            connect(connection)

        monkeypatch.setattr(HTTPConnection, "connect", closed_meanwhile)
        with pytest.raises(UnreachableError, match="after its client was closed"):
            transport.send("GET", "/ping")
    assert not server.requests


def test_nothing_is_sent_over_a_closed_transport() -> None:
    with scripted(lambda _: Reply()) as server:
        transport = Transport(server.url)
        transport.close()
        with pytest.raises(UnreachableError, match="after its client was closed"):
            transport.send("GET", "/ping")
    assert not server.requests


def test_the_error_for_an_unreachable_server_names_its_address() -> None:
    [port] = free_ports(1)
    transport = Transport(f"http://127.0.0.1:{port}/", retries=1, backoff_s=0.001)
    with pytest.raises(UnreachableError, match=rf"http://127.0.0.1:{port} does not answer: .*refused"):
        transport.send("GET", "/ping")


def test_http_instead_of_https_is_an_error() -> None:
    with scripted(lambda _: Reply()) as server, pytest.raises(UnreachableError, match=r"\[SSL: .*\]"):
        Transport(server.url.replace("http://", "https://"), retries=3).send("GET", "/ping")


def test_an_html_error_page_is_shown_as_one_line() -> None:
    problem, _ = ask(lambda _: Reply(404, b"<html>\n  <h1>Nobody\nhere</h1>\n" + b" " * 10_000))
    assert str(problem) == "Not Found: <html> <h1>Nobody here</h1>"


@pytest.mark.parametrize(
    "other",
    [Reply(body=b"<html>welcome</html>"), Reply(302, b"", {"Location": "/login"})],
    ids=["a page", "a redirection"],
)
def test_a_reply_that_is_not_json_is_an_error(other: Reply) -> None:
    problem, requests = ask(lambda _: other)
    assert isinstance(problem, UnexpectedAnswerError)
    assert requests == 1


def test_netrc_does_not_replace_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with scripted(lambda _: Reply()) as server:
        transport = Transport(server.url, token="KEY")
        transport.send("GET", "/ping")
        transport.close()
        assert server.requests[0].headers["Authorization"] == "Bearer KEY"


def test_the_models_version_is_read_from_the_reply() -> None:
    answer, _ = ask(lambda _: Reply(headers={"X-Model-Version": "2.0"}))
    assert isinstance(answer, Answer)
    assert answer.model_version == "2.0"
