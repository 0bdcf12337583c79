"""Approximate comparison of nested values."""

from typing import Any

import pytest


def approximately(value: Any, tolerance: float = 1e-4) -> Any:
    """A value that equals another one if all numbers in them, at any depth, differ by at most a tolerance."""
    match value:
        case dict():
            return {key: approximately(item, tolerance) for key, item in value.items()}
        case list():
            return [approximately(item, tolerance) for item in value]
        case float():
            return pytest.approx(value, abs=tolerance)
        case _:
            return value
