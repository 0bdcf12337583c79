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
| any, by the Open Inference Protocol       | tensors, see `handler.open_inference`            | `Outputs` |

The content type is the client's. The door passes it on in the header `X-Client-Content-Type`, and `handler.form`
decodes forms. Without the door TorchServe decodes them; `handler.form` names the differences.

The same text gives the same `Request`, however it is sent. Byte-order marks (U+FEFF) before JSON and before a text are
dropped. A form, a gRPC request or a JSON object that has two texts where one is read is refused.
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
    """The form of the request, which decides the form of the reply."""

    SINGLE = "single"
    LIST = "list"
    INSTANCES = "instances"


@dataclass(frozen=True)
class Request:
    """The texts asked about. `SINGLE` has exactly one."""

    texts: tuple[str, ...]
    form: Form | Outputs

    @property
    def characters(self) -> int:
        """The number of characters of all texts."""
        return sum(map(len, self.texts))


BODY = "body"
"""The name under which TorchServe hands over a body that it does not decode."""


def read_request(
    fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits, task: TaskName = "single-label"
) -> Request:
    """Read one request as TorchServe hands it over.

    Args:
        fields: `body` for a request whose Content-Type is no form, as each that comes through the door; else the form's
            fields, or gRPC's `input`. Values are bytes; if a name occurs more than once, a tuple of all its values.
        headers: the HTTP headers, any case. TorchServe adds the content type of each field, as
            `{"content-type": "..."}` under the field's name; gRPC has nothing else.
        limits: a request over one of them is an error.
        task: of the model, which decides the outputs that the Open Inference Protocol has names for.

    Raises:
        RequestError: see `handler.errors`.
    """
    check_encoding(headers)
    request = _read(fields, headers, limits, task)
    request = Request(tuple(text.lstrip(BYTE_ORDER_MARK) for text in request.texts), request.form)
    _check(request, limits)
    return request


def _read(fields: Mapping[str, object], headers: Mapping[str, object], limits: Limits, task: TaskName) -> Request:
    sent_as = content_type(headers)
    if is_grpc(headers):
        return _read_body(_field(fields, "gRPC input"), sent_as.media_type)
    if sent_as.media_type in FORM_TYPES and only(headers, CLIENT_CONTENT_TYPE) is None:
        return Request((decoded(_decoded_form(fields, headers)),), Form.SINGLE)
    body = _body(fields, headers)
    if open_inference.ask(headers) is not None:
        return Request(*open_inference.read(body, headers, limits.max_texts, task))
    if sent_as.media_type in FORM_TYPES:
        text = form.text(body, sent_as, limits.max_text_characters)
        return Request((decoded(text, "The form's text"),), Form.SINGLE)
    return _read_body(body, sent_as.media_type)


def _body(fields: Mapping[str, object], headers: Mapping[str, object]) -> bytes:
    """The body that TorchServe has not decoded.

    At some of its addresses TorchServe puts the query parameters before the body, as fields. They are not read.
    """
    body = fields.get(BODY)
    read_as = _read_as(headers)
    named = (only(headers, "content-type") or "").partition(";")[0].strip().lower()
    if BODY not in fields or (read_as is not None and read_as != named):
        # Of two headers TorchServe uses the first to read the body, and hands over the second.
        raise WrongShapeError("The request has more than one Content-Type. Expected one.")
    body = body[-1] if isinstance(body, tuple) else body
    if not isinstance(body, (bytes, bytearray)):
        raise WrongShapeError(EXPECTED)
    return bytes(body)


def _decoded_form(fields: Mapping[str, object], headers: Mapping[str, object]) -> object:
    """The text in a form that TorchServe has decoded, where there is no door."""
    if BODY in fields and _read_as(headers) in FORM_TYPES:
        raise WrongShapeError("The multipart form has no boundary in its Content-Type, so its fields cannot be read.")
    return _field(fields, "form")


def _read_as(headers: Mapping[str, object]) -> str | None:
    """The media type that TorchServe found for the body, or for the form's field `body`; None if it is not known."""
    match headers.get(BODY):
        case {"content-type": str() as media_type}:
            return media_type.strip().lower()
        case _:
            return None


def _field(fields: Mapping[str, object], where: str) -> object:
    """The value of the one field with a text; other fields are not read."""
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
    raise WrongShapeError(f"Content-Type {content_type[:60]!a} is not read. {EXPECTED}")


def _read_untyped(text: str) -> Request:
    """A body without a content type: a JSON object or array is read as JSON, anything else is the text."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = parsed(text, _object)
        except NotJsonError:
            return Request((text,), Form.SINGLE)
        return _read_json(value)
    return Request((text,), Form.SINGLE)


def _object(pairs: Pairs) -> dict[str, object]:
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
            raise WrongShapeError(f"The body has both `text` and `instances`. {EXPECTED}")
        case {"text": text}:
            return Request((_text_of(text, "`text`"),), Form.SINGLE)
        case {"instances": list() as items}:
            return Request(_texts_of(items), Form.INSTANCES)
        case list() as items:
            return Request(_texts_of(items), Form.LIST)
        case _:
            raise WrongShapeError(f"The body is JSON of another shape. {EXPECTED}")


def _texts_of(items: list[object]) -> tuple[str, ...]:
    return tuple(
        _text_of(item["text"] if isinstance(item, dict) and "text" in item else item, f"Item {index}")
        for index, item in enumerate(items)
    )


def _text_of(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise WrongShapeError(f"{name} is not a string. {EXPECTED}")
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
