"""Forms that the door passes on: the exact text of the field or an error, in linear time."""

import logging
import re
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, quote_plus, urlencode

import pytest
import requests
from hypothesis import assume, example, given
from hypothesis import strategies as st

from handler import form
from handler.errors import (
    BlankTextError,
    ContentEncodingError,
    NotUtf8Error,
    RequestError,
    TooLargeError,
    WrongShapeError,
)
from handler.limits import Limits
from handler.request import Form, Request, read_request

LIMITS = Limits(max_text_characters=50)
URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=Xy-Z"
LARGEST_BODY = 2_500_000
SECONDS = 0.25
"""Maximum CPU time for any form. The slowest form takes a tenth of it, like a JSON list of the same length."""


def through_the_door(body: bytes, content_type: str, limits: Limits = LIMITS) -> Request:
    headers = {
        "Content-Type": "application/octet-stream",
        "x-client-content-type": content_type,
        "body": {"content-type": "application/octet-stream"},
    }
    return read_request({"body": body}, headers, limits)


def part(name: str, value: bytes, *headers: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"', *headers]
    return b"--Xy-Z\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


END = b"--Xy-Z--\r\n"


def multipart(*parts: bytes) -> bytes:
    return b"".join(parts) + END


@pytest.mark.parametrize("name", ["text", "data", "body"])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"late", "late"),
        (b"late+again", "late again"),
        (b"late%2Bagain%20%E2%9C%88%26%3d%25", "late+again ✈&=%"),
        ("Grüße=".encode(), "Grüße="),
        (b"%EF%BB%BF%ef%bb%bf\xef\xbb\xbflate", "late"),
        (b'["a",+"b"]', '["a", "b"]'),
        (b"late%0D%0A", "late\r\n"),
        (b"late\r\n", "late\r\n"),
        (b"a;b", "a;b"),
    ],
)
def test_an_urlencoded_field_is_the_exact_text(name: str, value: bytes, expected: str) -> None:
    body = b"other=%&&" + name.encode() + b"=" + value + b"&=1&x&Text=2"
    assert through_the_door(body, URLENCODED) == Request((expected,), Form.SINGLE)


def test_the_name_of_a_field_may_be_percent_encoded() -> None:
    assert through_the_door(b"%74%65%78%74=late", URLENCODED).texts == ("late",)
    with pytest.raises(WrongShapeError, match="more than one"):
        through_the_door(b"%74%65%78%74=late&text=early", URLENCODED)


@given(
    st.lists(st.tuples(st.text(max_size=4) | st.sampled_from(["text", "data"]), st.text(max_size=20)), max_size=5),
    st.booleans(),
)
@example([("text", "+ %2B%25 ✈")], True)
def test_an_urlencoded_form_is_read_like_by_the_standard_library(pairs: list[tuple[str, str]], plus: bool) -> None:
    encoded = urlencode(pairs, errors="surrogatepass", quote_via=quote_plus)
    body = (encoded if plus else encoded.replace("+", "%20")).encode()
    expected = [value for name, value in parse_qsl(body.decode(), keep_blank_values=True) if name in ("text", "data")]
    try:
        [text] = through_the_door(body, URLENCODED).texts
    except BlankTextError:
        assert not expected[0].replace("\ufeff", "").strip()
    except RequestError:
        assert len(expected) != 1
    else:
        assert [text] == [expected[0].lstrip("\ufeff")]


@pytest.mark.parametrize("name", ["text", "data", "body"])
@pytest.mark.parametrize(
    "value",
    ["late", "late\r\nagain\r\n", "--Xy-", "\r\n--Xy", "✈ %41+1", "\r\n", "-" * 40, '{"text": "a"}', "\r--Xy-Z"],
)
def test_a_multipart_field_is_the_exact_text(name: str, value: str) -> None:
    text = f"a{value}b"
    body = multipart(part("other", b"\xff\x00"), part(name, text.encode()), part("file", b"", "X: y"))
    assert through_the_door(body, MULTIPART) == Request((text,), Form.SINGLE)


