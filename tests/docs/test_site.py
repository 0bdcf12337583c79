"""The site's links to files outside `docs/`, and its refusal of other hosts. `make docs` builds the site itself."""

import logging
from types import SimpleNamespace

import pytest

from docs.site import on_post_page, with_links_to_the_repository

ADDRESS = "https://example.com/owner/name"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("[a](serve.md)", "[a](serve.md)"),
        ("[a](../reference/api.md#errors)", "[a](../reference/api.md#errors)"),
        ("[a](../../k8s/README.md#keys)", f"[a]({ADDRESS}/blob/main/k8s/README.md#keys)"),
        ("[`k8s`](../../k8s)", f"[`k8s`]({ADDRESS}/tree/main/k8s)"),
        ("`[a](../../k8s)`", "`[a](../../k8s)`"),
        ("```md\n[a](../../k8s)\n```\n", "```md\n[a](../../k8s)\n```\n"),
    ],
)
def test_links_out_of_docs_lead_to_the_repository(markdown: str, expected: str) -> None:
    assert with_links_to_the_repository(markdown, "guides/page.md", ADDRESS) == expected


def test_without_an_address_the_file_is_named() -> None:
    assert with_links_to_the_repository("The [card](../../k8s/README.md)", "guides/page.md", "") == (
        "The card (`k8s/README.md`)"
    )
    named = "[k8s/README.md](../../k8s/README.md#keys)"
    assert with_links_to_the_repository(named, "guides/page.md", "") == "k8s/README.md"


def test_a_missing_file_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with_links_to_the_repository("[a](../../missing.md)", "guides/page.md", ADDRESS)
    assert "guides/page.md links to missing.md" in caplog.text


@pytest.mark.parametrize(
    ("html", "is_refused"),
    [
        ('<script src="https://unpkg.com/mermaid.js"></script>', True),
        ('<link rel="stylesheet" href="https://fonts.googleapis.com/css">', True),
        ('<img src="//example.com/a.png">', True),
        ('<img src="a.png">', False),
        ('<a href="https://example.com">', False),
        ('<link rel="canonical" href="https://example.com/page.html">', False),
    ],
)
def test_a_page_that_loads_from_another_host_is_a_warning(
    html: str, is_refused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    assert on_post_page(html, page, {}) == html
    assert ("loads from another host" in caplog.text) == is_refused
