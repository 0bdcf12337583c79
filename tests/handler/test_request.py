"""The first step of a request: reading the texts of its body."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.errors import (
    BlankTextError,
    ContentEncodingError,
    NotJsonError,
    NotUtf8Error,
    RequestError,
    TooLargeError,
    WrongShapeError,
)
from handler.limits import Limits
from handler.request import Form, Request, read_request

LIMITS = Limits(max_text_characters=50, max_texts=3, max_request_characters=100)
TEXT = {"content-type": "text/plain"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
UNTYPED = {"content-length": "1"}
GRPC: dict[str, object] = {"content-type": {"content-type": ""}}
"""A gRPC request has no headers. TorchServe hands over the content type of an input with the name `content-type`."""


def read(body: object, headers: Mapping[str, object]) -> Request:
    return read_request({"body": body}, headers, LIMITS)


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain; charset*=utf-8''utf-8"},
        TEXT,
        {"Content-Type": "text/plain; charset=UTF-8"},
        UNTYPED,
        {"content-type": "application/octet-stream"},
    ],
)
def test_the_body_of_a_text_is_the_text(headers: dict[str, str]) -> None:
    assert read("Grüße ✈".encode(), headers) == Request(("Grüße ✈",), Form.SINGLE)


@pytest.mark.parametrize("value", ['{"text": "a"}', '["a"]', "[]", "\ufeffa", "[a]", "{"])
def test_a_body_with_the_type_text_plain_is_always_the_text(value: str) -> None:
    assert read(value.encode(), TEXT) == Request((value.lstrip("\ufeff"),), Form.SINGLE)


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
def test_a_json_body_has_the_texts_and_the_form_of_its_shape(
    value: object, expected: Request, content_type: str
) -> None:
    assert read(as_json(value), {"content-type": content_type}) == expected


@pytest.mark.parametrize(("body", "headers"), [(b"late", TEXT), (b"late", UNTYPED), (b'{"text": "late"}', JSON)])
def test_query_parameters_are_ignored(body: bytes, headers: dict[str, str]) -> None:
    """For `POST /invocations?text=early`, TorchServe adds the query parameters to the fields, before the body."""
    assert read_request({"body": body, "text": b"early"}, headers, LIMITS).texts == ("late",)
    assert read_request({"body": (b"early", body)}, headers, LIMITS).texts == ("late",)


@pytest.mark.parametrize("name", ["text", "data", "body"])
@pytest.mark.parametrize("headers", [FORM, MULTIPART])
def test_the_field_of_a_form_is_the_exact_text(headers: dict[str, str], name: str) -> None:
    fields = {name: b'["a", "b"]', "other": b"c"}
    assert read_request(fields, headers, LIMITS) == Request(('["a", "b"]',), Form.SINGLE)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"text": b"a", "data": b"b"}, FORM),
        ({"text": b"a", "body": b"a"}, MULTIPART),
        ({"text": (b"a", b"b")}, FORM),
        ({"data": (b"a", b"a")}, MULTIPART),
        ({"text": b"a", "data": b""}, GRPC),
        ({"body": b'{"text": "a", "text": "b"}'}, JSON),
        ({"body": b'[{"text": "a", "text": "a"}]'}, UNTYPED),
        ({"body": b'{"instances": ["a"], "instances": []}'}, JSON),
        ({"data": b'{"text": "a", "text": "b"}'}, GRPC),
    ],
)
def test_two_texts_where_one_is_expected_are_refused(fields: dict[str, object], headers: Mapping[str, object]) -> None:
    with pytest.raises(WrongShapeError, match="more than on"):
        read_request(fields, headers, LIMITS)


def test_a_repeated_name_that_is_not_read_is_ignored() -> None:
    assert read(b'{"id": 1, "text": "a", "id": NaN}', JSON) == Request(("a",), Form.SINGLE)
    assert read_request({"text": b"a", "id": (b"1", b"2")}, FORM, LIMITS) == Request(("a",), Form.SINGLE)


@pytest.mark.parametrize("headers", [UNTYPED, {"content-type": "application/octet-stream"}, GRPC])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", Request(("a",), Form.SINGLE)),
        ('{"text": "a"}', Request(("a",), Form.SINGLE)),
        (' \r\n["a", "b"]', Request(("a", "b"), Form.LIST)),
        ("[]", Request((), Form.LIST)),
        ('{"instances": ["a"]}', Request(("a",), Form.INSTANCES)),
        ("[late] again", Request(("[late] again",), Form.SINGLE)),
        ('{"text": "late', Request(('{"text": "late',), Form.SINGLE)),
        ('"a"', Request(('"a"',), Form.SINGLE)),
        ("null", Request(("null",), Form.SINGLE)),
        ("[" * 20, Request(("[" * 20,), Form.SINGLE)),
    ],
)
def test_without_a_content_type_objects_and_arrays_are_json_and_other_bodies_are_texts(
    headers: Mapping[str, object], mark: str, value: str, expected: Request
) -> None:
    assert read_request({"body": (mark + value).encode()}, headers, LIMITS) == expected


@pytest.mark.parametrize("value", ['{"txet": "a"}', "[1]", "{}"])
def test_without_a_content_type_json_of_another_shape_is_refused_with_the_expected_forms(value: str) -> None:
    for headers in (UNTYPED, GRPC):
        with pytest.raises(WrongShapeError, match="text/plain"):
            read(value.encode(), headers)


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.replace("\ufeff", "").strip()), st.integers(0, 2))
def test_a_text_is_the_same_in_every_form(text: str, marks: int) -> None:
    """Byte-order marks before the text and before the JSON have no effect."""
    marked = "\ufeff" * marks + text
    raw, single = marked.encode(), "\ufeff".encode() + as_json({"text": marked})
    ways: list[tuple[dict[str, object], Mapping[str, object]]] = [
        ({"body": raw}, TEXT),
        ({"text": raw}, FORM),
        ({"data": raw}, MULTIPART),
        ({"body": raw}, FORM),
        ({"body": single}, JSON),
        ({"body": single}, UNTYPED),
        ({"data": single}, GRPC),
        ({"body": as_json([marked])}, JSON),
        ({"body": as_json([{"text": marked}])}, UNTYPED),
        ({"text": as_json({"instances": [marked]})}, GRPC),
        ({"body": as_json({"instances": [{"text": marked}]})}, JSON),
    ]
    if text.lstrip("\ufeff").lstrip()[:1] not in ("{", "["):
        ways += [({"body": raw}, UNTYPED), ({"data": raw}, GRPC)]
    assert {read_request(fields, headers, LIMITS).texts for fields, headers in ways} == {(text.lstrip("\ufeff"),)}


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "identity, gzip", "utf-8"])
@pytest.mark.parametrize("headers", [TEXT, JSON, FORM, UNTYPED])
def test_a_compressed_body_is_refused_in_every_form(headers: dict[str, str], encoding: str) -> None:
    with pytest.raises(ContentEncodingError) as caught:
        read(b"\x1f\x8b", headers | {"Content-Encoding": encoding})
    assert caught.value.status == 415


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_the_encoding_identity_is_accepted(encoding: str) -> None:
    assert read(b"a", TEXT | {"content-encoding": encoding}).texts == ("a",)


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"body": b"a"}, {"content-type": "text/plain", "Content-Type": "application/json"}),
        # If there are two headers, TorchServe uses the first to read the body, and hands over the second.
        ({"body": b"a"}, {"content-type": "text/plain", "body": {"content-type": "application/json"}}),
        ({"text": b"a"}, {"content-type": "text/plain"}),
        ({"body": b"text=a"}, FORM | {"body": {"content-type": "text/plain"}, "Content-Type": "text/plain"}),
    ],
)
def test_two_content_types_are_refused(fields: dict[str, object], headers: dict[str, object]) -> None:
    with pytest.raises(WrongShapeError, match="more than one Content-Type"):
        read_request(fields, headers, LIMITS)


def test_a_form_that_torchserve_could_not_decode_is_refused() -> None:
    """The content type of the form has no boundary."""
    headers = {"content-type": "multipart/form-data", "body": {"content-type": "multipart/form-data"}}
    with pytest.raises(WrongShapeError, match="boundary"):
        read_request({"body": b"--x\r\n"}, headers, LIMITS)


@pytest.mark.parametrize("name", ["data", "text", "body"])
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
def test_a_grpc_input_may_be_any_body(name: str, value: bytes, expected: Request) -> None:
    assert read_request({name: value, "content-type": b""}, GRPC | {name: {"content-type": ""}}, LIMITS) == expected


@pytest.mark.parametrize(
    ("fields", "headers", "error"),
    [
        ({"body": b"\xff\xfe"}, TEXT, NotUtf8Error),
        ({"body": b'{"text": "\xff"}'}, JSON, NotUtf8Error),
        ({"body": b'{"text": "\\ud83d"}'}, JSON, NotUtf8Error),
        ({"body": "Grüße".encode("latin-1")}, {"content-type": "text/plain; charset=latin-1"}, NotUtf8Error),
        ({"body": b"late"}, {"content-type": f"text/plain; charset*{'1' * 4_400}=x"}, WrongShapeError),
        ({"text": b"\xff"}, FORM, NotUtf8Error),
        ({"data": b"\xff"}, {}, NotUtf8Error),
        ({"data": b'["a", 1]'}, {}, WrongShapeError),
        ({"data": b'{"txet": "late"}'}, {}, WrongShapeError),
        ({"date": b"a"}, FORM, WrongShapeError),
        ({"date": b"a"}, GRPC, WrongShapeError),
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
        ({"body": b""}, UNTYPED, BlankTextError),
        ({"data": b""}, GRPC, BlankTextError),
        ({}, GRPC, WrongShapeError),
        ({"body": "\ufeff".encode()}, TEXT, BlankTextError),
        ({"body": b'["\\ufeff \\ufeff"]'}, JSON, BlankTextError),
        ({"body": b" \t\n"}, TEXT, BlankTextError),
        ({"body": "\u2003\u00a0".encode()}, TEXT, BlankTextError),
        ({"body": b'["a", " "]'}, JSON, BlankTextError),
        ({"body": b"a" * 51}, TEXT, TooLargeError),
        ({"body": as_json(["a"] * 4)}, JSON, TooLargeError),
        ({"body": as_json(["a" * 40] * 3)}, JSON, TooLargeError),
    ],
)
def test_an_invalid_body_gets_its_error_type(fields: dict[str, Any], headers: dict[str, str], error: type) -> None:
    with pytest.raises(RequestError) as caught:
        read_request(fields, headers, LIMITS)
    assert type(caught.value) is error
    assert len(str(caught.value)) > 20, "a message says what was wrong and what is expected"


def test_limits_count_characters_and_are_inclusive() -> None:
    assert len(read(("✈" * 50).encode(), TEXT).texts[0]) == 50
    assert read(as_json(["a" * 50, "b" * 50]), JSON).characters == 100


def test_an_error_names_the_item_of_a_list() -> None:
    with pytest.raises(BlankTextError, match="Item 1"):
        read(b'["a", " "]', JSON)


@given(
    st.text(), st.sampled_from(["body", "text", "data"]), st.sampled_from([TEXT, JSON, FORM, MULTIPART, UNTYPED, {}])
)
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
        assert not any(text.startswith("\ufeff") for text in request.texts)


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
def test_a_limit_that_is_not_a_number_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="CLASSIFIER_MAX_TEXTS must be a whole number above 0"):
        Limits.from_environment({"CLASSIFIER_MAX_TEXTS": value})


def test_a_limit_of_thousands_of_digits_is_refused_with_its_start() -> None:
    """Python does not convert so many digits."""
    expected = r"CLASSIFIER_MAX_TEXTS must be a whole number above 0 of at most 18 digits, not '9+\.\.\.9+'\.$"
    with pytest.raises(ValueError, match=expected):
        Limits.from_environment({"CLASSIFIER_MAX_TEXTS": "9" * 5_000})


def test_limits_come_from_the_environment() -> None:
    assert Limits.from_environment({"CLASSIFIER_MAX_TEXTS": "7", "CLASSIFIER_MAX_BATCH_CHARACTERS": ""}) == Limits(
        max_texts=7
    )
