"""The first step: a request's body to texts.

| content type                              | body                                             | form      |
|-------------------------------------------|--------------------------------------------------|-----------|
| `text/...`, but not `text/json`           | the text, always                                 | SINGLE    |
| `application/json`, `text/json`, `+json`  | `{"text": "..."}`                                | SINGLE    |
| the same                                  | `["..." or {"text": "..."}, ...]`                | LIST      |
| the same                                  | `{"instances": ["..." or {"text": "..."}, ...]}` | INSTANCES |
| none, or `application/octet-stream`       | JSON as above if it is an object or an array     | as above  |
| the same                                  | anything else: the text                          | SINGLE    |
| a form                                    | one field `text`, `data` or `body`: the text     | SINGLE    |
| none: gRPC                                | one input `text`, `data` or `body`: as with none | as above  |

The same text gives the same `Request`, however it is sent. Byte-order marks (U+FEFF) before JSON and before a text are
dropped. A form, a gRPC request or a JSON object that has two texts where one is read is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from enum import Enum

from handler.errors import (
    BlankTextError,
    ContentEncodingError,
    NotJsonError,
    NotUtf8Error,
    TooLargeError,
    WrongShapeError,
)
from handler.exported import is_unicode
from handler.limits import Limits


class Form(Enum):
    """The form of the request, which decides the form of the reply."""

    SINGLE = "single"
    LIST = "list"
    INSTANCES = "instances"


@dataclass(frozen=True)
class Request:
    """The texts asked about. `SINGLE` has exactly one."""

    texts: tuple[str, ...]
    form: Form

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
TEXT_FIELDS = ("text", "data", "body")
"""The names under which a form and a gRPC request may have their text. TorchServe's own examples use all three."""

BYTE_ORDER_MARK = "\ufeff"
BODY = "body"
"""The name under which TorchServe hands over the body of a request that is not a form."""

_EXPECTED = (
    'Expected a text (Content-Type: text/plain), or (Content-Type: application/json) {"text": "..."}, '
    '["...", "..."] or {"instances": ["..." or {"text": "..."}]}, or a form with one field `text`, `data` or `body`.'
)


def read_request(fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits) -> Request:
    """Read one request as TorchServe hands it over.

    Args:
        fields: `body` for a plain HTTP request, a form's fields, or gRPC's `input`. Values are bytes; if a name occurs
            more than once, a tuple of all its values.
        headers: the HTTP headers, any case. TorchServe adds the content type of each field, as
            `{"content-type": "..."}` under the field's name; gRPC has nothing else.
        limits: over them is an error.

    Raises:
        RequestError: see `handler.errors`.
    """
    if (encoding := _only(headers, "content-encoding")) not in ("", "identity"):
        raise ContentEncodingError(
            f"Content-Encoding {encoding[:40]!a} is not decoded. Expected a body that is not compressed."
        )
    content_type, charset = _content_type(headers)
    if charset not in ("", "utf-8", "utf8", "us-ascii", "ascii"):
        raise NotUtf8Error(f"Expected UTF-8, not the charset {charset[:40]!a} that Content-Type names.")
    if content_type in FORM_TYPES:
        request = Request((_decoded(_form_value(fields, headers)),), Form.SINGLE)
    elif is_grpc(headers):
        request = _read_body(_one_of(fields, "gRPC input"), content_type)
    else:
        request = _read_body(_body(fields, headers, content_type), content_type)
    request = Request(tuple(text.lstrip(BYTE_ORDER_MARK) for text in request.texts), request.form)
    _check(request, limits)
    return request


def is_grpc(headers: Mapping[str, object]) -> bool:
    """Whether a request came over gRPC, which has no headers. TorchServe adds `content-length` to each HTTP request."""
    return not any(isinstance(value, str) for value in headers.values())


def has_form(headers: Mapping[str, object]) -> bool:
    """Whether the HTTP headers announce a form."""
    types = {value for name, value in headers.items() if name.lower() == "content-type" and isinstance(value, str)}
    return any(value.partition(";")[0].strip().lower() in FORM_TYPES for value in types)


def _only(headers: Mapping[str, object], name: str) -> str:
    """A header's value in lower case, empty if there is no such header.

    Raises:
        WrongShapeError: the header occurs with more than one value.
    """
    values = {value.strip().lower() for key, value in headers.items() if key.lower() == name and isinstance(value, str)}
    if len(values) > 1:
        raise WrongShapeError(f"The request has more than one {name.title()}. Expected one.")
    return values.pop() if values else ""


def _content_type(headers: Mapping[str, object]) -> tuple[str, str]:
    """The media type and the charset, both lower-case, empty where not given."""
    message = Message()
    message["content-type"] = value = _only(headers, "content-type")
    try:
        charset = message.get_param("charset", "")
    except ValueError as error:  # a parameter's number (RFC 2231) of thousands of digits
        raise WrongShapeError(f"The Content-Type cannot be read. {_EXPECTED}") from error
    # RFC 2231's form of a parameter is a tuple, whose last element is the value. `Message.get_content_type` would make
    # `text/plain` of an invalid type.
    return value.partition(";")[0].strip(), charset[-1] if isinstance(charset, tuple) else str(charset)


