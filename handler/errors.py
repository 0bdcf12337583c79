"""What a request can be refused for: one table of error types and their status codes.

    RequestError
    ├── NotUtf8Error          400  the body, or a text in it, is not Unicode text in UTF-8
    ├── NotJsonError          400  the content type says JSON and the body is not
    ├── WrongShapeError       400  none of the API's body forms, or two texts where one is expected
    ├── BlankTextError        400  an empty text, or nothing but white space
    ├── TooLargeError         413  a text, a list, a form, a request or its reply over its limit
    ├── ContentEncodingError  415  a compressed body, or a form's text in base64 or the like
    ├── OverloadedError       503  the batch is full; a retry may succeed
    └── InternalError         500  a defect in this code, for this request alone

A message says what was wrong and what is expected. It never quotes what the user sent.
"""

from http import HTTPStatus


class RequestError(Exception):
    """Base of the errors a client sees."""

    status: HTTPStatus = HTTPStatus.BAD_REQUEST


class NotUtf8Error(RequestError):
    pass


class NotJsonError(RequestError):
    pass


class WrongShapeError(RequestError):
    pass


class BlankTextError(RequestError):
    pass


class TooLargeError(RequestError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class ContentEncodingError(RequestError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class OverloadedError(RequestError):
    status = HTTPStatus.SERVICE_UNAVAILABLE


class InternalError(RequestError):
    status = HTTPStatus.INTERNAL_SERVER_ERROR
