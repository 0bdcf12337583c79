"""Tests of the page's appearance and accessibility: phones, dark mode, reduced motion, screen readers."""

from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.server_process import Server
from tests.page.conftest import TIMEOUT_MS

LONG_WORD = "supercalifragilisticexpialidocious" * 4
TEXT = f"@JetAway lovely crew, but TWO hours late & noooo word from {LONG_WORD}. Never again!"

LOW_CONTRAST = """() => {
  // WCAG 2.2, 1.4.3: the contrast of each visible text with its background.
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const blend = (below, color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = `rgb(${below.join(",")})`; context.fillRect(0, 0, 1, 1);
    context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const behind = (element) => blend(element.parentElement ? behind(element.parentElement) : [255, 255, 255],
    getComputedStyle(element).backgroundColor);
  const luminance = (color) => color.map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, index) => sum + each * [0.2126, 0.7152, 0.0722][index], 0);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, style, noscript, .unseen")) continue;
    const style = getComputedStyle(element);
    const ground = behind(element);
    const [high, dim] = [luminance(ground), luminance(blend(ground, style.color))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (dim + 0.05);
    const pixels = parseFloat(style.fontSize);
    const isLarge = pixels >= 24 || (pixels >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (isLarge ? 3 : 4.5)) low.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return { seen, low };
}"""


def opened(browser: Browser, server: Server, **options: Any) -> Page:
    context = browser.new_context(base_url=server.project.inference, **options)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto("/?model=sentiment")
    page.get_by_role("heading", level=1, name="sentiment").wait_for()
    return page


def classify(page: Page) -> None:
    page.get_by_role("tab", name="One text").click()
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#why-words")).to_be_visible()
    page.get_by_text("All tokens that the model reads").click()
    page.locator("#card summary").click()


def classify_many(page: Page) -> None:
    page.get_by_role("tab", name="Many texts").click()
    page.get_by_label("Texts, one per line").fill(f"{TEXT}\n{LONG_WORD}\n{'x ' * 10_001}")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#table tbody tr")).to_have_count(3)
    expect(page.locator("#cancel")).to_be_hidden()


def fail(page: Page) -> None:
    page.get_by_role("tab", name="One text").click()
    page.get_by_label("Text", exact=True).fill(" ")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("alert").filter(has_text="no text")).to_be_visible()


ACTIONS = (classify, classify_many, fail)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast_in_both_modes(browser: Browser, server: Server, scheme: str) -> None:
    page = opened(browser, server, color_scheme=scheme)
    for action in ACTIONS:
        action(page)
        texts = page.evaluate(LOW_CONTRAST)
        assert texts["seen"] > 15
        assert texts["low"] == []
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    brightness = sum(int(part) for part in background.strip("rgb()").split(","))
    assert (brightness < 150) == (scheme == "dark")
    page.context.close()


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_scrolls_in_one_direction(browser: Browser, server: Server, width: int) -> None:
    page = opened(browser, server, viewport={"width": width, "height": 640}, is_mobile=True, has_touch=True)
    for action in ACTIONS:
        action(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, action.__name__
        small = page.locator("button:visible, select:visible, [role=tab]:visible").evaluate_all(
            "(all) => all.filter((each) => each.getBoundingClientRect().height < 24).map((each) => each.textContent)"
        )
        assert small == [], "WCAG 2.2, 2.5.8"
    page.context.close()


def test_reduced_motion_turns_animations_off(browser: Browser, server: Server) -> None:
    page = opened(browser, server, reduced_motion="reduce")
    classify(page)
    assert page.locator("#bars .fill").first.evaluate("(bar) => getComputedStyle(bar).transitionProperty") == "none"
    page.context.close()


def test_every_element_has_a_name_and_a_role_for_screen_readers(browser: Browser, server: Server) -> None:
    page = opened(browser, server)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "sentiment: text classifier"
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        assert page.get_by_role(landmark).count() == 1, landmark
    session = page.context.new_cdp_session(page)
    for action in ACTIONS:
        action(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        controls = {"button", "textbox", "combobox", "checkbox", "link", "tab", "progressbar", "table", "dialog"}
        elements = [node for node in nodes if not node["ignored"] and node["role"]["value"] in controls]
        assert len(elements) > 5
        nameless = [node for node in elements if not node.get("name", {}).get("value")]
        assert [node["role"]["value"] for node in nameless] == []
        levels = page.locator("h1:visible, h2:visible, h3:visible").evaluate_all(
            "(all) => all.map((each) => +each.tagName[1])"
        )
        assert levels[0] == 1
        assert all(later - earlier <= 1 for earlier, later in pairwise(levels)), levels
    identifiers = page.locator("[id]").evaluate_all("(all) => all.map((each) => each.id)")
    assert len(identifiers) == len(set(identifiers))
    for attribute in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
        values = page.locator(f"[{attribute}]").evaluate_all(
            f"(all) => all.map((each) => each.getAttribute('{attribute}'))"
        )
        assert {part for value in values for part in value.split()} <= set(identifiers), attribute
    page.context.close()
