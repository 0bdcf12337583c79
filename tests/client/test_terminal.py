"""Text for terminals."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentiment.terminal import coloured, cut, one_line, table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return monkeypatch


def test_colours_are_used_only_on_terminals(terminal: pytest.MonkeyPatch) -> None:
    assert coloured("late", "negative") == "\x1b[31mlate\x1b[0m"
    assert coloured("late", "another label") == "late"
    terminal.setattr(sys.stdout, "isatty", lambda: False)
    assert coloured("late", "negative") == "late"


def test_the_variable_no_color_is_respected(terminal: pytest.MonkeyPatch) -> None:
    terminal.setenv("NO_COLOR", "1")
    assert coloured("late", "negative") == "late"


@given(st.text())
def test_one_line_removes_line_breaks_and_control_characters(text: str) -> None:
    shown = one_line(text)
    assert len(shown) == len(text)
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("text", "columns", "shown"),
    [
        ("late", 4, "late"),
        ("later", 4, "lat…"),
        ("", 4, ""),
        ("日本航空", 8, "日本航空"),
        ("日本航空", 7, "日本航…"),
        ("日本航空", 6, "日本…"),
        ("e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"),
    ],
)
def test_text_that_does_not_fit_is_truncated(text: str, columns: int, shown: str) -> None:
    assert cut(text, columns) == shown


def test_tables_have_at_most_80_columns() -> None:
    lines = table([["version", "archive"], ["1.0", "a" * 100]]).splitlines()
    assert lines[0] == "version  archive"
    assert len(lines[1]) == 80
