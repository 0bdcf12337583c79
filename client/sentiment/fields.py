"""Typed access to the fields of the server's JSON."""

import math
from typing import Any, TypeVar

from sentiment.errors import UnexpectedAnswerError
from sentiment.transport import shown

T = TypeVar("T")

MAX_INTEGER = 2**1000
"""Upper limit of integers, which are converted to float."""


def field(value: object, name: str, kind: type[T]) -> T:
    """The field `name` of a JSON object, of the type `kind`: `str`, `int`, `list` or `dict`.

    Raises:
        UnexpectedAnswerError: `value` is not an object, or has no such field of this type.
    """
    content: Any = value.get(name) if isinstance(value, dict) else None
    # In Python, bool is a subclass of int; in JSON, true is not a number.
    if not isinstance(content, kind) or isinstance(content, bool):
        raise UnexpectedAnswerError(f"Expected an object with {name!r} of type {kind.__name__}, not {shown(value)}.")
    return content


def unicode(value: object, description: str) -> str:
    """A string that can be encoded as UTF-8, that is, without unpaired surrogates.

    Args:
        value: the JSON value.
        description: what the value is, for the error's message.

    Raises:
        UnexpectedAnswerError: the value is not a string, or has an unpaired surrogate.
    """
    if not isinstance(value, str) or not is_unicode(value):
        raise UnexpectedAnswerError(f"Expected Unicode as {description}, not {shown(value)}.")
    return value


def number(value: object, description: str) -> float:
    """A finite number.

    Args:
        value: the JSON value.
        description: what the value is, for the error's message.

    Raises:
        UnexpectedAnswerError: the value is not a finite number.
    """
    if isinstance(value, float) and math.isfinite(value):
        return value
    # An integer in JSON may be too large for a float.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_INTEGER:
        return float(value)
    raise UnexpectedAnswerError(f"Expected a number as {description}, not {shown(value)}.")


def probability(value: object, description: str) -> float:
    """A number from 0 to 1.

    Args:
        value: the JSON value.
        description: what the value is, for the error's message.

    Raises:
        UnexpectedAnswerError: the value is not a number, or is out of range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UnexpectedAnswerError(f"Expected a probability as {description}, not {shown(value)}.")
    return float(value)


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded as UTF-8. A string with an unpaired surrogate, such as U+D800, cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
