"""What a request's headers say about its body."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache

from handler.errors import ContentEncodingError, NotUtf8Error, WrongShapeError

CLIENT_CONTENT_TYPE = "x-client-content-type"
"""The header in which the door (`door/haproxy.cfg`) passes on the client's Content-Type. TorchServe gets none, so it
decodes no body."""

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class ContentType:
    """A Content-Type. A part that is not given is empty."""

    media_type: str
    """In lower case."""

    charset: str
    """In lower case."""

    boundary: str
    """The text between the parts of a multipart form."""


def is_grpc(headers: Mapping[str, object]) -> bool:
    """Whether a request came over gRPC, which has no headers. TorchServe adds `content-length` to each HTTP request."""
    return not any(isinstance(value, str) for value in headers.values())


def has_form(headers: Mapping[str, object]) -> bool:
    """Whether TorchServe takes the body for a form."""
    types = {value for name, value in headers.items() if name.lower() == "content-type" and isinstance(value, str)}
    return any(_media_type(value) in FORM_TYPES for value in types)


def only(headers: Mapping[str, object], name: str) -> str | None:
    """A header's value, None if there is no such header.

    Args:
        headers: the HTTP headers, any case.
        name: in lower case.

    Raises:
        WrongShapeError: the header occurs with more than one value.
    """
    values = {value.strip() for key, value in headers.items() if key.lower() == name and isinstance(value, str)}
    if len(values) > 1:
        raise WrongShapeError(f"The request has more than one {name.title()}. Expected one.")
    return values.pop() if values else None


def content_type(headers: Mapping[str, object]) -> ContentType:
    """The content type that the client gave for the body.

    Raises:
        WrongShapeError: there is more than one, or it cannot be read.
        NotUtf8Error: its charset is not UTF-8.
    """
    value = only(headers, CLIENT_CONTENT_TYPE)
    if value is None:
        value = only(headers, "content-type") or ""
    return _parsed(value)


def check_charset(charset: str) -> None:
    """Raise NotUtf8Error if a charset, in lower case, is neither empty nor UTF-8 nor a part of it."""
    if charset not in ("", "utf-8", "utf8", "us-ascii", "ascii"):
        raise NotUtf8Error(f"Expected UTF-8, not the charset {charset[:40]!a} that Content-Type names.")


def check_encoding(headers: Mapping[str, object]) -> None:
    """Raise ContentEncodingError if the body is compressed."""
    encoding = (only(headers, "content-encoding") or "").lower()
    if encoding not in ("", "identity"):
        raise ContentEncodingError(
            f"Content-Encoding {encoding[:40]!a} is not decoded. Expected a body that is not compressed."
        )


@lru_cache(maxsize=32)  # most clients send one of few values; a header has at most 8 kB
def _parsed(value: str) -> ContentType:
    message = Message()
    message["content-type"] = value
    try:
        charset, boundary = _parameter(message, "charset").lower(), _parameter(message, "boundary")
    except ValueError as error:  # a parameter's number (RFC 2231) of thousands of digits
        raise WrongShapeError("The Content-Type cannot be read. Expected a media type and its parameters.") from error
    check_charset(charset)
    # `Message.get_content_type` would make `text/plain` of an invalid type.
    return ContentType(_media_type(value), charset, boundary)


def _parameter(message: Message, name: str) -> str:
    value = message.get_param(name, "")
    return value[-1] if isinstance(value, tuple) else str(value)  # a tuple in RFC 2231's form of a parameter


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()