@given(st.text("\r\n-XyZ ", max_size=30))
def test_a_text_may_look_like_a_boundary(value: str) -> None:
    text = f"a{value.replace('--Xy-Z', '')}b"
    assume("--Xy-Z" not in text)
    assert through_the_door(multipart(part("text", text.encode())), MULTIPART).texts == (text,)


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        ('content-disposition:form-data; name="text"', MULTIPART),
        ("CONTENT-DISPOSITION: form-data; name=text", "Multipart/Form-Data; Boundary=Xy-Z"),
        ('Content-Disposition: Form-Data; filename="t.txt"; name="text"', 'multipart/form-data; boundary="Xy-Z"'),
        ('Content-Disposition: form-data; name="text"; x', "multipart/form-data; charset=utf-8; boundary=Xy-Z"),
        ("Content-Disposition: form-data; name=\"text\"; filename*=utf-8''data", MULTIPART),
        ('Content-Disposition: form-data; name="text"\r\nContent-Type: text/plain; charset=UTF-8', MULTIPART),
        ('Content-Disposition: form-data; name="text"\r\nContent-Type: application/json', MULTIPART),
        ('Content-Transfer-Encoding: Binary\r\nContent-Disposition: form-data; name="text"', MULTIPART),
        ('Content-Disposition: form-data; name="text"\r\nEmpty:', MULTIPART),
    ],
)
def test_parts_in_the_form_of_common_clients(head: str, content_type: str) -> None:
    body = b"--Xy-Z\r\n" + head.encode() + b"\r\n\r\nlate\r\n" + END
    for before, after in ((b"", b""), (b"\r\n", b"an epilogue")):
        assert through_the_door(before + body + after, content_type).texts == ("late",)


@given(st.text(min_size=1, max_size=40).filter(lambda text: text.replace("\ufeff", "").strip()), st.booleans())
def test_a_form_from_a_client_library_is_read(text: str, is_file: bool) -> None:
    value = (None if not is_file else "tweet.txt", text.encode())
    for options in ({"files": {"text": value, "x": (None, b"y")}}, {"data": {"text": text.encode(), "x": "y"}}):
        request = requests.Request("POST", "http://localhost", **options).prepare()
        assert isinstance(request.body, (str, bytes))
        body = request.body.encode() if isinstance(request.body, str) else request.body
        assert through_the_door(body, request.headers["Content-Type"]).texts == (text.lstrip("\ufeff"),)


