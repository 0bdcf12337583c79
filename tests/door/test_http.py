"""Tests of the door: the requests that reach TorchServe, and their form."""

import json
import re

import pytest

from server.address import Address
from tests.door.conftest import Door
from tests.door.stub import Reply, Request, request

MODEL_PATHS = {
    "/predictions/sentiment": "/predictions/sentiment",
    "/predictions/sentiment/1.0": "/predictions/sentiment/1.0",
    "/explanations/sentiment": "/explanations/sentiment",
    "/v1/models/sentiment:predict": "/v1/models/sentiment:predict",
    "/v1/models/sentiment:explain": "/v1/models/sentiment:explain",
    "/invocations": "/invocations",
    "/invocations?model_name=sentiment&text=early": "/predictions/sentiment",
    "/predictions/sentiment?text=early&body=early": "/predictions/sentiment",
    "http://door/predictions/sentiment?text=early": "/predictions/sentiment",
    "/v2/models/sentiment/infer": "/predictions/sentiment",
    "/v2/models/sentiment/versions/1.0/infer?a=b": "/predictions/sentiment/1.0",
}
"""The path of a client's request, and the path of the request that TorchServe receives."""

NOT_FOUND = (
    "/api-description",
    "//",
    "/predictions",
    "/predictions/sentiment/1.0/any/path",
    "/models/sentiment/invoke",
    "/models/sentiment",
    "/sentiment/predict",
    "/wfpredict/x",
    "/v1/models/sentiment",
    "/v2/models/sentiment/any",
    "/v2/repository/index",
    "/%70redictions/sentiment",
    "/metrics",
    "/drain",
    "*",
)

MESSAGE = re.compile("Expected")


def error(reply: Reply, path: str = "") -> str:
    """The type of an error in the API's form; empty for an error of the Open Inference Protocol, which has no type."""
    body = json.loads(reply.body)
    assert reply.headers["content-type"] == "application/json"
    if path.startswith("/v2"):
        assert list(body) == ["error"]
        assert MESSAGE.search(body["error"])
        return ""
    assert list(body) == ["code", "type", "message"]
    assert body["code"] == reply.status
    return str(body["type"])


@pytest.mark.parametrize("path", MODEL_PATHS)
def test_a_models_path_reaches_torchserve_without_the_query(door: Door, path: str) -> None:
    for method in ("POST", "PUT"):
        with door.connect(request(b"late", method, path)) as client:
            assert client.reply() == Reply(200, client_headers(b"late"), b"late"), method
    assert [seen.path for seen in door.stub.requests] == [MODEL_PATHS[path]] * 2


def client_headers(body: bytes) -> dict[str, str]:
    """The headers of the stub's response."""
    return {"content-length": str(len(body)), "content-type": "application/json"}


@pytest.mark.parametrize("path", NOT_FOUND)
def test_an_unknown_path_is_404(door: Door, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        with door.connect(request(b"late", method, path)) as client:
            reply = client.reply()
            assert (reply.status, error(reply, path)) in {(404, ""), (404, "ResourceNotFoundException")}
    assert not door.stub.requests


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(path, "POST, PUT") for path in MODEL_PATHS]
    + [(path, "GET, HEAD") for path in ("/", "/ready", "/ping", "/v2", "/v2/models/sentiment/ready")]
    + [("/v2/models/sentiment", "GET")],
)
def test_a_wrong_method_is_405_with_the_allowed_methods(door: Door, path: str, allowed: str) -> None:
    methods = {"DELETE", "TRACE", "OPTIONS", "PATCH", "BREW"} | ({"GET"} if "POST" in allowed else {"POST"})
    for method in methods:
        with door.connect(request(b"", method, path)) as client:
            reply = client.reply()
            assert (reply.status, reply.headers["allow"]) == (405, allowed), method
            assert error(reply, path) in ("", "MethodNotAllowedException")
            assert f"Expected {allowed}." in reply.body.decode()
    assert not door.stub.requests


