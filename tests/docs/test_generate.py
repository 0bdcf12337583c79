"""The generated parts of the documentation are what their sources give."""

import pytest

from docs.generate import PARTS, Part


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.name} of {part.source}")
def test_a_generated_part_is_current(part: Part) -> None:
    page = part.page.read_text(encoding="utf-8")
    assert part.written_into(page) == page, "Run `.venv/bin/python -m docs` to write the generated parts again."


def test_a_page_without_the_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 1"):
        PARTS[0].written_into("# A page without the comments\n")


def test_every_command_of_training_has_its_help() -> None:
    [part] = [part for part in PARTS if part.source == "python -m training"]
    text = part.text()
    for name in ("all", "fit", "language-model", "cross-validate", "archive"):
        assert f"### training {name}\n\n```text\nusage: python -m training {name} " in text
