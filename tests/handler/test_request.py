"""The first step: bodies to texts."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import BlankTextError, NotJsonError, NotUtf8Error, RequestError, TooLargeError, WrongShapeError
from handler.limits import Limits
from handler.request import Form, Request, read_request

LIMITS = Limits(max_text_characters=50, max_texts=3, max_request_characters=100)
TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


def read(body: object, headers: dict[str, str]) -> Request:
    return read_request({"body": body}, headers, LIMITS)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "headers",
    [TEXT, {"Content-Type": "text/plain; charset=UTF-8"}, {}, {"content-type": "application/octet-stream"}],
)
def test_a_text_body_is_one_text(headers: dict[str, str]) -> None:
    assert read("Grüße ✈".encode(), headers) == Request(("Grüße ✈",), Form.SINGLE)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"text": "a"}, Request(("a",), Form.SINGLE)),
        ({"text": "a", "id": 7}, Request(("a",), Form.SINGLE)),
        (["a", "b"], Request(("a", "b"), Form.LIST)),
        ([{"text": "a"}, "b"], Request(("a", "b"), Form.LIST)),
        ([], Request((), Form.LIST)),
        ({"instances": ["a", {"text": "b"}]}, Request(("a", "b"), Form.INSTANCES)),
        ({"instances": []}, Request((), Form.INSTANCES)),
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/x+json", "text/json"]
)
def test_json_bodies(value: object, expected: Request, content_type: str) -> None:
    assert read(as_json(value), {"content-type": content_type}) == expected


@pytest.mark.parametrize(("body", "headers"), [(b"late", TEXT), (b"late", {}), (b'{"text": "late"}', JSON)])
def test_an_address_parameter_is_not_taken_for_the_body(body: bytes, headers: dict[str, str]) -> None:
    """TorchServe adds those of `POST /predictions/sentiment?text=early` to the fields."""
    assert read_request({"body": body, "text": b"early"}, headers, LIMITS).texts == ("late",)


def test_json_that_torchserve_has_decoded_reads_alike() -> None:
    assert read({"text": "a"}, JSON) == read(as_json({"text": "a"}), JSON)
    assert read(["a", "b"], JSON) == read(as_json(["a", "b"]), JSON)
    assert read("a", TEXT) == read(b"a", TEXT)


@pytest.mark.parametrize("headers", [FORM, MULTIPART])
def test_a_forms_field_is_the_text_to_the_letter(headers: dict[str, str]) -> None:
    assert read_request({"text": b'["a", "b"]'}, headers, LIMITS) == Request(('["a", "b"]',), Form.SINGLE)


@pytest.mark.parametrize("name", ["data", "text"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"a", Request(("a",), Form.SINGLE)),
        (b'{"text": "a"}', Request(("a",), Form.SINGLE)),
        (b'["a", "b"]', Request(("a", "b"), Form.LIST)),
        (b'{"instances": ["a"]}', Request(("a",), Form.INSTANCES)),
        (b"[late] again", Request(("[late] again",), Form.SINGLE)),
        (b'{"text": "late', Request(('{"text": "late',), Form.SINGLE)),
    ],
)
def test_grpc_input_is_any_body(name: str, value: bytes, expected: Request) -> None:
    assert read_request({name: value}, {}, LIMITS) == expected


@pytest.mark.parametrize(
    ("fields", "headers", "error"),
    [
        ({"body": b"\xff\xfe"}, TEXT, NotUtf8Error),
        ({"body": b'{"text": "\xff"}'}, JSON, NotUtf8Error),
        ({"body": b'{"text": "\\ud83d"}'}, JSON, NotUtf8Error),
        ({"body": "Grüße".encode("latin-1")}, {"content-type": "text/plain; charset=latin-1"}, NotUtf8Error),
        ({"text": b"\xff"}, FORM, NotUtf8Error),
        ({"data": b"\xff"}, {}, NotUtf8Error),
        ({"data": b'["a", 1]'}, {}, WrongShapeError),
        ({"data": b'{"txet": "late"}'}, {}, WrongShapeError),
        ({"data": b"a"}, FORM, WrongShapeError),
        ({"body": b'{"txet": "late"}'}, {"content-type": "text/json"}, WrongShapeError),
        ({"body": b'{"text": "late"}'}, {"content-type": "json"}, WrongShapeError),
        ({"body": b"a"}, {"content-type": "text"}, WrongShapeError),
        ({"body": b'{"text": '}, JSON, NotJsonError),
        ({"body": b""}, JSON, NotJsonError),
        ({"body": b"[" * 100_000}, JSON, NotJsonError),
        ({"body": b"1" * 10_000}, JSON, NotJsonError),
        ({"body": b'"a"'}, JSON, WrongShapeError),
        ({"body": b"null"}, JSON, WrongShapeError),
        ({"body": b"{}"}, JSON, WrongShapeError),
        ({"body": b'{"text": 1}'}, JSON, WrongShapeError),
        ({"body": b'{"text": ["a"]}'}, JSON, WrongShapeError),
        ({"body": b'{"instances": "a"}'}, JSON, WrongShapeError),
        ({"body": b'{"text": "a", "instances": ["b"]}'}, JSON, WrongShapeError),
        ({"body": b'["a", 1]'}, JSON, WrongShapeError),
        ({"body": b'["a", ["b"]]'}, JSON, WrongShapeError),
        ({"body": b'[{"txet": "a"}]'}, JSON, WrongShapeError),
        ({"body": b"a"}, {"content-type": "image/png"}, WrongShapeError),
        ({'{"text": "a"}': b""}, FORM, WrongShapeError),
        ({}, FORM, WrongShapeError),
        ({"txet": b"a"}, MULTIPART, WrongShapeError),
        ({"body": b""}, {}, BlankTextError),
        ({}, {}, BlankTextError),
        ({"body": b" \t\n"}, TEXT, BlankTextError),
        ({"body": "\u2003\u00a0".encode()}, TEXT, BlankTextError),
        ({"body": b'["a", " "]'}, JSON, BlankTextError),
        ({"body": b"a" * 51}, TEXT, TooLargeError),
        ({"body": as_json(["a"] * 4)}, JSON, TooLargeError),
        ({"body": as_json(["a" * 40] * 3)}, JSON, TooLargeError),
    ],
)
def test_wrong_bodies_get_their_error(fields: dict[str, Any], headers: dict[str, str], error: type) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(fields, headers, LIMITS)
    assert type(caught.value) is error
    assert len(str(caught.value)) > 20, "a message says what was wrong and what is expected"


def test_limits_count_characters_and_include_their_bound() -> None:
    assert len(read(("✈" * 50).encode(), TEXT).texts[0]) == 50
    assert read(as_json(["a" * 50, "b" * 50]), JSON).characters == 100


def test_an_error_names_the_item() -> None:
    with pytest.raises(BlankTextError, match="Item 1"):
        read(b'["a", " "]', JSON)


@given(st.text(), st.sampled_from(["body", "text", "data"]), st.sampled_from([TEXT, JSON, FORM, MULTIPART, {}]))
def test_any_string_is_read_or_refused(text: str, name: str, headers: dict[str, str]) -> None:
    secret = "\N{SNOWMAN} a user's own words" if text.strip() else ""
    body = (text + secret).encode("utf-8", "surrogatepass")
    try:
        request = read_request({name: body}, headers, LIMITS)
    except RequestError as error:
        assert 400 <= error.status.value < 500
        assert not secret or secret not in str(error), "a message must not quote"
    else:
        assert all(text.strip() for text in request.texts)


@given(st.binary(), st.sampled_from([TEXT, JSON, {}]))
def test_any_bytes_are_read_or_refused(body: bytes, headers: dict[str, str]) -> None:
    try:
        read(body, headers)
    except RequestError as error:
        assert 400 <= error.status.value < 500


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        read(json.dumps(value).encode(), JSON)
    except RequestError as error:
        assert 400 <= error.status.value < 500


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="CLASSIFIER_MAX_TEXTS must be a whole number above 0"):
        Limits.from_environment({"CLASSIFIER_MAX_TEXTS": value})


def test_limits_come_from_the_environment() -> None:
    assert Limits.from_environment({"CLASSIFIER_MAX_TEXTS": "7", "CLASSIFIER_MAX_BATCH_CHARACTERS": ""}) == Limits(
        max_texts=7
    )