@pytest.mark.parametrize("path", ["/", "/ping", "/ready", "/docs", "/v2/models/sentiment"])
def test_a_body_of_a_get_request_is_refused(door: Door, path: str) -> None:
    """TorchServe would keep the part of the body that has arrived in memory."""
    for headers in ("Content-Length: 16000", "Content-Length: 2000000", "Transfer-Encoding: chunked"):
        with door.connect(f"GET {path} HTTP/1.1\r\nHost: door\r\n{headers}\r\n\r\n".encode()) as client:
            reply = client.reply()
            assert (reply.status, error(reply, path)) in {(400, "BadRequestException"), (400, "")}
    assert not door.stub.requests


@pytest.mark.parametrize("path", ["/predictions/%zz", "/v1/models/a%:predict", "/v2/models/%1/infer"])
def test_a_malformed_escape_does_not_reach_torchserve(door: Door, path: str) -> None:
    with door.connect(request(b"late", "POST", path)) as client:
        reply = client.reply()
        assert (reply.status, error(reply, path)) in {(400, "BadRequestException"), (400, "")}
    assert not door.stub.requests


def test_an_unknown_expectation_is_dropped(door: Door) -> None:
    with door.connect(
        b"POST /predictions/a HTTP/1.1\r\nHost: door\r\nExpect: x\r\nContent-Length: 4\r\n\r\nlate"
    ) as client:
        assert client.reply().status == 200
    assert "expect" not in door.stub.requests[0].headers


def test_requests_for_metadata_reach_the_model(door: Door) -> None:
    with door.connect(request(b"", "GET", "/v2/models/sentiment/versions/1.0")) as client:
        assert client.reply().status == 200
    [seen] = door.stub.requests
    assert (seen.path, seen.headers["x-open-inference"]) == ("/predictions/sentiment/1.0", "metadata")


def test_the_clients_content_headers_do_not_reach_torchserve(door: Door) -> None:
    """With the client's content type, TorchServe would decode a form. The handler decodes forms."""
    sent = "Content-Type: multipart/form-data; boundary=x, y\r\n"
    foreign = "X-Client-Content-Type: text/html\r\nX-Open-Inference: infer\r\n"
    for body in (b"late", b"x" * 20_000):
        for headers in (sent, sent + foreign, foreign, ""):
            with door.connect(request(body, headers=headers)) as client:
                assert client.reply().status == 200
    for seen, named in zip(door.stub.requests, [True, True, False, False] * 2, strict=True):
        assert "content-type" not in seen.headers
        assert seen.headers.get("x-client-content-type") == ("multipart/form-data; boundary=x, y" if named else None)
        assert "x-open-inference" not in seen.headers


def test_torchserve_gets_only_the_headers_that_it_needs(door: Door) -> None:
    needed = {"content-encoding": "identity", "inference-header-content-length": "2"}
    others = {
        "User-Agent": "x",
        "Accept": "*/*",
        "Cookie": "a=b",
        "Explain": "True",
        "describe": "True",
        "Content-Length-": "1",
    }
    headers = "".join(f"{name}: {value}\r\n" for name, value in (needed | others).items())
    for body in (b"late", b"x" * 20_000):
        with door.connect(request(body, headers=headers)) as client:
            assert client.reply().status == 200
        seen = door.stub.requests[-1]
        assert seen.headers == needed | {"content-length": str(len(body))}
        assert seen.body == body


def test_a_key_does_not_reach_torchserve(door: Door) -> None:
    for body in (b"late", b"x" * 20_000):
        with door.connect(request(body, headers="Authorization: Bearer secret\r\n")) as client:
            assert client.reply().status == 200
    managed = Address("management_address", "127.0.0.1", door.management_port).connection(60)
    managed.request("GET", "/models", headers={"Authorization": "Bearer secret"})
    assert managed.getresponse().status == 200
    managed.close()
    assert len(door.stub.requests) == 3
    for seen in door.stub.requests:
        assert "authorization" not in seen.headers


