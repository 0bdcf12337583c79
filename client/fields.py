"""Fields of the server's JSON, each checked for the type that the API promises."""

from typing import Any, TypeVar

from client.errors import UnexpectedAnswerError
from client.transport import shown

T = TypeVar("T")


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


def label(value: object, name: str) -> str:
    """A string that files and other programs can hold: without half a surrogate pair.

    Raises:
        UnexpectedAnswerError: see `field`.
    """
    found = field(value, name, str)
    if not is_unicode(found):
        raise UnexpectedAnswerError(f"{name!r} is not Unicode: {shown(found)}.")
    return found


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
