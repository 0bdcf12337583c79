"""What all forms of a body share: bytes to text, text to JSON and back, one text of several fields."""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from handler.errors import NotJsonError, NotUtf8Error, WrongShapeError

TEXT_FIELDS = ("text", "data", "body")
"""The names under which a form and a gRPC request may have their text. TorchServe's own examples use all three."""

BYTE_ORDER_MARK = "\ufeff"

EXPECTED = (
    'Expected a text (Content-Type: text/plain), or (Content-Type: application/json) {"text": "..."}, '
    '["...", "..."] or {"instances": ["..." or {"text": "..."}]}, or a form with one field `text`, `data` or `body`.'
)

Value = TypeVar("Value")
Pairs = list[tuple[str, object]]
"""The names and values of a JSON object, in their order."""


def decoded(value: object, name: str = "The body") -> str:
    """The text of bytes in UTF-8, without byte-order marks before it.

    Args:
        name: what the bytes are, for the message of an error.

    Raises:
        NotUtf8Error: the bytes are not UTF-8.
        WrongShapeError: the value is not bytes.
    """
    if not isinstance(value, (bytes, bytearray)):
        raise WrongShapeError(EXPECTED)
    try:
        return value.decode().lstrip(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        raise NotUtf8Error(f"{name} is not UTF-8 (byte {error.start}). Expected text in UTF-8.") from None


def parsed(text: str, read_object: Callable[[Pairs], dict[str, object]], expected: str = EXPECTED) -> object:
    """The value of a text in JSON.

    Args:
        read_object: makes a dictionary of an object's names and values, of which some may be repeated.
        expected: what the body should have been, for the message of an error.

    Raises:
        NotJsonError: the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=read_object)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"The body is not JSON: {error.msg} (character {error.pos}). {expected}") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise NotJsonError(f"The body is JSON that cannot be read. {expected}") from None


def to_json(value: object) -> bytes:
    """A value as JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode()


def one_text(values: Sequence[Value], where: str) -> Value:
    """The only one of the values that a form or a gRPC request has under a name of a text.

    Args:
        where: the form or the gRPC request, for the message of an error.

    Raises:
        WrongShapeError: there is none, or more than one.
    """
    if not values:
        raise WrongShapeError(f"The {where} has no field `text`, `data` or `body`. {EXPECTED}")
    if len(values) > 1:
        raise WrongShapeError(
            f"The {where} has more than one field `text`, `data` or `body`. Expected one. "
            "For several texts send a JSON list."
        )
    return values[0]
