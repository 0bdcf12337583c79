"""Reads the text of a form in time linear in the form's length. Fields without a text are ignored.

It reads the forms of browsers and `curl`: `application/x-www-form-urlencoded` (WHATWG, "URL Standard", section 5) and
`multipart/form-data` (RFC 7578).

Without the door, TorchServe's Java process decodes forms. The results then differ from this module's results:

- A form of more than 1,000 fields is read.
- A `%` without two digits in any field, and a part without a name, get 500.
- A form is read even if its final boundary is missing or its lines end with LF.
- A text in base64 is not decoded, and is read as it is.
- An urlencoded form ends at the first line end that is not percent-encoded.
- The boundary must be the first parameter of Content-Type.
"""

import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from handler.body import TEXT_FIELDS, one_text
from handler.errors import ContentEncodingError, TooLargeError, WrongShapeError
from handler.headers import FORM_TYPES, ContentType, check_charset

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS: Final = 1_000
"""Maximum number of fields in a form. Django and Starlette have the same limit."""

_NAMES: Final = {name.encode() for name in TEXT_FIELDS}
_LONGEST_NAME: Final = len("%41") * max(map(len, _NAMES))
"""Length in bytes of the longest name in `TEXT_FIELDS`, with each byte percent-encoded."""
_LONGEST_CHARACTER: Final = len("%41") * 4
"""Length in bytes of a character of four bytes, with each byte percent-encoded."""
_MARKS: Final = re.compile(rb"(?:(?:%EF|\xef)(?:%BB|\xbb)(?:%BF|\xbf))*", re.IGNORECASE)
"""A run of byte-order marks."""
_NOT_ENCODED: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_LONGEST_PADDING: Final = 100
"""Maximum number of blanks between a boundary and the end of its line. RFC 2046 allows them; the parser reads them one
by one."""
_LONGEST_BOUNDARY: Final = 70
"""Maximum number of characters of a boundary (RFC 2046, section 5.1.1)."""
_MAX_PARAMETERS: Final = 20
"""Maximum number of semicolons in a part's header. `name` and `filename` need two."""
_IDENTITY: Final = (b"", b"7bit", b"8bit", b"binary")
"""Values of Content-Transfer-Encoding that leave the content unchanged."""

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its warnings quote the form


def text(body: bytes, content_type: ContentType, max_characters: int) -> bytes:
    """Return the value of the form's only field `text`, `data` or `body`.

    Args:
        body: the form.
        content_type: a content type with a media type of `FORM_TYPES`.
        max_characters: maximum number of characters of a text. A longer value is not decoded.

    Raises:
        WrongShapeError: the form is malformed, or it has no such field, or more than one.
        TooLargeError: the form has more than `MAX_FIELDS` fields, or the text has more than `max_characters`.
        ContentEncodingError: the text is in base64 or another transfer encoding.
        NotUtf8Error: the charset of the text is not UTF-8.
    """
    if content_type.media_type == FORM_TYPES[0]:
        return _percent_decoded(one_text(list(_pairs(body)), "form"), max_characters)
    return one_text(_parts(body, content_type.boundary), "form")


def _check_count(fields: int) -> None:
    if fields > MAX_FIELDS:
        raise TooLargeError(f"The form has more than {MAX_FIELDS} fields. Expected one field `text`, `data` or `body`.")


def _pairs(body: bytes) -> Iterator[bytes]:
    """Yield the values of the fields with a text, still percent-encoded."""
    _check_count(body.count(b"&") + 1)
    for pair in body.split(b"&"):
        name, _, value = pair.partition(b"=")
        if len(name) <= _LONGEST_NAME and unquote_to_bytes(name) in _NAMES:
            yield value


def _percent_decoded(value: bytes, max_characters: int) -> bytes:
    # Decoding 2.5 MB takes 0.3 s. Therefore, drop byte-order marks and limit the rest before decoding.
    match = _MARKS.match(value)
    value = value[match.end() :] if match else value
    if len(value) > _LONGEST_CHARACTER * max_characters:
        raise TooLargeError(f"The text has more than {max_characters} characters, which is the limit.")
    if _NOT_ENCODED.search(value):
        raise WrongShapeError(
            "The form has a `%` without two hexadecimal digits after it. Expected a percent-encoded text, with `%25` "
            "for `%` (`curl --data-urlencode`), or the text itself with Content-Type: text/plain."
        )
    return unquote_to_bytes(value.replace(b"+", b" "))


