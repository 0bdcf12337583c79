"""Tests of a single text: prediction, highlighted words, keyboard use, commands and models."""

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import BrowserContext, Page, Route, expect

from tests.e2e.server_process import Server

TEXT = "@JetAway lovely crew, but TWO hours late &amp; noooo word from anyone. Never again!"
ODD_TEXTS = [
    TEXT,
    "<b>late</b> <script>alert(1)</script> <img src=x onerror=alert(1)>",
    "😀😂 GREAT flight 👨‍👩‍👧 thanks!!!",
    "İstanbul: café, 3km\nlate... SO SO SO late",
    "الرحلة متأخرة but THANKS",
    "\ufeff\ufeffGood crew",
    "so so so so good &#39;really&#39;",
    "Crew\u2028Captain\x0bLanding\x1cGate",
]


SHELL_TEXTS = [
    'It\'s late & "rude" $HOME `id` \\ !! %s ~ *',
    "@/etc/passwd",
    "-d x",
    "two\nlines\n",
    "a tab\there, escape \x1b[31m, del \x7f, zero \x00 and \x85",
    "été 😀 \u2028 end",
    "'",
]
VERBS = ("predictions", "explanations")


def ask(server: Server, verb: str, text: str) -> Any:
    body = text.encode()
    response = requests.post(
        f"{server.project.inference}/{verb}/sentiment", body, headers={"Content-Type": "text/plain"}, timeout=30
    )
    response.raise_for_status()
    return response.json()


def classify(page: Page, text: str) -> None:
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#why-words, #why-note:not(:empty)").first).to_be_visible()
    expect(page.get_by_role("button", name="Classify", exact=True)).to_be_visible()


def shown_text(page: Page) -> str:
    """The text with its marked words, without the parts for screen readers."""
    script = """(words) => { const copy = words.cloneNode(true);
        copy.querySelectorAll(".unseen").forEach((each) => each.remove()); return copy.textContent; }"""
    shown: str = page.locator("#words").evaluate(script)
    return shown


def test_a_typed_text_gets_a_prediction_with_highlighted_tokens(page: Page, server: Server) -> None:
    page.get_by_label("Text", exact=True).press_sequentially(TEXT)
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#why-words")).to_be_visible()
    explanation = ask(server, "explanations", TEXT)

    expect(page.get_by_role("heading", name=explanation["label"], exact=True)).to_be_visible()
    assert "version 1.0, answered in" in page.locator("#source").inner_text()
    for label, score in explanation["scores"].items():
        bar = page.locator("#bars li", has_text=label)
        assert f"{100 * score:.1f} %" in bar.inner_text()
        widths = [bar.locator(part).evaluate("(each) => each.clientWidth") for part in (".fill", ".track")]
        assert widths[1] > 0
    assert shown_text(page) == TEXT
    strongest = max(
        (each for each in explanation["tokens"] if each["token"] != "xxbos"), key=lambda each: each["weight"]
    )
    word = TEXT[strongest["start"] : strongest["end"]]
    mark = page.locator("#words mark.for", has_text=word).first
    assert f"for {explanation['label']}" in (mark.get_attribute("title") or "")
    assert mark.locator(".unseen").inner_text().strip().startswith("(+0.")
    expect(page.get_by_role("status").first).to_have_text(
        f"{explanation['label']}, {100 * explanation['score']:.1f} %."
    )
    page.get_by_text("All tokens that the model reads").click()
    expect(page.locator("#tokens tbody tr")).to_have_count(len(explanation["tokens"]))


def test_any_text_is_shown_as_it_was_written(page: Page, server: Server) -> None:
    for text in ODD_TEXTS:
        classify(page, text)
        expect(page.locator("#why-words")).to_be_visible()
        read = text.lstrip("\ufeff")
        assert shown_text(page) == read
        explanation = ask(server, "explanations", text)
        assert page.locator("#verdict").inner_text() == explanation["label"]
        marks = page.locator("#words > *").evaluate_all("(all) => all.map((each) => each.firstChild.data)")
        for token in explanation["tokens"]:
            part = read[token["start"] : token["end"]]
            assert not part.strip() or any(part in mark for mark in marks), (token, marks)
        assert page.locator("#words img, #words script, #words b").count() == 0