START = b"POST /predictions/sentiment HTTP/1.1\r\nHost: door\r\n"
CHUNKS = b"4\r\nlate\r\n0\r\n\r\n"
REFUSED = {
    "not HTTP": (b"late\r\n\r\n", 400),
    "a prior-knowledge HTTP/2 client": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/1.0": (START.replace(b"1.1", b"1.0") + b"Content-Length: 4\r\n\r\nlate", 505),
    "HTTP/3.7": (START.replace(b"1.1", b"3.7") + b"Content-Length: 4\r\n\r\nlate", 505),
    "a signed length": (START + b"Content-Length: +4\r\n\r\nlate", 400),
    "two lengths": (START + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nlate", 400),
    "an endless length": (START + b"Content-Length: 99999999999999999999\r\n\r\nlate", 400),
    "a control character before a header": (
        START + b"\x0bTransfer-Encoding: chunked\r\n\r\n4\r\nlate\r\n0\r\n\r\n",
        400,
    ),
    "a space after a header": (START + b"Content-Length : 4\r\n\r\nlate", 400),
    "a compressed and chunked body": (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS, 422),
    "an unknown encoding": (START + b"Transfer-Encoding: identity\r\n\r\nlate", 400),
    "a malformed chunk": (START + b"Transfer-Encoding: chunked\r\n\r\nz\r\nlate\r\n0\r\n\r\n", 400),
    "two content types": (START + b"Content-Type: a/b\r\ncontent-type: c/d\r\nContent-Length: 4\r\n\r\nlate", 400),
    "a long address": (b"POST /predictions/" + b"x" * 2_000 + b" HTTP/1.1\r\nHost: door\r\n\r\n", 414),
    "large headers": (START + b"A: " + b"x" * 8_000 + b"\r\nContent-Length: 4\r\n\r\nlate", 431),
    "many headers": (START + b"A: b\r\n" * 200 + b"Content-Length: 4\r\n\r\nlate", 400),
    "a tunnel": (b"CONNECT door:80 HTTP/1.1\r\nHost: door:80\r\n\r\n", 404),
}


@pytest.mark.parametrize("case", REFUSED)
def test_malformed_http_does_not_reach_torchserve(door: Door, case: str) -> None:
    sent, status = REFUSED[case]
    with door.connect(sent) as client:
        assert client.reply().status == status
    assert not door.stub.requests


@pytest.mark.parametrize("path", ["/ready", "/ping", "/ready?verbose=1"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_health_check_may_use_http_1_0(door: Door, method: str, path: str) -> None:
    """nginx, HAProxy's `option httpchk` and `ab` use this version by default, some without the header Host."""
    for headers in ("", "Host: door\r\n", "Host: door\r\nConnection: keep-alive\r\n"):
        with door.connect(f"{method} {path} HTTP/1.0\r\n{headers}\r\n".encode()) as client:
            assert client.reply(head=method == "HEAD").status == 200
    for sent, status in ((f"POST {path} HTTP/1.0", 405), (f"GET {path} HTTP/3.7", 505), ("GET /v2 HTTP/1.0", 505)):
        with door.connect(f"{sent}\r\nHost: door\r\n\r\n".encode()) as client:
            assert client.reply().status == status


def test_at_most_one_of_two_contradictory_lengths_reaches_torchserve(door: Door) -> None:
    """RFC 9112, section 6.3: the chunks count, the length is dropped, and the connection ends, against smuggling."""
    body = b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
    with door.connect(START + body + request(b"smuggled")) as client:
        assert client.reply().body == b"no"
        assert client.is_closed()
    [seen] = door.stub.requests
    assert seen.body == b"no"
    assert not {"content-length", "transfer-encoding"} <= set(seen.headers)


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.0"])
def test_a_connection_stays_http_1(door: Door, protocol: str) -> None:
    headers = (
        f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    )
    with door.connect(request(headers=headers)) as client:
        assert client.reply().body == b"late"
        client.send(request(b"again"))
        assert client.reply().body == b"again"
    assert "upgrade" not in door.stub.requests[0].headers


@pytest.mark.parametrize("size", [4, 20_000])
def test_pipelined_requests_are_answered_in_order(door: Door, size: int) -> None:
    """The door sends one request of a connection at a time, so TorchServe never queues the next one."""
    bodies = [f"{number:04}".encode() * (size // 4) for number in range(40)]
    with door.connect(b"".join(map(request, bodies))) as client:
        assert [client.reply().body for _ in bodies] == bodies
    assert door.stub.most_at_once == 1


def test_a_connection_to_torchserve_has_one_request_at_a_time(door: Door) -> None:
    clients = [door.connect(request(str(number).encode())) for number in range(200)]
    assert [int(client.reply().body) for client in clients] == list(range(200))
    for client in clients:
        client.close()
    assert door.stub.most_at_once <= 64


@pytest.mark.parametrize("headers", ["", "Expect: 100-continue\r\n"])
@pytest.mark.parametrize("body", [b"late", b"x" * 2_500_000], ids=len)
def test_a_body_reaches_torchserve_unchanged(door: Door, body: bytes, headers: str) -> None:
    head, _, _ = request(body, headers=headers).partition(b"\r\n\r\n")
    with door.connect(head + b"\r\n\r\n") as client:
        if headers:
            assert client.reply().status == 100
        client.send(body)
        assert client.reply().body == body
    [seen] = door.stub.requests
    assert seen.body == body


def test_a_body_in_chunks_of_one_byte_reaches_torchserve(door: Door) -> None:
    body = b"late" * 50_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with door.connect(START + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n") as client:
        assert client.reply().body == body


FAILURES = {"a lost connection": None, "500": Reply(500), "503": Reply(503)}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("size", [4, 2_400_000])
def test_a_failed_request_is_retried_once(door: Door, failure: str, size: int) -> None:
    def fail_once(seen: Request) -> Reply | None:
        return FAILURES[failure] if len(door.stub.requests) == 1 else Reply(200, {}, seen.body)

    door.stub.answer = fail_once
    body = b"x" * size
    with door.connect(request(body)) as client:
        assert client.reply().body == body
    assert [seen.body for seen in door.stub.requests] == [body, body]


def test_a_request_that_fails_twice_is_an_error(door: Door) -> None:
    door.stub.answer = lambda _: None
    for path, kind in (("/predictions/sentiment", "BadGatewayException"), ("/v2/models/sentiment/infer", "")):
        for size in (4, 20_000):
            with door.connect(request(b"x" * size, path=path)) as client:
                reply = client.reply()
                assert reply.status == 502
                body = json.loads(reply.body)
                assert body.get("type", "") == kind
                assert ("error" in body) is path.startswith("/v2")
    assert len(door.stub.requests) == 8


@pytest.mark.parametrize("path", ["/v2/models/sentiment/infer", "/v2/models/sentiment"])
@pytest.mark.parametrize("status", [404, 500, 503, 507])
@pytest.mark.parametrize("from_handler", [False, True])
def test_torchserves_own_errors_have_the_form_of_the_open_inference_protocol(
    door: Door, path: str, status: int, from_handler: bool
) -> None:
    """The handler's errors have the form already."""
    headers = {"content-type": "application/json"} | ({"x-model-version": "1.0"} if from_handler else {})
    answer = Reply(status, headers, b'{"code": 1, "type": "X", "message": "x"}')
    door.stub.answer = lambda _: answer
    method, body = ("POST", b"late") if path.endswith("infer") else ("GET", b"")
    with door.connect(request(body, method, path)) as client:
        reply = client.reply()
    if from_handler:
        assert (reply.status, reply.body) == (status, answer.body)
    else:
        assert reply.status == (500 if status == 507 else status)
        assert list(json.loads(reply.body)) == ["error"]
        assert ("retry-after" in reply.headers) is (status == 503)
