"""Tests of lists of texts: typed lines and files are classified, shown in a table and downloaded."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Page, Request, expect

from tests.e2e.server_process import Server
from tests.paths import TOY_TWEETS

FORMULAS = ["=1+1", "+1 late", "-2 stars", "@JetAway late", "\tlate", "＝1", 'plain "quoted", late', "two\nlines"]


def predictions(server: Server, texts: list[str]) -> list[dict[str, Any]]:
    response = requests.post(server.project.predictions, json=texts, timeout=30)
    response.raise_for_status()
    answer: list[dict[str, Any]] = response.json()
    return answer


@pytest.fixture
def many(page: Page) -> Page:
    page.get_by_role("tab", name="Many texts").click()
    return page


def classify_all(page: Page) -> None:
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#table-field")).to_be_visible()


def open_file(page: Page, name: str, content: bytes) -> None:
    page.get_by_label("File").set_input_files({"name": name, "mimeType": "text/csv", "buffer": content})
    expect(page.locator("#file-note")).to_contain_text(name)


def downloaded(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "predictions.csv"
    content = Path(download.value.path()).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf"), "without a byte-order mark, a spreadsheet assumes another encoding"
    return list(csv.DictReader(content.decode("utf-8-sig").splitlines(keepends=True)))


def test_lines_become_a_table_and_a_download(many: Page, server: Server) -> None:
    texts = ["Thank you for the great flight!", "<b>late</b> again", "Which gate is flight 12?"]
    many.get_by_label("Texts, one per line").fill("\n".join([texts[0], "", *texts[1:], " "]))
    classify_all(many)
    expected = predictions(server, texts)
    shown = many.locator("#table tbody tr").all()
    assert len(shown) == len(texts)
    for row, text, answer in zip(shown, texts, expected, strict=True):
        cells = row.locator("td").all_inner_texts()
        scores = [f"{score:.3f}" for score in answer["scores"].values()]
        assert cells[1:] == [text, answer["label"], f"{answer['score']:.3f}", *scores]
    for record, text, answer in zip(downloaded(many), texts, expected, strict=True):
        assert record["text"] == text
        assert record["label"] == answer["label"]
        assert float(record["score"]) == answer["score"]
        assert {label: float(record[f"score: {label}"]) for label in answer["scores"]} == answer["scores"]
        assert record["problem"] == ""
    expect(many.locator("#progress-text")).to_contain_text("3 of 3 texts")
    counts = many.locator("#counts").inner_text()
    assert all(label in counts for label in expected[0]["scores"])
    command = many.locator("#curls-many code").inner_text()
    output = subprocess.run(["bash", "-c", command], capture_output=True, check=True).stdout
    assert json.loads(output) == expected


def test_a_csv_file_keeps_its_columns(many: Page, server: Server) -> None:
    open_file(many, "tweets.csv", TOY_TWEETS.read_bytes())
    expect(many.get_by_label("Column")).to_have_value(
        str(TOY_TWEETS.read_text().partition("\n")[0].split(",").index("text"))
    )
    classify_all(many)
    with TOY_TWEETS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    answers = predictions(server, [row["text"] for row in rows])
    for row, original, answer in zip(downloaded(many), rows, answers, strict=True):
        assert {name: row[name].removeprefix("'") for name in original} == original
        assert (row["label"], float(row["score"])) == (answer["label"], answer["score"])


def test_no_cell_of_the_download_is_a_formula(many: Page) -> None:
    rows = [["id", "comment; or not"], *([f"={index}", text] for index, text in enumerate(FORMULAS))]
    content = "\r\n".join(";".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    open_file(many, "formulas.csv", content.encode())
    expect(many.get_by_label("Column").locator("option")).to_have_text(["id", "comment; or not"])
    many.get_by_label("Column").select_option(label="comment; or not")
    classify_all(many)
    for row, text in zip(downloaded(many), FORMULAS, strict=True):
        assert all(not (value or "x").startswith(("=", "+", "-", "@", "\t", "＝")) for value in row.values())
        assert row["comment; or not"].removeprefix("'") == text
        assert row["label"]


def test_files_in_other_encodings_and_formats_are_read(many: Page) -> None:
    """The files have other encodings and separators, no header, lines, unclosed quotes, or rows of other lengths."""
    files = {
        "windows.csv": ("text\r\ncafé très bon".encode("cp1252"), ["café très bon"]),
        "excel.csv": ("\ufeffid\ttext\r\n1\tcafé".encode("utf-16"), ["café"]),
        "mark.csv": ("text,id\nlate,1\n".encode("utf-8-sig"), ["late"]),
        "plain.txt": (b"one, two\n\nthree", ["one, two", "three"]),
        "unfinished.csv": (b'text\n"never closed\nlate', ["never closed\nlate"]),
        "short.csv": (b"id,text\n1\n2,late,more", ["", "late"]),
    }
    for name, (content, texts) in files.items():
        open_file(many, name, content)
        classify_all(many)
        assert many.locator("#table tbody td.text").all_inner_texts() == texts, name
    many.get_by_role("button", name="Close the file").click()
    expect(many.get_by_label("Texts, one per line")).to_be_visible()
    many.get_by_label("File").set_input_files({"name": "empty.csv", "mimeType": "text/csv", "buffer": b"\n"})
    expect(many.get_by_role("alert").filter(has_text="This file has no text.")).to_be_visible()


def test_the_user_can_mark_the_first_row_as_data(many: Page) -> None:
    open_file(many, "names.csv", b"late,gate\nagain,crew")
    expect(many.locator("#file-note")).to_have_text("names.csv: 1 row.")
    many.get_by_label("The first row is a header").uncheck()
    expect(many.locator("#file-note")).to_have_text("names.csv: 2 rows.")
    expect(many.get_by_label("Column").locator("option")).to_have_text(["Column 1", "Column 2"])
    classify_all(many)
    assert many.locator("#table tbody td.text").all_inner_texts() == ["late", "again"]


def test_a_file_can_be_dropped_on_the_page(page: Page) -> None:
    page.evaluate(
        """() => { const transfer = new DataTransfer();
            transfer.items.add(new File(["text\\nlate\\nthank you"], "dropped.csv", { type: "text/csv" }));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent("drop", options));
        }"""
    )
    expect(page.locator("#file-note")).to_have_text("dropped.csv: 2 rows.")
    classify_all(page)
    expect(page.locator("#table tbody tr")).to_have_count(2)


def test_a_refused_row_does_not_affect_the_others(many: Page, server: Server) -> None:
    texts = ["late", "x " * 10_001, "thank you", " ", "\u2003", "never again"]
    content = "text,id\n" + "".join(f'"{text}",1\n' for text in texts)
    open_file(many, "mixed.csv", content.encode())
    classify_all(many)
    rows = downloaded(many)
    assert [bool(row["label"]) for row in rows] == [True, False, True, False, False, True]
    assert [bool(row["problem"]) for row in rows] == [False, True, False, True, True, False]
    assert "too much for one request" in rows[1]["problem"]
    expect(many.locator("#progress-text")).to_contain_text("6 of 6 texts")
    expect(many.locator("#progress-text")).to_contain_text("3 rows without a prediction")
    assert rows[5]["label"] == predictions(server, ["never again"])[0]["label"]


def test_a_long_list_is_sent_in_parts_and_can_be_cancelled(many: Page) -> None:
    count = 1_100
    bodies: list[int] = []

    def on_request(request: Request) -> None:
        if request.method == "POST":
            bodies.append(len(request.post_data_buffer or b""))

    many.on("request", on_request)
    many.get_by_label("Texts, one per line").fill("\n".join(f"flight {number} is late" for number in range(count)))
    held = []
    many.route("**/predictions/*", lambda route: route.continue_() if len(bodies) < 4 else held.append(route))
    many.get_by_role("button", name="Classify all").click()
    expect(many.locator("#progress-text")).to_have_text("600 of 1,100 texts.")
    assert many.locator("#progress").evaluate("(bar) => bar.value / bar.max") == pytest.approx(600 / count)
    many.get_by_role("button", name="Cancel").click()
    expect(many.get_by_text("Cancelled. The predictions so far are below.")).to_be_visible()
    expect(many.locator("#table tbody tr")).to_have_count(100)
    many.unroute("**/predictions/*")
    assert len(held) == 1
    many.get_by_role("button", name="Continue").click()
    expect(many.locator("#progress-text")).to_contain_text("1,100 of 1,100 texts")
    many.get_by_role("button", name="Show 100 more").click()
    expect(many.locator("#table tbody tr")).to_have_count(200)
    assert len(downloaded(many)) == count
    assert max(bodies) <= 16_384, "the door limits small requests separately"
    assert len(bodies) == 4 + 3, "texts with a prediction are not sent again"


def test_the_download_has_the_rows_of_the_classified_file(many: Page) -> None:
    """The user may have opened another file, and a column may have the name of a column of the download."""
    open_file(many, "first.csv", b"text,label,id\nlate,mine,7\n")
    classify_all(many)
    open_file(many, "second.csv", b"comment\nthank you\n")
    [row] = downloaded(many)
    assert (row["text"], row["label"], row["id"]) == ("late", "mine", "7")
    assert row["predicted label"] in ("negative", "neutral", "positive")


def test_a_list_never_mixes_predictions_of_two_models(many: Page) -> None:
    many.get_by_label("Texts, one per line").fill("late\nthank you")
    classify_all(many)
    many.get_by_label("Model", exact=True).select_option("batched")
    expect(many.locator("#table-field")).to_be_hidden()
    many.route("**/predictions/*", lambda _: None)  # never answered
    many.get_by_role("button", name="Classify all").click()
    expect(many.locator("#cancel")).to_be_visible()
    many.get_by_label("Model", exact=True).select_option("sentiment")
    expect(many.locator("#cancel")).to_be_hidden()
    assert many.get_by_role("button", name="Continue").count() == 0
    many.unroute("**/predictions/*")
    classify_all(many)
    expect(many.locator("#progress-text")).to_contain_text("by sentiment")
