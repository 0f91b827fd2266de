"""The page that shows an output, in a real browser: whole, quiet, and readable on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from pipelines.report.build import ReportConfig, build_report
from pipelines.types import Caption, CaptionPhrase, Prompt
from tests.support.labeled import box, mask, named, write_output

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZE = (60, 80)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section, long names and hostile ones."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "p").mkdir()
    sizes = [SIZE, (80, 60), (160, 40), SIZE, (60, 60), SIZE]
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (*sizes[number], 3), dtype=np.uint8)
        PILImage.fromarray(pixels).save(folder / "p" / f"{number}-{'long-name-' * 12}.png")
    names = sorted(path.name for path in (folder / "p").iterdir())
    prompts = named("ovseg", "cat", "x" * 200, "<script>document.title = 'obeyed'</script>")
    asked = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="caption", category_id=0, category_name="caption")
    said = Caption(prompt=asked, text="w" * 150, phrases=(CaptionPhrase(text="w", start=3, end=120),))
    found: dict[str, Any] = {
        name: [mask(prompt, box(5 * number, 5, 30, 30, sizes[number]), 0.2 + number / 10) for prompt in prompts]
        for number, name in enumerate(names)
    }
    found |= {names[4]: [], names[5]: None, "gone": None, "y" * 200: []}
    store, _ = write_output(
        folder / "out",
        found,
        common=[*prompts, asked],
        sizes=dict.fromkeys(found, SIZE) | dict(zip(names, sizes, strict=True)),
        pictures=folder / "p",
        said={names[0]: [said]},
        errors={"gone": "z" * 500},
    )
    page = folder / "report.html"
    page.write_text(build_report(store, ReportConfig(), made_at=datetime(2026, 1, 2, tzinfo=UTC)), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_is_whole_and_fits(browser: Any, report: Path, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    told: list[str] = []
    requested: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert told == []
    assert [url for url in requested if not url.startswith("data:")] == [report.as_uri()]
    assert page.title().startswith("Labels in ")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(wide) == []
    assert page.evaluate("document.images.length") > 10
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth || !image.alt).length") == 0
    cut_off = """[...document.images].filter(image => {
        const [inner, outer] = [image, image.parentElement].map(e => e.getBoundingClientRect());
        return inner.bottom > outer.bottom + 1 || inner.right > outer.right + 1 || outer.height > outer.width;
    }).map(image => image.alt.slice(0, 80))"""
    assert page.evaluate(cut_off) == []
    headings = [heading.strip() for heading in page.locator("h2").all_inner_texts()]
    assert headings == [
        *("Overview", "Categories", "Samples", "Scores", "Words"),
        *("Empty images", "Quarantined images", "Throughput", "Runs"),
    ]
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
    assert all(page.locator(link).count() == 1 for link in links)
    context.close()
