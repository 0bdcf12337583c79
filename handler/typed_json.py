"""Reads JSON into dataclasses: every entry must have the type of its field.

The dataclasses are the only place that states the types. An error names the entry by its path, such as
`tokenizer.rules` or `ensemble[0].backwards`.
"""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from reprlib import repr as shortened
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

_DESCRIPTIONS: Final[Mapping[Any, str]] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


def from_json(value: Any, kind: Any, name: str = "") -> Any:
    """Return a JSON value as an instance of a type.

    Args:
        value: the JSON value.
        kind: `str`, `bool`, `int`, `float`, a `Literal` of strings, a `tuple` of one type, a `dict` by string, or a
            dataclass with fields of these types; also any of them `| None`.
        name: the path of the entry, for the error; empty for the whole file.

    Raises:
        ValueError: the value or one of its entries is missing, unknown, or not of its type.
    """
    expected = _description(kind)
    if get_origin(kind) is UnionType:
        if value is None:
            return None
        kind = get_args(kind)[0]
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _instance(value, kind, name)
    if origin is tuple and isinstance(value, list):
        return tuple(from_json(item, arguments[0], f"{name}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: from_json(item, arguments[1], f"{name}[{shortened(key)}]") for key, item in value.items()}
    # In Python, `bool` is a subclass of `int`; in JSON, true is not a number.
    if (origin is Literal and value in arguments) or (kind in (str, bool, int) and type(value) is kind):
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"{_entry(name)} is {shortened(value)}; expected {expected}.")


def _instance(value: dict[str, Any], kind: Any, name: str) -> Any:
    """Return a JSON object as an instance of a dataclass."""
    known = {field.name: field for field in fields(kind)}
    for entry in value:
        if entry not in known:
            raise ValueError(f"{_entry(name)} has {shortened(entry)}; expected only {', '.join(known)}.")
    for entry, field in known.items():
        if entry not in value and field.default is MISSING:
            raise ValueError(f"{_entry(_joined(name, entry))} is missing; expected {_description(field.type)}.")
    return kind(**{entry: from_json(item, known[entry].type, _joined(name, entry)) for entry, item in value.items()})


def _joined(name: str, entry: str) -> str:
    return f"{name}.{entry}" if name else entry


def _entry(name: str) -> str:
    return f"`{name}`" if name else "the content"


def _description(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return f"{_description(arguments[0])} or null"
    if origin is tuple:
        return f"a list of {_description(arguments[0]).partition(' ')[2]}s"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    return _DESCRIPTIONS.get(kind, "an object")
