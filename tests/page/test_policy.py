"""Tests of the headers that the door sends with the page and with /docs."""

import base64
import hashlib
import re

import pytest
import requests

from tests.e2e.server_process import Server
from tests.paths import ROOT

PAGES = {"/": "page.html", "/docs": "docs.html"}
FILES = {
    "/openapi.yaml": "application/yaml",
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}


def directives(policy: str) -> dict[str, list[str]]:
    """The sources in a Content-Security-Policy, by directive."""
    return {name: sources for name, *sources in (directive.split() for directive in policy.split(";"))}


def hashes(html: str, tag: str) -> list[str]:
    """The hashes of a page's inline styles or scripts, in the syntax of a policy."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in contents]


@pytest.mark.parametrize("path", PAGES)
def test_a_pages_policy_has_the_hashes_of_its_style_and_script(server: Server, path: str) -> None:
    answer = requests.get(server.project.inference + path, timeout=10)
    html = (ROOT / "door" / PAGES[path]).read_text(encoding="utf-8")
    assert answer.text == html
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = directives(answer.headers["Content-Security-Policy"])
    for tag in ("style", "script"):
        allowed = [source for source in policy[f"{tag}-src"] if source.startswith("'sha256-")]
        assert allowed == hashes(html, tag), f"update the hash in the policy of {PAGES[path]} in door/large.cfg"
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert not re.search(r"unsafe|https?:|\*", answer.headers["Content-Security-Policy"])
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", [*PAGES, *FILES])
def test_browsers_neither_guess_a_type_nor_keep_an_old_page(server: Server, path: str) -> None:
    answer = requests.get(server.project.inference + path, timeout=10)
    assert answer.status_code == 200
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["Content-Type"] == FILES.get(path, "text/html; charset=utf-8")
    assert "Set-Cookie" not in answer.headers
    head = requests.head(server.project.inference + path, timeout=10)
    assert head.status_code == 200
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]
    assert head.content == b""


@pytest.mark.parametrize("path", [path for path in FILES if "swagger" in path])
def test_an_unchanged_file_is_not_sent_again(server: Server, path: str) -> None:
    first = requests.get(server.project.inference + path, timeout=10)
    url = server.project.inference + path
    same_tag = requests.get(url, headers={"If-None-Match": first.headers["ETag"]}, timeout=10)
    assert (same_tag.status_code, same_tag.content) == (304, b"")
    other_tag = requests.get(url, headers={"If-None-Match": '"another"'}, timeout=10)
    assert (other_tag.status_code, other_tag.content) == (200, first.content)


def test_the_pages_name_no_other_host() -> None:
    for name in PAGES.values():
        html = (ROOT / "door" / name).read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^/'\"\s]+", html)) <= {"http://www.w3.org"}, (
            "the namespace of SVG is not a request"
        )
        assert "innerHTML" not in html
        assert not re.search(r"localStorage|indexedDB|document\.cookie|eval\(", html)


def test_the_page_gets_the_models_names_from_the_server(server: Server) -> None:
    """The page serves all models."""
    answer = requests.get(f"{server.project.inference}/v2/models", timeout=10)
    assert (answer.status_code, sorted(answer.json()["models"])) == (200, ["batched", "sentiment"])