def test_the_page_can_be_used_with_the_keyboard_alone(page: Page) -> None:
    def focused() -> str:
        name: str = page.evaluate("document.activeElement.id || document.activeElement.textContent")
        return name

    def tab_to(target: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if focused() == target:
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{target} does not show that it has the focus"
                return
        pytest.fail(f"Tab never reaches {target}")

    tab_to("text")
    page.keyboard.type("Lovely crew, but two hours late")
    tab_to("classify")
    page.keyboard.press("Enter")
    expect(page.locator("#why-words")).to_be_visible()
    assert focused() == "classify", "a prediction does not move the focus"
    tab_to("All tokens that the model reads")
    page.keyboard.press("Enter")
    expect(page.locator("#tokens")).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if focused() == "tab-one":
            break
    page.keyboard.press("ArrowRight")
    assert focused() == "tab-many"
    tab_to("lines")
    page.keyboard.type("late again")
    page.keyboard.press("Enter")
    page.keyboard.type("thank you")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#table tbody tr")).to_have_count(2)


def test_the_shown_commands_give_the_same_prediction(page: Page, server: Server) -> None:
    for text in SHELL_TEXTS:
        classify(page, text)
        for verb, command in zip(VERBS, page.locator("#curls code").all_inner_texts(), strict=True):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", command), "a terminal interprets control characters"
            shell = "sh" if verb == "predictions" else "bash"
            answer = subprocess.run([shell, "-c", command], capture_output=True, check=True, timeout=30)
            assert json.loads(answer.stdout) == ask(server, verb, text), command


def test_a_command_can_be_copied(page: Page, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    classify(page, TEXT)
    page.get_by_role("button", name="Copy the command: Prediction").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curls code").first.inner_text()


def test_a_long_text_is_classified_without_highlighting(page: Page, server: Server) -> None:
    text = "two hours late again " * 900
    classify(page, text)
    expect(page.get_by_text("The text is too long to weigh each word.")).to_be_visible()
    expect(page.locator("#verdict")).to_have_text(ask(server, "predictions", text)["label"])


def test_an_example_needs_one_click(page: Page) -> None:
    example = page.get_by_role("group", name="Examples").get_by_role("button").first
    text = example.inner_text()
    example.click()
    expect(page.locator("#why-words")).to_be_visible()
    assert shown_text(page) == page.get_by_label("Text", exact=True).input_value() == text


def test_the_prediction_shown_is_that_of_the_last_text(page: Page) -> None:
    """A late response to an earlier text is not shown."""
    late: list[Route] = []
    page.route("**/predictions/sentiment", lambda route: late.append(route) if not late else route.continue_())
    page.get_by_label("Text", exact=True).fill("Thank you for the great flight!")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Classifying …")).to_be_visible()
    page.get_by_label("Text", exact=True).fill("Two hours late, never again")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#verdict")).to_have_text("negative")
    assert len(late) == 1
    late[0].abort()
    page.wait_for_timeout(100)
    expect(page.locator("#verdict")).to_have_text("negative")
    expect(page.locator("#one-message")).to_be_empty()


def test_the_page_shows_the_models_card(page: Page) -> None:
    page.locator("#card summary").click()
    facts = page.locator("#facts")
    expect(facts).to_contain_text("sentiment")
    expect(facts).to_contain_text("negative, neutral, positive")


def test_each_model_has_its_own_address_in_the_page(page: Page, server: Server) -> None:
    """The fixture `server` has two models."""
    page.get_by_label("Model", exact=True).select_option("batched")
    expect(page.get_by_role("heading", level=1)).to_have_text("batched")
    page.goto("/?model=batched")
    expect(page.get_by_role("heading", level=1)).to_have_text("batched")
    expect(page).to_have_title("batched: text classifier")


WORDS = [
    {"token": "good", "weight": 2.5, "start": 0, "end": 4},
    {"token": "crew", "weight": -0.25, "start": 5, "end": 9},
]
TASKS = [
    (
        {"labels": ["crew", "delay"], "scores": {"crew": 0.9, "delay": 0.6, "food": 0.1}},
        "crew, delay",
        3,
        "crew, delay",
    ),
    ({"labels": [], "scores": {"crew": 0.2, "delay": 0.3}}, "No label", 2, "delay"),
    ({"value": -3.5}, "-3.5", 0, "a higher value"),
]


@pytest.mark.parametrize(("prediction", "title", "bars", "subject"), TASKS)
def test_a_model_that_predicts_several_labels_or_a_number_is_shown(
    page: Page, prediction: dict[str, Any], title: str, bars: int, subject: str
) -> None:
    """The responses follow handler/openapi.yaml; the fixture `server` has no such model."""
    page.route("**/predictions/*", lambda route: route.fulfill(json=predicted_for(route, prediction)))
    page.route("**/explanations/*", lambda route: route.fulfill(json=prediction | {"tokens": WORDS}))
    classify(page, "good crew")
    expect(page.locator("#verdict")).to_have_text(title)
    assert page.locator("#bars li:visible").count() == bars
    assert page.locator("#bars li.best").count() == len(prediction.get("labels", []))
    expect(page.locator("#why-key")).to_have_text(f"for and against {subject}")
    expect(page.locator("#sides")).to_contain_text(f"For {subject}")
    page.get_by_role("tab", name="Many texts").click()
    page.get_by_label("Texts, one per line").fill("good crew\ngood crew")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#table tbody tr").nth(1)).to_contain_text("" if title == "No label" else title)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    with Path(download.value.path()).open(encoding="utf-8-sig", newline="") as file:
        head, first, *_ = csv.reader(file)
    scores = prediction.get("scores", {})
    column = "labels" if scores else "value"
    assert head == ["text", column, *(f"score: {label}" for label in scores), "problem"]
    cell = "; ".join(prediction["labels"]) if scores else "-3.5"
    assert first == ["good crew", cell, *map(str, scores.values()), ""]


def predicted_for(route: Route, prediction: dict[str, Any]) -> Any:
    """The prediction, repeated for each text of the request."""
    is_list = route.request.headers["content-type"] == "application/json"
    return [prediction] * len(json.loads(route.request.post_data or "")) if is_list else prediction
