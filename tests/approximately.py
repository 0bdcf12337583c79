"""Comparison of nested values whose numbers are measured."""

from typing import Any

import pytest


def approximately(value: Any) -> Any:
    """A value that equals others within 1e-4 in every number, however deep."""
    match value:
        case dict():
            return {key: approximately(item) for key, item in value.items()}
        case list():
            return [approximately(item) for item in value]
        case float():
            return pytest.approx(value, abs=1e-4)
        case _:
            return value
