"""The Open Inference Protocol: tensors of texts in requests, and tensors of predictions in replies."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handler import batch, open_inference
from handler.batch import Kind
from handler.classifier import TextClassifier
from handler.errors import BlankTextError, NotJsonError, NotUtf8Error, RequestError, TooLargeError, WrongShapeError
from handler.limits import Limits
from handler.open_inference import Output, Outputs
from handler.prediction import Prediction
from handler.reply import Model, Reply
from handler.request import Request, read_request
from handler.task import Task

LIMITS = Limits(max_text_characters=50, max_texts=3, max_request_characters=100)
INFER = {"content-type": "application/octet-stream", "X-Open-Inference": "infer"}
METADATA = {"content-type": "application/octet-stream", "x-open-inference": "metadata"}
LENGTH = "inference-header-content-length"
BOTH = (Output("label", False), Output("scores", False))


def tensor(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | changes


def packed(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def binary_row(request: dict[str, Any], binary: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request with a binary tensor."""
    head = as_json(request)
    return head + binary, INFER | {LENGTH: str(len(head))}


def binary_request(*texts: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    binary = packed(*texts)
    shape = {"name": "text", "shape": [len(texts)], "datatype": "BYTES"}
    return binary_row({"inputs": [shape | {"parameters": {"binary_data_size": len(binary)}}]} | members, binary)


def read(body: bytes, headers: dict[str, str] = INFER, limits: Limits = LIMITS) -> Request:
    return read_request({"body": body}, headers, limits)


@pytest.mark.parametrize(
    "given_tensor",
    [
        tensor("a", "b"),
        tensor("a", "b", shape=[2, 1]),
        tensor("a", "b", shape=[2, 1], data=[["a"], ["b"]]),
        tensor("\ufeffa", "\ufeff\ufeffb"),
        tensor("a", "b", parameters={"content_type": "str"}),
        tensor("a", "b", parameters=None),
    ],
)
def test_the_texts_of_a_json_tensor_are_read(given_tensor: dict[str, Any]) -> None:
    assert read(as_json({"inputs": [given_tensor]})) == Request(("a", "b"), Outputs(None, BOTH))


@pytest.mark.parametrize("content_type", [None, "application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_the_content_type_is_ignored(content_type: str | None) -> None:
    """Clients of the protocol send no content type, or the default of their library."""
    headers = INFER if content_type is None else INFER | {"X-Client-Content-Type": content_type}
    assert read(as_json({"inputs": [tensor("a")]}), headers).texts == ("a",)


def test_the_texts_of_a_binary_tensor_are_read() -> None:
    assert read(*binary_request("✈".encode(), "\ufeffb".encode())).texts == ("✈", "b")
    assert read(*binary_request()).texts == ()


@pytest.mark.parametrize(
    ("members", "outputs"),
    [
        ({}, Outputs(None, BOTH)),
        ({"id": "", "outputs": []}, Outputs("", BOTH)),
        ({"id": None, "outputs": None, "parameters": None}, Outputs(None, BOTH)),
        ({"id": "7", "outputs": [{"name": "scores"}]}, Outputs("7", (Output("scores", False),))),
        ({"outputs": [{"name": "scores"}, {"name": "label"}]}, Outputs(None, BOTH[::-1])),
        ({"parameters": {"binary_data_output": True}}, Outputs(None, (Output("label", True), Output("scores", True)))),
        (
            {
                "parameters": {"binary_data_output": True, "priority": 1},
                "outputs": [{"name": "scores", "parameters": {"binary_data": False}}, {"name": "label"}],
            },
            Outputs(None, (Output("scores", False), Output("label", True))),
        ),
        (
            {"outputs": [{"name": "label", "parameters": {"binary_data": True}}]},
            Outputs(None, (Output("label", True),)),
        ),
    ],
)
def test_the_requested_outputs_are_read(members: dict[str, Any], outputs: Outputs) -> None:
    assert read(as_json({"inputs": [tensor("a")]} | members)) == Request(("a",), outputs)


SHAPE = {"name": "text", "shape": [1], "datatype": "BYTES"}
SIZED = {"inputs": [SHAPE | {"parameters": {"binary_data_size": 5}}]}
WRONG_JSON: dict[str, tuple[object, type[RequestError], str]] = {
    "not an object": ([tensor("a")], WrongShapeError, "not a JSON object"),
    "no inputs": ({}, WrongShapeError, "`inputs`"),
    "no input": ({"inputs": []}, WrongShapeError, "0 inputs"),
    "an input that is not an object": ({"inputs": ["a"]}, WrongShapeError, "`inputs`"),
    "two inputs": ({"inputs": [tensor("a"), tensor("b")]}, WrongShapeError, "2 inputs"),
    "another name": ({"inputs": [tensor("a", name="x")]}, WrongShapeError, "name of the input"),
    "no name": ({"inputs": [{"shape": [1], "datatype": "BYTES", "data": ["a"]}]}, WrongShapeError, "name of the input"),
    "another datatype": ({"inputs": [tensor("a", datatype="FP32")]}, WrongShapeError, "datatype"),
    "no shape": ({"inputs": [tensor("a", shape=None)]}, WrongShapeError, "shape"),
    "an empty shape": ({"inputs": [tensor("a", shape=[])]}, WrongShapeError, "shape"),
    "a shape of a Boolean": ({"inputs": [tensor("a", shape=[True])]}, WrongShapeError, "shape"),
    "a shape with a Boolean": ({"inputs": [tensor("a", shape=[1, True])]}, WrongShapeError, "shape"),
    "a shape of strings": ({"inputs": [tensor("a", shape=["1"])]}, WrongShapeError, "shape"),
    "a negative shape": ({"inputs": [tensor("a", shape=[-1])]}, WrongShapeError, "shape"),
    "a shape of three dimensions": ({"inputs": [tensor("a", shape=[1, 1, 1])]}, WrongShapeError, "shape"),
    "a shape with two columns": ({"inputs": [tensor("a", "b", shape=[1, 2])]}, WrongShapeError, "shape"),
    "more elements": ({"inputs": [tensor("a", "b", shape=[1])]}, WrongShapeError, "list of 1 strings"),
    "fewer elements": ({"inputs": [tensor("a", shape=[2])]}, WrongShapeError, "list of 2 strings"),
    "a number": ({"inputs": [tensor("a", data=[1])]}, WrongShapeError, "Item 0"),
    "nested too deeply": ({"inputs": [tensor("a", data=[["a"]])]}, WrongShapeError, "Item 0"),
    "partly nested": (
        {"inputs": [tensor("a", "b", shape=[2, 1], data=["a", ["b"]])]},
        WrongShapeError,
        "Item 1",
    ),
    "data that is a string": ({"inputs": [tensor("a", data="a")]}, WrongShapeError, "list of 1"),
    "no data": ({"inputs": [SHAPE]}, WrongShapeError, "neither"),
    "shared memory": ({"inputs": [SHAPE | {"parameters": {"shared_memory_region": "x"}}]}, WrongShapeError, "neither"),
    "data in both forms": ({"inputs": [tensor("a", parameters={"binary_data_size": 0})]}, WrongShapeError, "both"),
    "missing binary data": (SIZED, WrongShapeError, "0 bytes"),
    "parameters that are not an object": ({"inputs": [tensor("a", parameters=1)]}, WrongShapeError, "parameters"),
    "outputs that are not a list": ({"inputs": [tensor("a")], "outputs": {}}, WrongShapeError, "outputs"),
    "an output that is not an object": ({"inputs": [tensor("a")], "outputs": ["label"]}, WrongShapeError, "Output 0"),
    "an unknown output": ({"inputs": [tensor("a")], "outputs": [{"name": "x"}]}, WrongShapeError, "Output 0"),
    "an output with a name that is not a string": (
        {"inputs": [tensor("a")], "outputs": [{"name": []}]},
        WrongShapeError,
        "Output 0",
    ),
    "a repeated output": (
        {"inputs": [tensor("a")], "outputs": [{"name": "label"}] * 2},
        WrongShapeError,
        "more than once",
    ),
    "many outputs": ({"inputs": [tensor("a")], "outputs": [{"name": "label"}] * 99}, WrongShapeError, "more than once"),
    "a flag that is not a Boolean": (
        {"inputs": [tensor("a")], "parameters": {"binary_data_output": 1}},
        WrongShapeError,
        "true",
    ),
    "classification": (
        {"inputs": [tensor("a")], "outputs": [{"name": "scores", "parameters": {"classification": 1}}]},
        WrongShapeError,
        "classification",
    ),
    "an id that is not a string": ({"id": 1, "inputs": [tensor("a")]}, WrongShapeError, "`id`"),
    "a long id": ({"id": "a" * 1_001, "inputs": [tensor("a")]}, TooLargeError, "`id`"),
    "an id that is not Unicode": ({"id": "\ud800", "inputs": [tensor("a")]}, NotUtf8Error, "`id`"),
    "a text that is not Unicode": ({"inputs": [tensor("a\ud800")]}, NotUtf8Error, "Item 0"),
    "a blank text": ({"inputs": [tensor("a", " ")]}, BlankTextError, "Item 1"),
    "a long text": ({"inputs": [tensor("a" * 51)]}, TooLargeError, "Item 0"),
    "many texts": ({"inputs": [tensor(*"abcd")]}, TooLargeError, "more than 3 texts"),
    "a huge count": ({"inputs": [tensor("a", shape=[10**4_000])]}, TooLargeError, "more than 3 texts"),
    "too much text": ({"inputs": [tensor(*["a" * 40] * 3)]}, TooLargeError, "120 characters"),
}
WRONG_BYTES: dict[str, tuple[tuple[bytes, dict[str, str]], type[RequestError], str]] = {
    "an empty body": ((b"", INFER), NotJsonError, "JSON"),
    "not JSON": ((b"late", INFER), NotJsonError, "JSON"),
    "a repeated name": ((b'{"inputs": [], "inputs": []}', INFER), WrongShapeError, "more than once"),
    "a repeated name in an inner object": (
        (b'{"inputs": [{"x": 1, "x": 1}]}', INFER),
        WrongShapeError,
        "more than once",
    ),
    "deep nesting": ((b'{"inputs":' * 50_000, INFER), NotJsonError, "JSON"),
    "not UTF-8": ((b'{"inputs": "\xff"}', INFER), NotUtf8Error, "UTF-8"),
    "a length that is not a number": ((b"{}", INFER | {LENGTH: "-1"}), WrongShapeError, "number"),
    "a length of many digits": ((b"{}", INFER | {LENGTH: "9" * 5_000}), WrongShapeError, "number"),
    "a length of non-decimal digits": ((b"{}", INFER | {LENGTH: "²"}), WrongShapeError, "number"),
    "a length beyond the body": ((b"{}", INFER | {LENGTH: "3"}), WrongShapeError, "2 bytes"),
    "a length within the JSON": ((as_json(SIZED), INFER | {LENGTH: "9"}), NotJsonError, "JSON"),
    "two lengths": (
        (b"{}", INFER | {LENGTH: "1", "Inference-Header-Content-Length": "2"}),
        WrongShapeError,
        "more than",
    ),
    "a wrong size": (binary_row(SIZED, packed(b"aa")), WrongShapeError, "6 bytes"),
    "a size that is not a number": (
        binary_row({"inputs": [SHAPE | {"parameters": {"binary_data_size": "5"}}]}, packed(b"a")),
        WrongShapeError,
        "5 bytes",
    ),
    "unexpected bytes": (binary_row({"inputs": [tensor("a")]}, b"a"), WrongShapeError, "1 bytes"),
    "an element that is too long": (binary_row(SIZED, b"\xff\xff\xff\xffa"), WrongShapeError, "Element 0"),
    "fewer elements": (
        binary_row(SIZED | {"inputs": [SIZED["inputs"][0] | {"shape": [2]}]}, packed(b"a")),
        WrongShapeError,
        "1 elements",
    ),
    "more elements": (
        binary_request(b"a", b"b", inputs=[SHAPE | {"parameters": {"binary_data_size": 10}}]),
        WrongShapeError,
        "more than the 1",
    ),
    "an element that is not UTF-8": (binary_request(b"a", b"\xff"), NotUtf8Error, "Item 1"),
    "an empty element": (binary_request(b""), BlankTextError, "Item 0"),
    "a body that is compressed": ((b"\x1f\x8b", INFER | {"Content-Encoding": "gzip"}), RequestError, "gzip"),
    "another charset": (
        (b"{}", INFER | {"x-client-content-type": "text/json; charset=utf-16"}),
        NotUtf8Error,
        "utf-16",
    ),
}


@pytest.mark.parametrize("name", [*WRONG_JSON, *WRONG_BYTES])
def test_the_error_for_an_invalid_request_names_the_fault(name: str) -> None:
    if name in WRONG_JSON:
        value, error, message = WRONG_JSON[name]
        body, headers = as_json(value), INFER
    else:
        (body, headers), error, message = WRONG_BYTES[name]
    with pytest.raises(error, match=message) as caught:
        read(body, headers)
    assert len(str(caught.value)) > 20


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.text(max_size=3) | st.sampled_from(["text", "BYTES", "label"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=3), values, max_size=2),
    max_leaves=4,
)
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("text") | json_values,
        "shape": st.just([1]) | json_values,
        "datatype": st.just("BYTES") | json_values,
        "data": st.just(["late"]) | json_values,
        "parameters": st.just({"binary_data_size": 8}) | json_values,
    },
)
requests_of_any_kind = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "inputs": st.lists(tensors | json_values, max_size=2) | json_values,
        "outputs": st.just([{"name": "scores", "parameters": {"binary_data": True}}]) | json_values,
        "parameters": st.just({"binary_data_output": True}) | json_values,
    },
)