WRONG: dict[str, tuple[bytes, str, type[RequestError], str]] = {
    "no field": (b"", URLENCODED, WrongShapeError, "no field"),
    "no text": (b"txet=a", URLENCODED, WrongShapeError, "no field"),
    "an empty text": (b"text", URLENCODED, BlankTextError, "blank"),
    "a repeated field": (b"text=a&text=a", URLENCODED, WrongShapeError, "more than one"),
    "two texts": (b"text=a&data=b", URLENCODED, WrongShapeError, "more than one"),
    "a percent sign": (b"text=100%", URLENCODED, WrongShapeError, "hexadecimal"),
    "a broken escape": (b"text=100% late", URLENCODED, WrongShapeError, "hexadecimal"),
    "not UTF-8": (b"text=%FF", URLENCODED, NotUtf8Error, "form's text"),
    "not UTF-8, raw": (b"text=\xff", URLENCODED, NotUtf8Error, "form's text"),
    "another charset": (b"text=a", URLENCODED + "; charset=latin-1", NotUtf8Error, "latin-1"),
    "a long text": (b"text=" + b"a" * 51, URLENCODED, TooLargeError, "51 characters"),
    "a very long text": (b"text=" + b"%41" * 201, URLENCODED, TooLargeError, "more than 50"),
    "many fields": (b"&" * 1_000, URLENCODED, TooLargeError, "fields"),
    "many parts": (multipart(part("a", b"b") * 1_001), MULTIPART, TooLargeError, "fields"),
    "no boundary": (END, "multipart/form-data", WrongShapeError, "boundary"),
    "an empty boundary": (b"----", "multipart/form-data; boundary=", WrongShapeError, "boundary"),
    "a long boundary": (END, f"multipart/form-data; boundary={'x' * 71}", WrongShapeError, "boundary"),
    "a strange boundary": (END, "multipart/form-data; boundary=✈", WrongShapeError, "boundary"),
    "another boundary": (multipart(part("text", b"a")), MULTIPART.lower(), WrongShapeError, "cannot be read"),
    "an empty multipart form": (b"", MULTIPART, WrongShapeError, "final boundary"),
    "no part": (END, MULTIPART, WrongShapeError, "no field"),
    "no text in a part": (multipart(part("txet", b"a")), MULTIPART, WrongShapeError, "no field"),
    "an empty part": (multipart(part("text", b"")), MULTIPART, BlankTextError, "blank"),
    "two parts": (multipart(part("text", b"a"), part("text", b"a")), MULTIPART, WrongShapeError, "more than one"),
    "parts of two names": (multipart(part("text", b"a"), part("data", b"b")), MULTIPART, WrongShapeError, "more than"),
    "no end": (part("text", b"late"), MULTIPART, WrongShapeError, "final boundary"),
    "cut off": (multipart(part("text", b"late"))[:-5], MULTIPART, WrongShapeError, "final boundary"),
    "line feeds": (multipart(part("text", b"a")).replace(b"\r", b""), MULTIPART, WrongShapeError, "CR and LF"),
    "no name": (
        b'--Xy-Z\r\nContent-Disposition: form-data; x="text"\r\n\r\na\r\n' + END,
        MULTIPART,
        WrongShapeError,
        "no name",
    ),
    "no header": (b"--Xy-Z\r\n\r\na\r\n" + END, MULTIPART, WrongShapeError, "no name"),
    "an attachment": (
        multipart(part("text", b"a").replace(b"form-data", b"attachment")),
        MULTIPART,
        WrongShapeError,
        "no name",
    ),
    "two dispositions": (
        multipart(part("a", b"b", 'Content-Disposition: form-data; name="text"')),
        MULTIPART,
        WrongShapeError,
        "more than once",
    ),
    "many parameters": (
        multipart(part("text", b"a").replace(b"text", b'text"' + b";" * 21 + b'"')),
        MULTIPART,
        WrongShapeError,
        "parameters",
    ),
    "base64": (
        multipart(part("text", b"bGF0ZQ==", "Content-Transfer-Encoding: base64")),
        MULTIPART,
        ContentEncodingError,
        "Encoding",
    ),
    "latin-1 in a part": (
        multipart(part("text", b"\xfc", "Content-Type: text/plain; charset=ISO-8859-1")),
        MULTIPART,
        NotUtf8Error,
        "iso-8859-1",
    ),
    "not UTF-8 in a part": (multipart(part("text", b"\xfc")), MULTIPART, NotUtf8Error, "form's text"),
    "blanks after a boundary": (
        multipart(part("a", b"b").replace(b"Z\r", b"Z" + b" " * 100 + b"\r")),
        MULTIPART,
        WrongShapeError,
        "blanks",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_for_an_invalid_form_names_the_fault(name: str, caplog: pytest.LogCaptureFixture) -> None:
    body, content_type, error, message = WRONG[name]
    with pytest.raises(RequestError) as caught, caplog.at_level(logging.DEBUG):
        through_the_door(body, content_type)
    assert type(caught.value) is error, caught.value
    assert re.search(message, str(caught.value)), caught.value
    assert not caplog.text, "a form's parser quotes what was sent"


def test_the_maximum_number_of_fields_is_read() -> None:
    assert through_the_door(b"a&" * 999 + b"text=late", URLENCODED).texts == ("late",)
    assert through_the_door(multipart(*[part("a", b"b")] * 999, part("text", b"late")), MULTIPART).texts == ("late",)


def test_the_longest_text_is_read_in_every_encoding() -> None:
    limits = Limits()
    text = "\U0001f600" * limits.max_text_characters
    marks = "%EF%BB%BF" * 100_000
    encoded = marks + "".join(f"%{byte:02x}" for byte in text.encode())
    assert through_the_door(f"text={encoded}".encode(), URLENCODED, limits).texts == (text,)
    assert through_the_door(multipart(part("text", text.encode())), MULTIPART, limits).texts == (text,)


def long(piece: bytes, before: bytes = b"", after: bytes = b"") -> Callable[[], bytes]:
    """Return a function that builds a body of the maximum length by repeating a piece."""
    return lambda: before + piece * ((LARGEST_BODY - len(before + after)) // len(piece)) + after


HEAD = b'--Xy-Z\r\nContent-Disposition: form-data; name="a"'
LONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "fields": (long(b"a&"), URLENCODED),
    "separators": (long(b"&"), URLENCODED),
    "percent signs": (long(b"%", b"text="), URLENCODED),
    "escapes": (long(b"%41", b"text="), URLENCODED),
    "escaped names": (long(b"%41", b"text=a&"), URLENCODED),
    "marks": (long(b"%EF%BB%BF", b"text="), URLENCODED),
    "plus signs": (long(b"+", b"text="), URLENCODED),
    "a thousand fields": (lambda: b"a=b&" * 998 + b"text=" + b"%41" * 800_000, URLENCODED),
    "parts": (long(part("a", b"b")), MULTIPART),
    "a thousand parts": (lambda: multipart(*[part("a", b"b" * 2_400)] * 999), MULTIPART),
    "headers": (lambda: multipart(*[part("a", b"b", *(f"h{i}: 1" for i in range(7)))] * 999), MULTIPART),
    "parameters": (lambda: multipart(*[HEAD + b';b="c"' * 20 + b"\r\n\r\n1\r\n"] * 999), MULTIPART),
    "semicolons": (lambda: multipart(*[HEAD + b";" * 2_000 + b"\r\n\r\n1\r\n"] * 999), MULTIPART),
    "a header's name": (long(b"a", b"--Xy-Z\r\n"), MULTIPART),
    "a header": (long(b"a", b"--Xy-Z\r\na: "), MULTIPART),
    "a header of blanks": (long(b" ", b"--Xy-Z\r\na: "), MULTIPART),
    "headers without an end": (long(b"a: b\r\n", b"--Xy-Z\r\n"), MULTIPART),
    "no final boundary": (long(b"a", part("text", b"")[:-2]), MULTIPART),
    "line ends": (long(b"\r\n"), MULTIPART),
    "line ends in a part": (long(b"\r\n--", part("text", b"")[:-2]), MULTIPART),
    "almost boundaries": (long(b"\r\n--Xy-", part("text", b"")[:-2]), MULTIPART),
    "wrong boundaries": (long(b"\r\n--Xy-Zz", part("text", b"")[:-2]), MULTIPART),
    "blanks behind boundaries": (
        lambda: (HEAD[:6] + b" " * 99 + b"\r\n" + HEAD[8:] + b"\r\n\r\n1\r\n") * 999,
        MULTIPART,
    ),
    "blanks after a boundary": (long(b" ", b"--Xy-Z"), MULTIPART),
    "a boundary of hyphens": (long(b"-"), "multipart/form-data; boundary=" + "-" * 70),
    "an epilogue": (long(b"a", multipart(part("text", b"late"))), MULTIPART),
    "a long boundary": (long(b"a"), f"multipart/form-data; boundary={'a' * 1_000_000}"),
}


@pytest.mark.parametrize("name", LONG)
def test_no_form_takes_longer_than_the_limit(name: str) -> None:
    make, content_type = LONG[name]
    body = make()
    started = time.process_time()
    try:
        through_the_door(body, content_type, Limits())
    except RequestError as error:
        assert 400 <= error.status.value < 500
    assert time.process_time() - started < SECONDS


pieces = st.sampled_from(
    [
        *(
            b"--",
            b"Xy-Z",
            b"\r\n",
            b"\r",
            b"\n",
            b" ",
            b":",
            b";",
            b"=",
            b'"',
            b"&",
            b"%",
            b"%4",
            b"+",
            b"\xff",
            b"\x00",
        ),
        *(b"Content-Disposition: form-data", b'name="text"', b"name=data", b"text=", HEAD, END, part("text", b"late")),
    ]
)


@given(st.lists(pieces | st.binary(max_size=5), max_size=30).map(b"".join), st.sampled_from([URLENCODED, MULTIPART]))
def test_any_form_is_read_or_refused(body: bytes, content_type: str) -> None:
    try:
        [text] = through_the_door(body, content_type).texts
    except RequestError as error:
        assert 400 <= error.status.value < 500
    else:
        assert content_type is URLENCODED or text.encode() in body


def test_a_form_with_the_content_type_of_a_text_is_a_text() -> None:
    assert through_the_door(b"text=late", "text/plain").texts == ("text=late",)
    assert through_the_door(b"text=late", "").texts == ("text=late",)
    assert form.MAX_FIELDS == 1_000
