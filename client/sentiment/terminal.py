"""Text for terminals: colours, widths, tables, and escaping of control characters in what a server sends."""

import os
import shutil
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

WIDTH = 80
"""Width of tables, and of a terminal that does not report its own, in columns."""

_COLOURS = {"positive": "32", "negative": "31", "error": "1;31"}


def coloured(text: str, name: str) -> str:
    """The text in the colour of a label or of `error`.

    The text is unchanged if standard output is not a terminal, or if NO_COLOR is set (https://no-color.org).
    """
    colour = _COLOURS.get(name)
    if colour is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def one_line(text: str) -> str:
    """The text with each line break, control character and unprintable character replaced by a space."""
    return "".join(character if character.isprintable() else " " for character in text)


def cut(text: str, width: int) -> str:
    """The text, truncated to `width` columns of a terminal."""
    ends = list(accumulate(map(_columns, text)))
    if not ends or ends[-1] <= width:
        return text
    return text[: bisect_right(ends, width - 1)] + "…"


def columns(text: str) -> int:
    """Width of a text on a terminal, in columns."""
    return sum(map(_columns, text))


def line_width() -> int | None:
    """Width of the terminal in columns; None if standard output is not a terminal, whose lines are not truncated."""
    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, truncated to 80 and without control characters. The first row is the header."""
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(cut(line, WIDTH) for line in lines)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
