"""`python -m tests.page.picture`: takes the documentation's screenshot of the page, door/page.png."""

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.e2e.server_process import Project, serving
from tests.page.conftest import chromium
from tests.paths import MODEL, ROOT
from training.export.archive import archive

PICTURE = ROOT / "door" / "page.png"
TEXT = "@JetAway lovely crew, but TWO hours late"
SIZE = {"width": 900, "height": 1_200}
SCALE = 1.5
COLOURS = 256


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive(MODEL, folder / "sentiment.mar", "1.0", "int8")
        (folder / "server").mkdir()
        project = Project(folder / "server", folder / "sentiment.mar")
        with serving(project, OMP_NUM_THREADS="1") as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = browser.new_page(base_url=server.project.inference, device_scale_factor=SCALE)
            picture = taken(page)
            browser.close()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
        PICTURE, optimize=True
    )
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1_000:.0f} kB")


def taken(page: Page) -> bytes:
    """A screenshot of the page with a prediction, down to the most important words."""
    page.set_viewport_size({"width": SIZE["width"], "height": SIZE["height"]})
    page.goto("/")
    page.get_by_label("Text", exact=True).fill(TEXT)
    for _ in range(3):  # the picture shows the latency, and the first requests are slow
        page.get_by_role("button", name="Classify", exact=True).click()
        page.locator("#why-words").wait_for()
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)  # the animation of the bars
    sides = page.locator("#sides").bounding_box()
    assert sides is not None
    height = sides["y"] + sides["height"] + 20
    return page.screenshot(clip={"x": 0, "y": 0, "width": SIZE["width"], "height": height})


if __name__ == "__main__":
    main()