def _parts(body: bytes, boundary: str) -> list[bytes]:
    """Return the values of a multipart form's parts with a text."""
    try:
        delimiter = b"--" + boundary.encode("latin-1")  # the encoding of HTTP headers
    except UnicodeEncodeError:
        raise WrongShapeError(_NO_BOUNDARY) from None
    if not 1 <= len(boundary) <= _LONGEST_BOUNDARY:
        raise WrongShapeError(_NO_BOUNDARY)
    _check_count(body.count(delimiter) - 1)
    if re.search(re.escape(delimiter) + rb"[ \t]{%d}" % _LONGEST_PADDING, body):
        raise WrongShapeError("The multipart form has many blanks after a boundary. Expected the end of the line.")
    parts = _Parts()
    try:
        MultipartParser(delimiter[2:], parts.callbacks()).write(body)
    except FormParserError as error:
        raise WrongShapeError(f"The multipart form cannot be read. {_EXPECTED_PARTS}") from error
    if not parts.ended:
        raise WrongShapeError(f"The multipart form lacks its final boundary. {_EXPECTED_PARTS}")
    return parts.texts


_NO_BOUNDARY = (
    f"The multipart form has no boundary of up to {_LONGEST_BOUNDARY} characters in its Content-Type, so its fields "
    "cannot be read."
)
_EXPECTED_PARTS = (
    "Expected parts with a header `Content-Disposition: form-data; name=...`, each after a line with the boundary that "
    "Content-Type gives, and lines that end with CR and LF."
)


class _Parts:
    """Collects the texts of a form's parts from the events of the parser."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.ended = False
        """Whether the parser has read the final boundary."""
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        """Name and value of the current header."""
        self._data: list[bytes] | None = None
        """The data of the current part until now; None if the part has no text."""

    def callbacks(self) -> "MultipartCallbacks":
        """Return the methods that the parser calls."""
        return {
            "on_part_begin": self._headers.clear,
            "on_header_begin": self._begin_header,
            "on_header_field": self._add_to_name,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._add_data,
            "on_part_end": self._end_data,
            "on_end": self._end,
        }

    def _begin_header(self) -> None:
        self._name = self._value = b""

    def _add_to_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        name = self._name.lower()
        if name in self._headers:
            raise WrongShapeError("A part of the multipart form has a header more than once. Expected it once.")
        self._headers[name] = self._value

    def _begin_data(self) -> None:
        disposition, parameters = self._options(b"content-disposition")
        if disposition != b"form-data" or b"name" not in parameters:
            raise WrongShapeError(f"A part of the multipart form has no name. {_EXPECTED_PARTS}")
        self._data = None
        if parameters[b"name"] in _NAMES:
            self._check_encoding()
            self._data = []

    def _options(self, name: bytes) -> tuple[bytes, dict[bytes, bytes]]:
        """Return the value of a header of the current part, and its parameters."""
        value = self._headers.get(name, b"")
        if value.count(b";") > _MAX_PARAMETERS:
            raise WrongShapeError(f"A part's header has more than {_MAX_PARAMETERS} parameters.")
        return parse_options_header(value)

    def _check_encoding(self) -> None:
        encoding = self._headers.get(b"content-transfer-encoding", b"").strip().lower()
        if encoding not in _IDENTITY:
            raise ContentEncodingError(
                "A part of the multipart form has a Content-Transfer-Encoding. Expected a part with the text itself."
            )
        _, parameters = self._options(b"content-type")
        check_charset(parameters.get(b"charset", b"").lower().decode("latin-1"))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data.append(data[start:end])

    def _end_data(self) -> None:
        if self._data is not None:
            self.texts.append(b"".join(self._data))

    def _end(self) -> None:
        self.ended = True