@settings(max_examples=300)
@given(requests_of_any_kind, st.binary(max_size=9) | st.just(packed(b"late")), st.integers(-2, 2), st.booleans())
def test_any_request_is_read_or_refused(value: object, binary: bytes, off_by: int, has_length: bool) -> None:
    head = as_json(value)
    headers = INFER | ({LENGTH: str(len(head) + off_by)} if has_length else {})
    try:
        request = read(head + binary, headers)
    except RequestError as error:
        assert 400 <= error.status.value < 500
    else:
        assert isinstance(request.form, Outputs)
        assert all(text.strip() for text in request.texts)


@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_binary_tensor_is_read_or_refused(binary: bytes, count: int) -> None:
    shape = {"name": "text", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
    try:
        texts = read(*binary_row({"inputs": [shape]}, binary)).texts
    except RequestError as error:
        assert 400 <= error.status.value < 500
    else:
        assert len(texts) == count


def answer(rows: list[tuple[bytes, dict[str, str]]], classifier: TextClassifier) -> list[Reply]:
    limits = Limits()
    requests = batch.read([({"body": body}, headers) for body, headers in rows], limits)
    results, _ = batch.infer(requests, classifier, limits)
    return batch.write(results, Model("sentiment", "1.0", classifier.task, {"notes": "Of tests."}), limits)


def test_predictions_and_tensors_have_the_same_scores_in_one_batch(classifier: TextClassifier) -> None:
    texts = ["late again", "thank you ✈", "which gate?"]
    infer = as_json({"id": "7", "inputs": [tensor(*texts)]})
    as_list, as_tensors, binary, wrong, metadata = answer(
        [
            (as_json(texts), {"content-type": "application/json"}),
            (infer, INFER),
            binary_request(*map(str.encode, texts), parameters={"binary_data_output": True}),
            (b"{", INFER),
            (b"", METADATA),
        ],
        classifier,
    )
    predictions = json.loads(as_list.body)
    scores = [list(prediction["scores"].values()) for prediction in predictions]
    assert as_tensors.headers == {"content-type": "application/json"}
    assert json.loads(as_tensors.body) == {
        "model_name": "sentiment",
        "model_version": "1.0",
        "id": "7",
        "outputs": [
            {
                "name": "label",
                "shape": [3],
                "datatype": "BYTES",
                "data": [prediction["label"] for prediction in predictions],
            },
            {"name": "scores", "shape": [3, 3], "datatype": "FP32", "data": [score for row in scores for score in row]},
        ],
    }
    length = int(binary.headers["Inference-Header-Content-Length"])
    assert binary.headers["content-type"] == "application/octet-stream"
    head, tail = json.loads(binary.body[:length]), binary.body[length:]
    labels = packed(*(prediction["label"].encode() for prediction in predictions))
    assert [output["parameters"] for output in head["outputs"]] == [
        {"binary_data_size": len(labels)},
        {"binary_data_size": 36},
    ]
    assert "id" not in head
    assert "data" not in head["outputs"][0]
    assert tail[:-36] == labels
    np.testing.assert_array_equal(np.frombuffer(tail[-36:], "<f4").reshape(3, 3), np.array(scores, "<f4"))
    assert (wrong.status.value, list(json.loads(wrong.body))) == (400, ["error"])
    assert json.loads(metadata.body) == {
        "name": "sentiment",
        "versions": ["1.0"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
        ],
        "properties": {"labels": '["negative", "neutral", "positive"]', "notes": "Of tests."},
    }


def test_outputs_are_in_the_requested_order_and_each_is_binary_if_requested(classifier: TextClassifier) -> None:
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}, {"name": "label"}]
    [written] = answer([(as_json({"inputs": [tensor("late")], "outputs": outputs}), INFER)], classifier)
    length = int(written.headers["Inference-Header-Content-Length"])
    first, second = json.loads(written.body[:length])["outputs"]
    assert (first["name"], first["parameters"], len(written.body) - length) == ("scores", {"binary_data_size": 12}, 12)
    assert (second["name"], second["data"]) == ("label", ["negative"])


