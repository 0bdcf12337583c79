"""Fields of the server's JSON, each checked for the type that the API promises."""

import math
from typing import Any, TypeVar

from sentiment.errors import UnexpectedAnswerError
from sentiment.transport import shown

T = TypeVar("T")

MAX_WHOLE = 2**1000


def field(value: object, name: str, kind: type[T]) -> T:
    """The field `name` of a JSON object, of the type `kind`: `str`, `int`, `list` or `dict`.

    Raises:
        UnexpectedAnswerError: `value` is not an object, or has no such field of this type.
    """
    found: Any = value.get(name) if isinstance(value, dict) else None
    # bool is a kind of int in Python alone.
    if not isinstance(found, kind) or isinstance(found, bool):
        raise UnexpectedAnswerError(f"Expected an object with {name!r} of type {kind.__name__}, not {shown(value)}.")
    return found


def unicode(value: object, of: str) -> str:
    """A string that files and other programs can hold: without half a surrogate pair.

    Raises:
        UnexpectedAnswerError: it is not a string, or has one.
    """
    if not isinstance(value, str) or not is_unicode(value):
        raise UnexpectedAnswerError(f"Expected Unicode as {of}, not {shown(value)}.")
    return value


def number(value: object, of: str) -> float:
    """
    Raises:
        UnexpectedAnswerError: it is not a number.
    """
    # A whole number in JSON may be larger than any float.
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < MAX_WHOLE:
        return float(value)
    raise UnexpectedAnswerError(f"Expected a number as {of}, not {shown(value)}.")


def probability(value: object, of: str) -> float:
    """A number from 0 to 1.

    Raises:
        UnexpectedAnswerError: it is not a number, or out of range.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UnexpectedAnswerError(f"Expected a probability as {of}, not {shown(value)}.")
    return float(value)


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded: JSON's `\\ud800` alone cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
