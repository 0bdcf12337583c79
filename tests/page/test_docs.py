"""Tests of /docs: Swagger UI with the API's description and a real server."""

import json

import pytest
from playwright.sync_api import BrowserContext, expect


def test_the_documentation_requests_this_server_only(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/")
    page.get_by_role("link", name="API documentation").click()
    operation = page.locator(".opblock", has=page.get_by_text("/predictions/{model}", exact=True))
    operation.get_by_role("button").first.click()
    operation.locator("select").first.select_option("sentiment")
    operation.locator("textarea").fill("Thank you for the great flight!")
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response-col_description .highlight-code").first
    expect(answer).to_contain_text("positive")
    assert json.loads(answer.inner_text().replace("Copy", "").replace("Download", ""))["label"] == "positive"
    assert page.locator("[href*='validator']").count() == 0


def test_the_documentation_follows_the_users_dark_mode(context: BrowserContext) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto("/docs")
    expect(page.locator("html")).to_have_class("dark-mode")
    expect(page.get_by_role("heading", level=1).or_(page.locator("h2.title")).first).to_be_visible()


@pytest.mark.parametrize("models", [["my model", "reviews"], ["reviews"]])
def test_the_documentation_lists_the_servers_models(context: BrowserContext, models: list[str]) -> None:
    page = context.new_page()
    page.route("**/v2/models", lambda route: route.fulfill(json={"models": models}))
    page.goto("/docs")
    for path in ("/predictions/{model}", "/v2/models/{model}/infer"):
        operation = page.locator(".opblock", has=page.get_by_text(path, exact=True))
        operation.get_by_role("button").first.click()
        choice = operation.locator("tr", has_text="The name of a model").locator("select")
        expect(choice).to_have_value(models[0])
        assert choice.locator("option").all_inner_texts()[-len(models) :] == models
