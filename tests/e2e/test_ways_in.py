"""Tests that the same text gets the same scores in every form of request: HTTP, gRPC and the command line."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handler.classifier import TextClassifier
from tests.e2e import grpc_calls
from tests.e2e.server_process import ONE_WORKER, Project, Server, run_client, sentiment, serving

TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
BYTES = {"content-type": "application/octet-stream"}
MARK = "\ufeff"
LABELS = ("negative", "neutral", "positive")

TEXTS = {
    "plain": "late again",
    "a byte-order mark": f"{MARK}late again",
    "two byte-order marks": f"{MARK}{MARK}late again",
    "a mark inside": f"late {MARK}again",
    "emoji": "😀 late 👨‍👩‍👧 again ✈",
    "padding": "xxpad late xxpad",
    "spaces around it": "  late again \t",
    "a null character": "late\x00again",
    "lines": "late\r\nagain\nand\ragain\r\n",
    "like a form": "text=late&data=again+%20",
    "like a hash tag": "#late & again; 100%",
    "a JSON string": '"late again"',
    "brackets": "[late] again",
    "a brace": '{"text": "late again',
    "like a list": '["late", "again"]',
    "like the API's form": '{"text": "late again"}',
    "like JSON of no form": '{"late": [1]}',
    "like an empty list": "[]",
}
Way = Callable[[Server, str], Any]


def post(server: Server, body: bytes, headers: dict[str, str]) -> Any:
    response = requests.post(server.project.predictions, data=body, headers=headers, timeout=60)
    return {"status": response.status_code, **_single(response.json())}


def multipart(server: Server, name: str, value: tuple[str | None, bytes]) -> Any:
    return _single(requests.post(server.project.predictions, files={name: value}, timeout=60).json())


def grpc(server: Server, name: str, body: bytes) -> Any:
    return _single(json.loads(grpc_calls.predictions(server.project.grpc, "sentiment", **{name: body})))


def _single(value: Any) -> Any:
    """The scores in a response of any form with one prediction."""
    if isinstance(value, dict) and "predictions" in value:
        value = value["predictions"]
    if isinstance(value, list):
        [value] = value
    assert "scores" in value, value
    return {"scores": value["scores"]}


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def encoded_form(text: str, percent: bool) -> bytes:
    """An urlencoded form with every byte percent-encoded, or with as few as possible."""
    if percent:
        return b"other=%&text=" + b"".join(b"%%%02X" % byte for byte in text.encode())
    raw = text.encode().replace(b"%", b"%25").replace(b"&", b"%26").replace(b"+", b"%2B")
    return b"a;b&text=" + raw.replace(b" ", b"+") + b"&"


def hand_made_multipart(text: str, head: str) -> bytes:
    return b"--x'X\r\n" + head.encode() + b"\r\n\r\n" + text.encode() + b"\r\n--x'X--\r\nan epilogue"


def infer(server: Server, request: dict[str, Any], headers: dict[str, str] | None = None, binary: bytes = b"") -> Any:
    """The scores in the response to a request of the Open Inference Protocol."""
    head = as_json(request)
    length = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    url = f"{server.project.inference}/v2/models/sentiment/infer"
    response = requests.post(url, data=head + binary, headers=(headers or {}) | length, timeout=60)
    assert response.status_code == 200, response.text
    [scores] = [output["data"] for output in response.json()["outputs"] if output["name"] == "scores"]
    return {"scores": dict(zip(LABELS, scores, strict=True))}


def tensor(text: str, **changes: object) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]} | changes]}


def binary_tensor(server: Server, text: str) -> Any:
    binary = struct.pack("<I", len(text.encode())) + text.encode()
    request = tensor(text, parameters={"binary_data_size": len(binary)})
    del request["inputs"][0]["data"]
    return infer(server, request, binary=binary)


JSON_FORMS: dict[str, Callable[[str], bytes]] = {
    "single": lambda text: as_json({"text": text}),
    "with other keys": lambda text: as_json({"id": 1, "text": text, "data": "early"}),
    "list": lambda text: as_json([text]),
    "list of objects": lambda text: as_json([{"text": text}]),
    "instances": lambda text: as_json({"instances": [text]}),
    "instances of objects": lambda text: as_json({"instances": [{"text": text}]}),
    "with a mark": lambda text: MARK.encode() + as_json({"text": text}),
}

PART_HEADS = (
    "content-disposition:form-data; name=text",
    'Content-Type: text/plain; charset="UTF-8"\r\nContent-Disposition: form-data; name="data"; filename="text; data"',
    'Content-Transfer-Encoding: 8bit\r\nContent-Disposition: form-data; filename="a"; name="body"; x',
)

WAYS: dict[str, Way] = {
    "text/plain": lambda server, text: post(server, text.encode(), TEXT),
    "text/html": lambda server, text: post(server, text.encode(), {"content-type": "Text/HTML; charset=UTF-8"}),
    "SageMaker's path, and address parameters": lambda server, text: _single(
        requests.post(
            f"{server.project.inference}/invocations",
            params={"text": "early", "model_name": "sentiment", "body": "early"},
            data=text.encode(),
            headers=TEXT,
            timeout=60,
        ).json()
    ),
    "the door's own headers": lambda server, text: post(
        server, text.encode(), TEXT | {"X-Open-Inference": "infer", "X-Client-Content-Type": "application/json"}
    ),
    "KServe's path": lambda server, text: _single(
        requests.post(
            f"{server.project.inference}/v1/models/sentiment:predict", json={"instances": [text]}, timeout=60
        ).json()
    ),
    "client": lambda server, text: json.loads(sentiment(server, "predict", "--json", "--", text).stdout),
    **{
        f"form {name}": lambda server, text, name=name: _single(  # type: ignore[misc]
            requests.post(server.project.predictions, data={name: text.encode(), "other": "early"}, timeout=60).json()
        )
        for name in ("text", "data", "body")
    },
    **{
        f"multipart {name}": lambda server, text, name=name: multipart(server, name, (None, text.encode()))  # type: ignore[misc]
        for name in ("text", "data", "body")
    },
    **{
        f"form, {'each byte' if percent else 'no byte'} encoded": lambda server, text, percent=percent: post(  # type: ignore[misc]
            server, encoded_form(text, percent), FORM
        )
        for percent in (True, False)
    },
    **{
        f"multipart by hand {number}": lambda server, text, head=head: post(  # type: ignore[misc]
            server, hand_made_multipart(text, head), {"content-type": 'Multipart/Form-Data; x=y; Boundary="x\'X"'}
        )
        for number, head in enumerate(PART_HEADS)
    },
    "tensor": lambda server, text: infer(server, tensor(text)),
    "tensor, nested": lambda server, text: infer(server, tensor(text, shape=[1, 1], data=[[text]])),
    "tensor, named as a form": lambda server, text: infer(server, tensor(text), FORM),
    "binary tensor": binary_tensor,
    "file": lambda server, text: multipart(server, "data", ("tweet.txt", text.encode())),
    **{
        f"JSON {form}": lambda server, text, encode=encode: post(server, encode(text), JSON)  # type: ignore[misc]
        for form, encode in JSON_FORMS.items()
    },
    **{
        f"untyped JSON {form}": lambda server, text, encode=encode: post(server, encode(text), {})  # type: ignore[misc]
        for form, encode in JSON_FORMS.items()
    },
    **{
        f"gRPC JSON {form}": lambda server, text, encode=encode: grpc(server, "data", encode(text))  # type: ignore[misc]
        for form, encode in JSON_FORMS.items()
    },
}

UNTYPED: dict[str, Way] = {
    "no content type": lambda server, text: post(server, text.encode(), {}),
    "octet-stream": lambda server, text: post(server, text.encode(), BYTES),
    "gRPC data": lambda server, text: grpc(server, "data", text.encode()),
    "gRPC text": lambda server, text: grpc(server, "text", text.encode()),
    "gRPC body": lambda server, text: grpc(server, "body", text.encode()),
    "gRPC stream": lambda server, text: _single(
        json.loads(*grpc_calls.stream_predictions(server.project.grpc, "sentiment", data=text.encode()))
    ),
}
"""Forms in which the body is the text itself, unless it is a JSON object or array."""


def is_json(text: str) -> bool:
    """Whether a body without a content type is read as JSON."""
    try:
        return isinstance(json.loads(text.lstrip(MARK)), (dict, list))
    except ValueError:
        return False


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_gets_the_same_scores_in_every_form_of_request(
    server: Server, served: TextClassifier, name: str
) -> None:
    text = TEXTS[name]
    expected = dict(zip(served.labels, map(float, served.predict([text.lstrip(MARK)])[0]), strict=True))
    ways = WAYS if is_json(text) else WAYS | UNTYPED
    if "\x00" in text:  # a program's argument cannot contain a null character
        ways = {way: send for way, send in ways.items() if way != "client"}
    for way, send in ways.items():
        assert send(server, text)["scores"] == pytest.approx(expected, abs=1e-5), way


def test_the_command_line_reads_arguments_standard_input_and_files_alike(server: Server, tmp_path: Path) -> None:
    r"""A line ends with a line feed; `\r\n` and a byte-order mark at the start are not part of the text."""
    lines = [TEXTS[name] for name in TEXTS if "\n" not in TEXTS[name] and "\x00" not in TEXTS[name]]
    lines = [f"{MARK}late again", *lines, "late\ragain"]
    file = tmp_path / "texts.txt"
    file.write_bytes("\r\n".join(lines).encode())
    addresses = {"SENTIMENT_URL": server.project.inference}
    by_argument = sentiment(server, "predict", "--json", "--", *lines).stdout
    assert len(by_argument.splitlines()) == len(lines)
    by_file = sentiment(server, "predict", "--json", "--file", str(file)).stdout
    with file.open() as stdin:
        by_line = run_client("predict", "--json", env=addresses, stdin=stdin).stdout
    scores = [[json.loads(line)["scores"] for line in out.splitlines()] for out in (by_argument, by_file, by_line)]
    assert scores[0] == scores[1] == scores[2]


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
        lambda text: text.replace(MARK, "").strip()
    )
)
def test_any_text_gets_the_same_scores_in_every_form_of_request(server: Server, text: str) -> None:
    ways = {way: send for way, send in (WAYS if is_json(text) else WAYS | UNTYPED).items() if way != "client"}
    answers = {way: send(server, text)["scores"] for way, send in ways.items()}
    first = answers["text/plain"]
    for way, scores in answers.items():
        assert scores == pytest.approx(first, abs=1e-5), way


AMBIGUOUS: dict[str, tuple[bytes, dict[str, str]]] = {
    "a repeated field": (b"text=late&text=early", FORM),
    "two fields": (b"text=late&body=early", FORM),
    "the same twice": (b"data=late&data=late", FORM),
    "a repeated key": (b'{"text": "late", "text": "early"}', JSON),
    "a repeated key, untyped": (b'{"text": "late", "text": "early"}', {}),
    "a repeated key in a list": (b'[{"text": "late", "text": "early"}]', JSON),
    "no boundary": (b"--x\r\n", {"content-type": "multipart/form-data"}),
}


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, mar: Path) -> Iterator[Server]:
    """A server without the door, as on a machine without HAProxy: TorchServe itself decodes forms."""
    project = Project(tmp_path_factory.mktemp("direct"), mar, models=ONE_WORKER)
    command = [sys.executable, "-m", "server", "--config", str(project.config), "--direct"]
    with serving(project, command, OMP_NUM_THREADS="1") as running:
        yield running


FORM_WAYS = [
    way for way in WAYS if way.startswith(("form t", "form d", "form b", "multipart t", "multipart d", "file"))
]


def test_forms_get_the_same_scores_without_the_door(direct: Server, served: TextClassifier) -> None:
    for text in TEXTS.values():
        expected = dict(zip(served.labels, map(float, served.predict([text.lstrip(MARK)])[0]), strict=True))
        for way in FORM_WAYS:
            assert WAYS[way](direct, text)["scores"] == pytest.approx(expected, abs=1e-5), way


def test_a_malformed_form_is_not_logged_without_the_door(direct: Server) -> None:
    response = requests.post(direct.project.predictions, data="text=100% zebrafinch", headers=FORM, timeout=60)
    assert response.json()["type"] == "ErrorDataDecoderException"
    direct.wait_for("ErrorDataDecoderException at io.netty")
    assert "zebrafinch" not in direct.log


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_body_is_refused(server: Server, name: str) -> None:
    body, headers = AMBIGUOUS[name]
    response = requests.post(server.project.predictions, data=body, headers=headers, timeout=60)
    assert (response.status_code, response.json()["type"]) == (400, "WrongShapeError"), response.text


def test_a_multipart_form_with_two_texts_is_refused(server: Server) -> None:
    for files in ([("text", "late"), ("text", "early")], [("text", "late"), ("data", "early")]):
        parts = [(name, (None, value)) for name, value in files]
        response = requests.post(server.project.predictions, files=parts, timeout=60)
        assert (response.status_code, response.json()["type"]) == (400, "WrongShapeError"), response.text


def test_grpc_with_two_texts_is_refused(server: Server) -> None:
    error = json.loads(grpc_calls.predictions(server.project.grpc, "sentiment", data=b"late", text=b"early"))
    assert (error["code"], error["type"]) == (400, "WrongShapeError")


@pytest.mark.parametrize("path", ["/predictions/sentiment", "/invocations"])
def test_a_query_parameter_is_not_a_text(server: Server, path: str) -> None:
    query = {"model_name": "sentiment", "text": "early", "data": "early"}
    response = requests.post(server.project.inference + path, params=query, timeout=60)
    assert (response.status_code, response.json()["type"]) == (400, "BlankTextError"), response.text


@pytest.mark.parametrize("name", ["a JSON body", "a text", "a form"])
def test_a_compressed_body_is_415(server: Server, name: str) -> None:
    import gzip

    kind = {"a JSON body": JSON, "a text": TEXT, "a form": {"content-type": "multipart/form-data"}}[name]
    body = gzip.compress(b'{"text": "late"}')
    headers = kind | {"Content-Encoding": "gzip"}
    response = requests.post(server.project.predictions, data=body, headers=headers, timeout=60)
    assert (response.status_code, response.json()["type"]) == (415, "ContentEncodingError"), response.text
    unchanged = requests.post(
        server.project.predictions, data=b"late", headers=TEXT | {"Content-Encoding": "identity"}, timeout=60
    )
    assert unchanged.status_code == 200


@pytest.mark.parametrize("text", [MARK, f"{MARK} {MARK}\n"])
def test_a_text_of_byte_order_marks_is_blank(server: Server, text: str) -> None:
    for body, headers in ((text.encode(), TEXT), (text.encode(), {}), (as_json([text]), JSON)):
        response = requests.post(server.project.predictions, data=body, headers=headers, timeout=60)
        assert (response.status_code, response.json()["type"]) == (400, "BlankTextError"), response.text
