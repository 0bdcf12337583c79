"""Tests of errors: the page shows a message for every error of the API and retries temporary ones."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from tests.e2e.server_process import ONE_WORKER, Project, Server, serving
from tests.k8s.rules import longest_request_s
from tests.page.conftest import TIMEOUT_MS, watch
from tests.paths import ROOT

MESSAGES = {
    400: "The server refuses this request.",
    403: "The server does not allow this request.",
    404: "The server has no such model.",
    408: "The request took too long to arrive. Check the connection and try again.",
    413: "This is too much for one request. Shorten the text.",
    415: "The server does not accept this content type.",
    500: "The server failed on this request. Try again. If it fails again, inform the server's administrator.",
    502: "The model did not respond in time. Try again.",
    504: "The model did not respond in time. Try again.",
    507: "The model did not respond in time. Try again.",
    418: "The server answered with an error (status 418).",
}


KEY = "correct-horse_battery.staple~tilde+plus=="


@pytest.fixture
def server_with_keys(tmp_path: Path, mar: Path) -> Iterator[Server]:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    with serving(Project(tmp_path, mar, models=ONE_WORKER), SENTIMENT_KEY_FILE=str(file)) as running:
        yield running


def classify(page: Page, text: str = "late again") -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.keyboard.press("Control+Enter")


def answer_with(page: Page, status: int, body: str) -> None:
    page.route("**/predictions/*", lambda route: route.fulfill(status=status, body=body))


def alert(page: Page, text: str) -> None:
    expect(page.get_by_role("alert").filter(has_text=text)).to_be_visible()
    expect(page.locator("#answer")).to_be_hidden()


def test_the_servers_errors_are_shown(page: Page) -> None:
    classify(page, " \u2003")
    alert(page, "There is no text to classify. Write something first.")
    alert(page, "The server says: The text is empty or blank.")
    classify(page, "x" * 20_001)
    alert(page, "This is too much for one request. Shorten the text.")
    alert(page, "The server says: The text has 20001 characters; the limit is 20000.")
    assert page.get_by_role("button", name="Try again").count() == 0, "it would fail again"
    classify(page)
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#one-message")).to_be_empty()


def test_an_unknown_model_is_an_error(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/?model=Call%20this%20number")
    classify(page)
    alert(page, "The server has no model of the name in this page's address.")
    assert page.get_by_text("Call this number").count() == 0, "the page does not show words of its address"


def test_a_model_that_was_removed_is_an_error(page: Page) -> None:
    answer_with(page, 404, '{"code": 404, "type": "ModelNotFoundException", "message": "Model not found: sentiment"}')
    classify(page)
    alert(page, "The server has no such model.")


def test_a_lost_connection_is_an_error(page: Page, context: BrowserContext) -> None:
    context.set_offline(True)
    classify(page)
    alert(page, "There is no connection to the server. Check that it runs, then try again.")
    context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#verdict")).to_be_visible()


def test_every_status_has_a_message(page: Page) -> None:
    """This includes the page of a proxy, which is not JSON."""
    reason = json.dumps({"code": 0, "type": "X", "message": "<i>why</i>"})
    bodies = [(status, reason) for status in MESSAGES] + [(502, body) for body in ("<html>Bad</html>", "null", "")]
    for status, body in bodies:
        answer_with(page, status, body)
        classify(page)
        alert(page, MESSAGES[status])
        assert page.get_by_text("<i>why</i>").count() == (body == reason)
        page.unroute("**/predictions/*")


@pytest.mark.parametrize("body", ["", "null", "[]", "{}", "<html>", '{"label": 1, "scores": null}'])
def test_a_malformed_response_is_an_error(page: Page, body: str) -> None:
    answer_with(page, 200, body)
    classify(page)
    expect(page.get_by_role("alert").filter(has_text="The server's response")).to_be_visible()


def test_the_page_waits_longer_than_the_longest_request() -> None:
    page = (ROOT / "door" / "page.html").read_text(encoding="utf-8")
    [timeout_s] = re.findall(r"^const ANSWER_TIMEOUT_S = (\d+);", page, flags=re.MULTILINE)
    assert int(timeout_s) > longest_request_s()


def test_a_request_is_retried_after_the_time_in_retry_after(page: Page) -> None:
    answers: list[float] = []

    def busy_twice(route: Route) -> None:
        answers.append(page.evaluate("performance.now()"))
        if len(answers) < 3:
            route.fulfill(
                status=503, headers={"Retry-After": "1"}, json={"code": 503, "type": "OverloadedError", "message": ""}
            )
        else:
            route.continue_()

    page.route("**/predictions/*", busy_twice)
    classify(page)
    expect(page.get_by_text("The server is overloaded. The next attempt is in 1 second (2 of 6).")).to_be_visible()
    expect(page.locator("#verdict")).to_be_visible()
    expect(page.locator("#one-message")).to_be_empty()
    assert len(answers) == 3
    assert all(later - earlier >= 990 for earlier, later in pairwise(answers))


def test_retries_end_if_the_server_stays_overloaded(page: Page) -> None:
    page.clock.install()
    answer_with(page, 503, "{}")
    classify(page)
    for attempt in range(2, 7):
        expect(page.get_by_text(f"({attempt} of 6)")).to_be_visible()
        # A pause of attempt - 1 seconds, and its random part of up to a second. More could also end the next pause.
        page.clock.run_for(1_000 * attempt)
    alert(page, "The server is overloaded or stopping. Try again later.")


def test_a_failed_part_of_a_list_can_be_retried(page: Page) -> None:
    page.get_by_role("tab", name="Many texts").click()
    page.get_by_label("Texts, one per line").fill("\n".join(["late"] * 300))
    sent = []

    def fail_second(route: Route) -> None:
        sent.append(route.request)
        if len(sent) == 2:
            route.fulfill(status=507, body="{}")
        else:
            route.continue_()

    page.route("**/predictions/*", fail_second)
    page.get_by_role("button", name="Classify all").click()
    expect(page.get_by_role("alert").filter(has_text=MESSAGES[507])).to_be_visible()
    expect(page.locator("#progress-text")).to_have_text("200 of 300 texts.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#progress-text")).to_contain_text("300 of 300 texts")
    assert len(sent) == 3


def test_the_page_asks_the_user_for_a_key(browser: Browser, server_with_keys: Server) -> None:
    context = browser.new_context(base_url=server_with_keys.project.inference)
    context.set_default_timeout(TIMEOUT_MS)
    problems = watch(context)
    page = context.new_page()
    page.goto("/")
    dialog = page.get_by_role("dialog", name="This server requires a key")
    expect(dialog).to_be_hidden()
    classify(page)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    alert(page, "This server requires a key, and refuses requests without one.")

    page.get_by_role("button", name="Try again").click()
    for wrong, answer in (("two words", "A key has letters"), ("another", "The server does not know this key.")):
        page.get_by_label("Key", exact=True).fill(wrong)
        page.keyboard.press("Enter")
        expect(dialog.get_by_text(answer)).to_be_visible()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#why-words")).to_be_visible()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("heading", level=1)).to_have_text("sentiment")

    assert page.evaluate("[Object.keys(sessionStorage), Object.keys(localStorage)]") == [["key"], []]
    assert page.evaluate("sessionStorage.getItem('key')") == KEY
    assert context.cookies() == []
    assert KEY not in page.content(), "neither the page nor a command to copy shows the key"
    command = page.locator("#curls code").first.inner_text()
    output = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"SENTIMENT_TOKEN": KEY}, capture_output=True, check=True
    ).stdout
    assert json.loads(output)["label"] == page.locator("#verdict").inner_text()

    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("sentiment")
    page.get_by_role("button", name="Forget the key").click()
    classify(page)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    context.close()
    assert problems == []
