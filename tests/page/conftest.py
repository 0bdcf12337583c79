"""Fixtures of the page's tests: the system's Chromium, and the page of a real server."""

import os
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.e2e.server_process import Server

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_MS = 15_000
VIOLATIONS = """addEventListener("securitypolicyviolation",
    (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));"""


def chromium() -> str:
    """The program of the browser. Without one, the test is skipped, or fails if the variable CI is true."""
    for name in PROGRAMS:
        if program := shutil.which(name):
            return program
    reason = f"no browser: none of {', '.join(PROGRAMS)} is on the PATH (Debian's package is chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for one test file: Playwright runs an event loop, so tests of other files could not start their own."""
    program = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser, server: Server) -> Iterator[BrowserContext]:
    """A browser context. At its end, it has no cookies, sent no request to another host, and violated no policy."""
    opened = browser.new_context(base_url=server.project.inference, accept_downloads=True)
    opened.set_default_timeout(TIMEOUT_MS)
    problems = watch(opened)
    yield opened
    assert opened.cookies() == []
    opened.close()
    assert problems == []


def watch(context: BrowserContext) -> list[str]:
    """Collect the problems in a context's pages: script errors, policy violations and requests to other hosts."""
    problems: list[str] = []
    hosts: set[str] = set()

    def on_page(page: Page) -> None:
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("console", lambda message: problems.append(message.text) if "policy" in message.text.lower() else None)

    def on_request(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss"):
            hosts.add(parts.netloc)
            if len(hosts) > 1:
                problems.append(f"another host: {url}")

    context.add_init_script(VIOLATIONS)
    context.on("page", on_page)
    context.on("request", lambda request: on_request(request.url))
    return problems


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """The page after it has found the model."""
    opened = context.new_page()
    opened.goto("/?model=sentiment")
    opened.get_by_role("heading", level=1, name="sentiment").wait_for()
    return opened
