"""The errors of requests: one table of error types and their status codes.

    RequestError
    ├── NotUtf8Error          400
    ├── NotJsonError          400
    ├── WrongShapeError       400
    ├── BlankTextError        400
    ├── TooLargeError         413
    ├── ContentEncodingError  415
    ├── OverloadedError       503
    └── InternalError         500

A message says what is wrong and what is expected. It never quotes the user's text.
"""

from http import HTTPStatus


class RequestError(Exception):
    """Base class of the errors that a client sees."""

    status: HTTPStatus = HTTPStatus.BAD_REQUEST


class NotUtf8Error(RequestError):
    """The body, or a text in it, is not Unicode text in UTF-8."""


class NotJsonError(RequestError):
    """A body that must be JSON is not JSON."""


class WrongShapeError(RequestError):
    """The body has none of the API's forms, or two texts where one is expected."""


class BlankTextError(RequestError):
    """A text is empty or has only white space."""


class TooLargeError(RequestError):
    """A text, a list, a form, a request or its reply exceeds its limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class ContentEncodingError(RequestError):
    """The body is compressed, or a form's text is in base64 or a similar encoding."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class OverloadedError(RequestError):
    """The batch is full; a retry may succeed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


class InternalError(RequestError):
    """A defect in this code; only this request is affected."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