def test_no_texts_have_empty_tensors(classifier: TextClassifier) -> None:
    for row in ((as_json({"inputs": [tensor()]}), INFER), binary_request()):
        [written] = answer([row], classifier)
        label, scores = json.loads(written.body)["outputs"]
        assert (label["shape"], label["data"], scores["shape"], scores["data"]) == ([0], [], [0, 3], [])


def test_the_limits_of_lists_apply_and_the_error_has_the_protocols_form(classifier: TextClassifier) -> None:
    many = tensor(*["!?" * 60] * 1_000)
    large, small = answer(
        [(as_json({"inputs": [many]}), INFER), (as_json({"inputs": [tensor("a")]}), INFER)], classifier
    )
    assert (large.status.value, small.status.value) == (413, 200)
    assert "token reads" in json.loads(large.body)["error"]


anything = st.text(st.characters(exclude_categories=["Cs"]))
labels_of_any_kind = st.lists(anything, min_size=1, max_size=5, unique=True)
scores_of_any_kind = st.floats(0, 1, width=32)


@given(st.data(), labels_of_any_kind, st.none() | anything, st.lists(st.booleans(), min_size=2, max_size=2))
def test_no_reply_has_more_bytes_than_its_estimate(
    data: st.DataObject, labels: list[str], given_id: str | None, binary: list[bool]
) -> None:
    rows = data.draw(st.lists(st.lists(scores_of_any_kind, min_size=len(labels), max_size=len(labels)), max_size=5))
    outputs = Outputs(given_id, (Output("label", binary[0]), Output("scores", binary[1])))
    task = Task(tuple(labels))
    predictions = [Prediction.from_outputs(np.array(row, np.float32), task) for row in rows]
    body, _ = open_inference.reply(predictions, outputs, task, "m" * 255, "1.0")
    assert len(body) <= open_inference.max_bytes(len(rows), task, outputs)
    largest, _ = open_inference.reply(predictions * 300, outputs, task, "m" * 255, "1.0")
    assert len(largest) <= open_inference.max_bytes(300 * len(rows), task, outputs)


def test_unknown_values_of_the_header_are_ignored() -> None:
    assert batch.read([({"body": b"late"}, {"x-open-inference": "x"})], LIMITS)[0].kind is Kind.PREDICT
