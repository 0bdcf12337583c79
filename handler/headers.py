"""Reads the headers that describe a request's body."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from functools import lru_cache

from handler.errors import ContentEncodingError, NotUtf8Error, WrongShapeError

CLIENT_CONTENT_TYPE = "x-client-content-type"
"""The header in which the door (`door/haproxy.cfg`) passes on the client's Content-Type.

The door removes the header Content-Type itself, so that TorchServe decodes no body.
"""

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


@dataclass(frozen=True)
class ContentType:
    """A Content-Type. A missing part is empty."""

    media_type: str
    """In lower case."""

    charset: str
    """In lower case."""

    boundary: str
    """The text between the parts of a multipart form."""


def is_grpc(headers: Mapping[str, object]) -> bool:
    """Return whether a request came over gRPC.

    A gRPC request has no headers. An HTTP request has at least `content-length`, which TorchServe adds.
    """
    return not any(isinstance(value, str) for value in headers.values())


def has_form(headers: Mapping[str, object]) -> bool:
    """Return whether TorchServe treats the body as a form."""
    types = {value for name, value in headers.items() if name.lower() == "content-type" and isinstance(value, str)}
    return any(_media_type(value) in FORM_TYPES for value in types)


def only(headers: Mapping[str, object], name: str) -> str | None:
    """Return the value of a header, or None if it is missing.

    Args:
        headers: the HTTP headers, with names in any case.
        name: name of the header in lower case.

    Raises:
        WrongShapeError: the header has more than one value.
    """
    values = {value.strip() for key, value in headers.items() if key.lower() == name and isinstance(value, str)}
    if len(values) > 1:
        raise WrongShapeError(f"The request has more than one {name.title()}. Expected one.")
    return values.pop() if values else None


def content_type(headers: Mapping[str, object]) -> ContentType:
    """Return the client's content type for the body.

    Raises:
        WrongShapeError: the content type is malformed, or there is more than one.
        NotUtf8Error: the charset is not UTF-8.
    """
    value = only(headers, CLIENT_CONTENT_TYPE)
    if value is None:
        value = only(headers, "content-type") or ""
    return _parsed(value)


def check_charset(charset: str) -> None:
    """Check that a charset is UTF-8 or its subset ASCII.

    Args:
        charset: name of the charset in lower case; empty if there is none.

    Raises:
        NotUtf8Error: it is another charset.
    """
    if charset not in ("", "utf-8", "utf8", "us-ascii", "ascii"):
        raise NotUtf8Error(f"Expected UTF-8, not the charset {charset[:40]!a} that Content-Type names.")


def check_encoding(headers: Mapping[str, object]) -> None:
    """Check that the body is not compressed.

    Raises:
        ContentEncodingError: the body is compressed.
    """
    encoding = (only(headers, "content-encoding") or "").lower()
    if encoding not in ("", "identity"):
        raise ContentEncodingError(
            f"Content-Encoding {encoding[:40]!a} is not decoded. Expected a body that is not compressed."
        )


@lru_cache(maxsize=32)  # most clients send the same few values; a header has at most 8 kB
def _parsed(value: str) -> ContentType:
    message = Message()
    message["content-type"] = value
    try:
        charset, boundary = _parameter(message, "charset").lower(), _parameter(message, "boundary")
    except ValueError as error:  # a number of thousands of digits in a parameter's name (RFC 2231)
        raise WrongShapeError("The Content-Type cannot be read. Expected a media type and its parameters.") from error
    check_charset(charset)
    # `Message.get_content_type` would replace an invalid type by `text/plain`.
    return ContentType(_media_type(value), charset, boundary)


def _parameter(message: Message, name: str) -> str:
    value = message.get_param(name, "")
    return value[-1] if isinstance(value, tuple) else str(value)  # a parameter in the form of RFC 2231 is a tuple


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()
