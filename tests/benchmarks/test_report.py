"""The pages quote the results file: every figure on them is made from it."""

import json

import pytest

from benchmarks.report import PAGES, RESULTS, with_part


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_results_file_gives(name: str) -> None:
    page = PAGES[name].read_text(encoding="utf-8")
    assert with_part(page, name, json.loads(RESULTS.read_text(encoding="utf-8"))) == page


def test_a_page_follows_the_results_file() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    page = PAGES["summary"].read_text(encoding="utf-8")
    results["sides"]["torchserve"]["p50_ms"] = 123.45
    assert "| 123.45 |" in with_part(page, "summary", results)