def _body(fields: Mapping[str, object], headers: Mapping[str, object], content_type: str) -> object:
    """The body of a request that is not a form.

    At some of its addresses TorchServe puts the query parameters before the body, as fields. They are not read.
    """
    body = fields.get(BODY)
    read_as = _read_as(headers)
    if BODY not in fields or (read_as is not None and read_as != content_type):
        # Of two headers TorchServe uses the first to read the body, and hands over the second.
        raise WrongShapeError("The request has more than one Content-Type. Expected one.")
    return body[-1] if isinstance(body, tuple) else body


def _form_value(fields: Mapping[str, object], headers: Mapping[str, object]) -> object:
    if BODY in fields and _read_as(headers) in FORM_TYPES:
        raise WrongShapeError("The multipart form has no boundary in its Content-Type, so its fields cannot be read.")
    return _one_of(fields, "form")


def _read_as(headers: Mapping[str, object]) -> str | None:
    """The media type that TorchServe found for the body, or for the form's field `body`; None if it is not known."""
    match headers.get(BODY):
        case {"content-type": str() as content_type}:
            return content_type.strip().lower()
        case _:
            return None


def _one_of(fields: Mapping[str, object], where: str) -> object:
    """The value of the one field with a text; other fields are not read.

    Raises:
        WrongShapeError: there is none, or more than one.
    """
    values = [fields[name] for name in TEXT_FIELDS if name in fields]
    if not values:
        raise WrongShapeError(f"The {where} has no field `text`, `data` or `body`. {_EXPECTED}")
    if len(values) > 1 or isinstance(values[0], tuple):
        raise WrongShapeError(
            f"The {where} has more than one field `text`, `data` or `body`. Expected one. "
            "For several texts send a JSON list."
        )
    return values[0]


def _read_body(body: object, content_type: str) -> Request:
    text = _decoded(body)
    if content_type in ("application/json", "text/json") or content_type.endswith("+json"):
        return _read_json(_parsed(text))
    if content_type in ("", "application/octet-stream"):
        return _read_untyped(text)
    if content_type.startswith("text/"):
        return Request((text,), Form.SINGLE)
    raise WrongShapeError(f"Content-Type {content_type[:60]!a} is not read. {_EXPECTED}")


def _read_untyped(text: str) -> Request:
    """A body without a content type: a JSON object or array is read as JSON, anything else is the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = _parsed(text)
        except NotJsonError:
            return Request((text,), Form.SINGLE)
        return _read_json(value)
    return Request((text,), Form.SINGLE)


def _decoded(value: object) -> str:
    if not isinstance(value, (bytes, bytearray)):
        raise WrongShapeError(_EXPECTED)
    try:
        return value.decode().lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"The body is not UTF-8 (byte {error.start}). Expected text in UTF-8.") from None


def _parsed(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"The body is not JSON: {error.msg} (character {error.pos}). {_EXPECTED}") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise NotJsonError(f"The body is JSON that cannot be read. {_EXPECTED}") from None


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. RFC 8259, section 4: what a repeated name means differs from parser to parser."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        for name in ("text", "instances"):
            if names.count(name) > 1:
                raise WrongShapeError(f"A JSON object has `{name}` more than once. Expected it once.")
    return value


def _read_json(value: object) -> Request:
    match value:
        case {"text": _, "instances": _}:
            raise WrongShapeError(f"The body has both `text` and `instances`. {_EXPECTED}")
        case {"text": text}:
            return Request((_text_of(text, "`text`"),), Form.SINGLE)
        case {"instances": list() as items}:
            return Request(_texts_of(items), Form.INSTANCES)
        case list() as items:
            return Request(_texts_of(items), Form.LIST)
        case _:
            raise WrongShapeError(f"The body is JSON of another shape. {_EXPECTED}")


def _texts_of(items: list[object]) -> tuple[str, ...]:
    return tuple(
        _text_of(item["text"] if isinstance(item, dict) and "text" in item else item, f"Item {index}")
        for index, item in enumerate(items)
    )


def _text_of(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise WrongShapeError(f"{name} is not a string. {_EXPECTED}")
    return value


def _check(request: Request, limits: Limits) -> None:
    if len(request.texts) > limits.max_texts:
        raise TooLargeError(f"The list has {len(request.texts)} texts; at most {limits.max_texts} are read at once.")
    for index, text in enumerate(request.texts):
        name = "The text" if request.form is Form.SINGLE else f"Item {index}"
        if len(text) > limits.max_text_characters:
            raise TooLargeError(f"{name} has {len(text)} characters; at most {limits.max_text_characters} are read.")
        if not text.replace(BYTE_ORDER_MARK, "").strip():
            raise BlankTextError(f"{name} is empty or blank. Expected a text with words in it.")
        if not is_unicode(text):
            raise NotUtf8Error(f"{name} has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text.")
    if request.characters > limits.max_request_characters:
        raise TooLargeError(
            f"The texts have {request.characters} characters together; "
            f"at most {limits.max_request_characters} are read at once."
        )
