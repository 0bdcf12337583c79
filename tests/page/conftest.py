"""The page in a real browser, Chromium from the system, before a real server."""

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
    """The browser's program; skips the test if there is none."""
    for name in PROGRAMS:
        if program := shutil.which(name):
            return program
    reason = f"no browser: none of {', '.join(PROGRAMS)} is on the PATH (Debian's package is chromium)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a file. Playwright keeps an event loop, in which tests of other files could start none."""
    program = chromium()
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield launched
        launched.close()


@pytest.fixture
def context(browser: Browser, server: Server) -> Iterator[BrowserContext]:
    """What one person has. In the end nothing has gone to another server, and no policy was violated."""
    opened = browser.new_context(base_url=server.project.inference, accept_downloads=True)
    opened.set_default_timeout(TIMEOUT_MS)
    problems = watch(opened)
    yield opened
    assert opened.cookies() == []
    opened.close()
    assert problems == []


def watch(context: BrowserContext) -> list[str]:
    """What goes wrong in a context's pages from now on: defects, violations of the policy, requests to other hosts."""
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
    """The page, as it is when it has found the model."""
    opened = context.new_page()
    opened.goto("/?model=sentiment")
    opened.get_by_role("heading", level=1, name="sentiment").wait_for()
    return opened
