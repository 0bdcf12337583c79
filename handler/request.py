"""Reads the texts of a request.

| content type                              | body                                             | form      |
|-------------------------------------------|--------------------------------------------------|-----------|
| `text/...`, but not `text/json`           | the text, always                                 | SINGLE    |
| `application/json`, `text/json`, `+json`  | `{"text": "..."}`                                | SINGLE    |
| the same                                  | `["..." or {"text": "..."}, ...]`                | LIST      |
| the same                                  | `{"instances": ["..." or {"text": "..."}, ...]}` | INSTANCES |
| none, or `application/octet-stream`       | a JSON object or array as above                  | as above  |
| the same                                  | any other body: the text                         | SINGLE    |
| a form                                    | the text in a field `text`, `data` or `body`     | SINGLE    |
| none (gRPC)                               | a body as above, as input `text`, `data`, `body` | as above  |
| any, by the Open Inference Protocol       | tensors, see `handler.open_inference`            | `Outputs` |

The first column is the client's content type. The door passes it on in the header `X-Client-Content-Type`, and
`handler.form` decodes forms. Without the door, TorchServe decodes forms; `handler.form` lists the differences.

The same text results in the same `Request` in every form. Byte-order marks (U+FEFF) before JSON and before a text are
dropped. A form, a gRPC request or a JSON object is refused if it has two texts where one is expected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from handler import form, open_inference
from handler.body import BYTE_ORDER_MARK, EXPECTED, TEXT_FIELDS, Pairs, decoded, one_text, parsed
from handler.errors import BlankTextError, NotJsonError, NotUtf8Error, TooLargeError, WrongShapeError
from handler.exported import is_unicode
from handler.headers import CLIENT_CONTENT_TYPE, FORM_TYPES, check_encoding, content_type, is_grpc, only
from handler.limits import Limits
from handler.open_inference import Outputs
from handler.task import TaskName


class Form(Enum):
    """The form of a request, which determines the form of its reply."""

    SINGLE = "single"
    LIST = "list"
    INSTANCES = "instances"


@dataclass(frozen=True)
class Request:
    """The texts of a request for predictions."""

    texts: tuple[str, ...]
    """The texts; exactly one if the form is `SINGLE`."""

    form: Form | Outputs

    @property
    def characters(self) -> int:
        """Number of characters of all texts."""
        return sum(map(len, self.texts))


BODY = "body"
"""Name of the field in which TorchServe hands over a body that it does not decode."""


def read_request(
    fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits, task: TaskName = "single-label"
) -> Request:
    """Read one request as TorchServe hands it over.

    Args:
        fields: the request's fields. A request through the door, like every request whose Content-Type is not a form,
            has the field `body`. Other requests have the form's fields or gRPC's `input`. Values are bytes; the value
            of a repeated field is a tuple of all its values.
        headers: the HTTP headers, with names in any case. Under the name of each field, TorchServe adds the field's
            content type as `{"content-type": "..."}`. A gRPC request has no other headers.
        limits: limits of texts and requests.
        task: the model's task, which determines the outputs in the Open Inference Protocol.

    Raises:
        RequestError: see `handler.errors`.
    """
    check_encoding(headers)
    return checked(_read(fields, headers, limits, task), limits)


def checked(request: Request, limits: Limits) -> Request:
    """Return a request without the byte-order marks at the beginning of its texts.

    Raises:
        TooLargeError: a text, the list, or all texts together exceed a limit.
        BlankTextError: a text is empty or has only white space.
        NotUtf8Error: a text has half of a surrogate pair.
    """
    request = Request(tuple(text.lstrip(BYTE_ORDER_MARK) for text in request.texts), request.form)
    _check(request, limits)
    return request


def _read(fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits, task: TaskName) -> Request:
    body_type = content_type(headers)
    if is_grpc(headers):
        return _read_body(_field(fields, "gRPC input"), body_type.media_type)
    if body_type.media_type in FORM_TYPES and only(headers, CLIENT_CONTENT_TYPE) is None:
        return Request((decoded(_decoded_form(fields, headers)),), Form.SINGLE)
    body = _body(fields, headers)
    if open_inference.operation(headers) is not None:
        return Request(*open_inference.read(body, headers, limits.max_texts, task))
    if body_type.media_type in FORM_TYPES:
        text = form.text(body, body_type, limits.max_text_characters)
        return Request((decoded(text, "The form's text"),), Form.SINGLE)
    return _read_body(body, body_type.media_type)


def _body(fields: Mapping[str, object], headers: Mapping[str, object]) -> bytes:
    """Return a body that TorchServe has not decoded.

    At some of its paths, TorchServe adds the query parameters as fields before the body. They are ignored.
    """
    body = fields.get(BODY)
    decoded_type = _decoded_type(headers)
    header_type = (only(headers, "content-type") or "").partition(";")[0].strip().lower()
    if BODY not in fields or (decoded_type is not None and decoded_type != header_type):
        # If there are two headers, TorchServe uses the first to read the body, and hands over the second.
        raise WrongShapeError("The request has more than one Content-Type. Expected one.")
    body = body[-1] if isinstance(body, tuple) else body
    if not isinstance(body, (bytes, bytearray)):
        raise WrongShapeError(EXPECTED)
    return bytes(body)


def _decoded_form(fields: Mapping[str, object], headers: Mapping[str, object]) -> object:
    """Return the text of a form that TorchServe has decoded, because there is no door."""
    if BODY in fields and _decoded_type(headers) in FORM_TYPES:
        raise WrongShapeError("The multipart form has no boundary in its Content-Type, so its fields cannot be read.")
    return _field(fields, "form")


def _decoded_type(headers: Mapping[str, object]) -> str | None:
    """Return the media type with which TorchServe read the body, or the form's field `body`; None if it is unknown."""
    match headers.get(BODY):
        case {"content-type": str() as media_type}:
            return media_type.strip().lower()
        case _:
            return None


