"""The first step: a request's body to texts.

| content type                  | body                                                     | form     |
|-------------------------------|----------------------------------------------------------|----------|
| `text/...` or none            | the text                                                 | SINGLE   |
| `application/json`            | `{"text": "..."}`                                        | SINGLE   |
| `application/json`            | `["...", ...]`                                           | LIST     |
| `application/json`            | `{"instances": ["..." or {"text": "..."}, ...]}`         | INSTANCES|
| a form                        | field `text`                                             | SINGLE   |
| none (gRPC), in `data`/`text` | any of the above; JSON where it is an object or an array | as above |
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from enum import Enum

from handler.errors import BlankTextError, NotJsonError, NotUtf8Error, TooLargeError, WrongShapeError
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


_EXPECTED = (
    'Expected a text (Content-Type: text/plain), or (Content-Type: application/json) {"text": "..."}, '
    '["...", "..."] or {"instances": ["..." or {"text": "..."}]}, or a form with a field `text`.'
)


def read_request(fields: Mapping[str, object], headers: Mapping[str, str], limits: Limits) -> Request:
    """Read one request as TorchServe hands it over.

    Args:
        fields: `body` for a plain HTTP request, a form's fields, or gRPC's `input`. Values are bytes, or what
            TorchServe made of them (text, or a decoded JSON value) where it was set up to decode.
        headers: the HTTP headers, any case; empty for gRPC.
        limits: over them is an error.

    Raises:
        RequestError: see `handler.errors`.
    """
    content_type, charset = _content_type(headers)
    if charset not in ("", "utf-8", "utf8", "us-ascii", "ascii"):
        raise NotUtf8Error(f"Expected UTF-8, not the charset {charset[:40]!a} that Content-Type names.")
    is_form = content_type in ("application/x-www-form-urlencoded", "multipart/form-data")
    # TorchServe adds the address' parameters to the fields: one named `text` is not what a body says.
    if "body" in fields and not (is_form and "text" in fields):
        request = _read_body(fields["body"], content_type)
    elif "text" in fields and content_type:
        request = Request((_decoded(fields["text"]),), Form.SINGLE)
    elif not content_type and (value := (fields.get("data") or fields.get("text"))):
        request = _read_untyped(value)
    elif is_form:
        raise WrongShapeError(f"The form has no field `text`. {_EXPECTED}")
    else:
        raise BlankTextError(f"The body is empty. {_EXPECTED}")
    _check(request, limits)
    return request


def _content_type(headers: Mapping[str, str]) -> tuple[str, str]:
    """The media type and the charset, both lower-case, empty where not given."""
    message = Message()
    for name, value in headers.items():
        if name.lower() == "content-type":
            message["content-type"] = value
    if "content-type" not in message:
        return "", ""
    charset = message.get_param("charset", "")
    # `Message.get_content_type` makes `text/plain` of what is no type.
    return str(message["content-type"]).partition(";")[0].strip().lower(), str(charset).lower()


def _read_body(body: object, content_type: str) -> Request:
    if content_type in ("application/json", "text/json") or content_type.endswith("+json"):
        return _read_json(body if isinstance(body, (dict, list)) else _parsed(_decoded(body)))
    if content_type in ("", "application/octet-stream") or content_type.startswith("text/"):
        return Request((_decoded(body),), Form.SINGLE)
    raise WrongShapeError(f"Content-Type {content_type[:60]!a} is not read. {_EXPECTED}")


def _read_untyped(value: object) -> Request:
    """gRPC's input has no content type: what reads as a JSON object or array is JSON, anything else is the text."""
    if isinstance(value, (dict, list)):
        return _read_json(value)
    text = _decoded(value)
    if text.lstrip()[:1] in ("{", "["):
        try:
            decoded = _parsed(text)
        except NotJsonError:
            pass
        else:
            return _read_json(decoded)
    return Request((text,), Form.SINGLE)


def _decoded(value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, (bytes, bytearray)):
        raise WrongShapeError(_EXPECTED)
    try:
        return value.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"The body is not UTF-8 (byte {error.start}). Expected text in UTF-8.") from None


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"The body is not JSON: {error.msg} (character {error.pos}). {_EXPECTED}") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise NotJsonError(f"The body is JSON that cannot be read. {_EXPECTED}") from None


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
        if text.isspace() or not text:
            raise BlankTextError(f"{name} is empty or blank. Expected a text with words in it.")
        if not _is_unicode(text):
            raise NotUtf8Error(f"{name} has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text.")
    if request.characters > limits.max_request_characters:
        raise TooLargeError(
            f"The texts have {request.characters} characters together; "
            f"at most {limits.max_request_characters} are read at once."
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
