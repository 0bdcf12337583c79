"""/docs: Swagger UI over the API's description, before the server itself."""

import json

from playwright.sync_api import BrowserContext, expect


def test_the_documentation_asks_this_server(context: BrowserContext) -> None:
    page = context.new_page()
    page.goto("/")
    page.get_by_role("link", name="API documentation").click()
    operation = page.locator(".opblock", has=page.get_by_text("/predictions/sentiment", exact=True))
    operation.get_by_role("button").first.click()
    operation.locator("textarea").fill("Thank you for the great flight!")
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response-col_description .highlight-code").first
    expect(answer).to_contain_text("positive")
    assert json.loads(answer.inner_text().replace("Copy", "").replace("Download", ""))["label"] == "positive"
    assert page.locator("[href*='validator']").count() == 0


def test_the_documentation_is_dark_where_the_person_wants_it(context: BrowserContext) -> None:
    page = context.new_page()
    page.emulate_media(color_scheme="dark")
    page.goto("/docs")
    expect(page.locator("html")).to_have_class("dark-mode")
    expect(page.get_by_role("heading", level=1).or_(page.locator("h2.title")).first).to_be_visible()


def test_the_documentation_names_the_servers_model(context: BrowserContext) -> None:
    page = context.new_page()
    page.route("**/v2/models", lambda route: route.fulfill(json={"models": ["my model"]}))
    page.goto("/docs")
    expect(page.locator(".opblock", has_text="/predictions/my%20model")).to_be_visible()
    expect(page.locator(".opblock", has_text="/v2/models/my%20model/infer")).to_be_visible()