def _field(fields: Mapping[str, object], where: str) -> object:
    """Return the value of the only field with a text. Other fields are ignored."""
    values: list[object] = []
    for value in (fields[name] for name in TEXT_FIELDS if name in fields):
        values += value if isinstance(value, tuple) else [value]
    return one_text(values, where)


def _read_body(body: object, content_type: str) -> Request:
    text = decoded(body)
    if content_type in ("application/json", "text/json") or content_type.endswith("+json"):
        return _read_json(parsed(text, _object))
    if content_type in ("", "application/octet-stream"):
        return _read_untyped(text)
    if content_type.startswith("text/"):
        return Request((text,), Form.SINGLE)
    raise WrongShapeError(f"Content-Type {content_type[:60]!a} is not supported. {EXPECTED}")


def _read_untyped(text: str) -> Request:
    """Read a body without a content type: a JSON object or array is read as JSON, any other body is the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = parsed(text, _object)
        except NotJsonError:
            return Request((text,), Form.SINGLE)
        return _read_json(value)
    return Request((text,), Form.SINGLE)


def _object(pairs: Pairs) -> dict[str, object]:
    """Return a JSON object as a dictionary.

    A repeated `text` or `instances` is an error, because its meaning differs between parsers (RFC 8259, section 4).
    """
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
            raise WrongShapeError(f"The body has both `text` and `instances`. {EXPECTED}")
        case {"text": text}:
            return Request((_string(text, "`text`"),), Form.SINGLE)
        case {"instances": list() as items}:
            return Request(_texts(items), Form.INSTANCES)
        case list() as items:
            return Request(_texts(items), Form.LIST)
        case _:
            raise WrongShapeError(f"The JSON body has none of the expected shapes. {EXPECTED}")


def _texts(items: list[object]) -> tuple[str, ...]:
    return tuple(
        _string(item["text"] if isinstance(item, dict) and "text" in item else item, f"Item {index}")
        for index, item in enumerate(items)
    )


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise WrongShapeError(f"{name} is not a string. {EXPECTED}")
    return value


def _check(request: Request, limits: Limits) -> None:
    if len(request.texts) > limits.max_texts:
        raise TooLargeError(f"The list has {len(request.texts)} texts; the limit of a request is {limits.max_texts}.")
    for index, text in enumerate(request.texts):
        name = "The text" if request.form is Form.SINGLE else f"Item {index}"
        if len(text) > limits.max_text_characters:
            raise TooLargeError(f"{name} has {len(text)} characters; the limit is {limits.max_text_characters}.")
        if not text.replace(BYTE_ORDER_MARK, "").strip():
            raise BlankTextError(f"{name} is empty or blank. Expected a text with words in it.")
        if not is_unicode(text):
            raise NotUtf8Error(f"{name} has half of a surrogate pair (\\ud800 to \\udfff). Expected Unicode text.")
    if request.characters > limits.max_request_characters:
        raise TooLargeError(
            f"The texts have {request.characters} characters together; "
            f"the limit of a request is {limits.max_request_characters}."
        )
