"""Functions for all forms of a body: decode bytes, read and write JSON, select the only text among several fields."""

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from handler.errors import NotJsonError, NotUtf8Error, WrongShapeError

TEXT_FIELDS = ("text", "data", "body")
"""Names of the fields in which a form or a gRPC request may have its text. TorchServe's examples use all three."""

BYTE_ORDER_MARK = "\ufeff"

SCORE_DIGITS = 6
"""Decimal places of a probability in a reply, and significant digits of a regression's value."""

EXPECTED = (
    'Expected a text (Content-Type: text/plain), or (Content-Type: application/json) {"text": "..."}, '
    '["...", "..."] or {"instances": ["..." or {"text": "..."}]}, or a form with one field `text`, `data` or `body`.'
)

Value = TypeVar("Value")
Pairs = list[tuple[str, object]]
"""Names and values of a JSON object, in the order of the text."""


def decoded(value: object, name: str = "The body") -> str:
    """Decode bytes in UTF-8, and drop the byte-order marks at the beginning.

    Args:
        value: the bytes.
        name: the subject of an error message.

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
    """Parse JSON.

    Args:
        text: the JSON text.
        read_object: a function that converts the names and values of a JSON object into a dictionary. A name may occur
            more than once.
        expected: a description of the expected body, for an error message.

    Raises:
        NotJsonError: the text is not JSON, or it is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=read_object)
    except json.JSONDecodeError as error:
        raise NotJsonError(f"The body is not JSON: {error.msg} (character {error.pos}). {expected}") from None
    except (RecursionError, ValueError):  # deep nesting, or a number of thousands of digits
        raise NotJsonError(f"The body is JSON that cannot be read. {expected}") from None


def to_json(value: object) -> bytes:
    """Write a value as JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False).encode()


def rounded_value(value: float) -> float:
    """Round a regression's value to six significant digits: 3.14, not 3.140000104904175.

    The last digits of a float32 number may depend on the other texts of a forward pass.
    """
    return float(f"{value:.{SCORE_DIGITS}g}")


def one_text(values: Sequence[Value], where: str) -> Value:
    """Return the only value among the text fields of a form or a gRPC request.

    Args:
        values: the values of all fields with a name in `TEXT_FIELDS`.
        where: `form` or `gRPC input`, for an error message.

    Raises:
        WrongShapeError: there is no value, or more than one.
    """
    if not values:
        raise WrongShapeError(f"The {where} has no field `text`, `data` or `body`. {EXPECTED}")
    if len(values) > 1:
        raise WrongShapeError(
            f"The {where} has more than one field `text`, `data` or `body`. Expected one. "
            "For several texts send a JSON list."
        )
    return values[0]
