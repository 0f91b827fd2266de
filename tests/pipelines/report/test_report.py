"""The page that shows an output."""

from __future__ import annotations

import base64
import io
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from pipelines.query.database import open_database
from pipelines.report import charts
from pipelines.report.build import ReportConfig, build_report
from pipelines.report.colors import color
from pipelines.report.facts import read_facts
from pipelines.report.run_facts import Work
from pipelines.report.samples import SampleSizes, draw_samples
from pipelines.types import Caption, CaptionPhrase, Prompt
from tests.support.labeled import box, mask, named, write_output

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SIZE = (60, 80)
CAT, DOG = named("ovseg", "cat", "dog")
HOSTILE = "<script>alert('it\"s')</script><img src=x onerror=alert(1)>"


class _Page(HTMLParser):
    """What a page holds: its tags with their attributes, its text, its pictures by their alt texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.joined = ""
        self.feed(html)
        images = [values for tag, values in self.tags if tag == "img"]
        self.pictures = {values["alt"]: _decoded(values["src"] or "") for values in images}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"
        self.joined += data


def _decoded(uri: str) -> np.ndarray:
    head, data = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(PILImage.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def _photo(folder: Path, name: str, size_hw: tuple[int, int] = SIZE, level: int = 90) -> None:
    folder.mkdir(exist_ok=True)
    PILImage.new("RGB", size_hw[::-1], (level, level, level)).save(folder / name, "PNG")


def _page(store, **sizes: int) -> _Page:
    return _Page(build_report(store, ReportConfig(samples=SampleSizes(**sizes)), made_at=NOW))


def test_a_page_shows_counts_categories_pictures_words_and_reasons(tmp_path: Path) -> None:
    for name in "ab":
        _photo(tmp_path / "p", name)
    caption = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="caption", category_id=0, category_name="caption")
    spoken = Caption(prompt=caption, text="I see a dot, yes.", phrases=(CaptionPhrase(text="a dot", start=6, end=11),))
    phrase = Prompt(prompt_id="gcgseg:caption", task="gcgseg", text="a dot", category_id=0, category_name="a dot")
    found = {
        "a": [mask(CAT, box(10, 10, 30, 30, SIZE), 0.9), mask(phrase, box(50, 10, 20, 20, SIZE), 0.4)],
        "b": [],
        "c": None,
    }
    store, _ = write_output(
        tmp_path / "out",
        found,
        common=[CAT, DOG, caption],
        sizes=dict.fromkeys("ab", SIZE),
        pictures=tmp_path / "p",
        said={"a": [spoken]},
        errors={"c": "the end is missing"},
    )
    page = _page(store)
    text = " ".join(page.text.split())
    assert "listed 3 = ok 1 + empty 1 + quarantined 1" in text
    assert "I see a dot, yes." in page.joined
    assert "truncated" in text
    assert "the end is missing" in text
    assert "not_found" in text
    drawn = page.pictures["a, with cat"]
    assert drawn.shape == (*SIZE, 3)
    assert np.abs(drawn[25, 25] - 90).max() > 20
    assert np.abs(drawn[50, 70] - 90).max() < 12
    assert np.abs(page.pictures["b"] - 90).max() < 12


def test_a_mask_has_the_color_of_its_legend(tmp_path: Path) -> None:
    _photo(tmp_path / "p", "a", (200, 200), level=0)
    found = {"a": [mask(CAT, box(0, 0, 90, 200, (200, 200)), 0.9), mask(DOG, box(110, 0, 90, 200, (200, 200)), 0.8)]}
    store, _ = write_output(
        tmp_path / "out", found, common=[CAT, DOG], sizes={"a": (200, 200)}, pictures=tmp_path / "p"
    )
    page = _page(store)
    for alt, place, number in (("a, with cat", (100, 45), 0), ("a, with dog", (100, 155), 1)):
        seen, wanted = page.pictures[alt][place], np.array(color(number))
        assert np.abs(seen / seen.max() - wanted / wanted.max()).max() < 0.15
        swatches = [values.get("style") for tag, values in page.tags if values.get("class") == "swatch"]
        assert "background:#{:02x}{:02x}{:02x}".format(*color(number)) in swatches


def test_names_ids_words_and_errors_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    (prompt,) = named("ovseg", HOSTILE)
    said = Caption(prompt=prompt, text=HOSTILE, phrases=(CaptionPhrase(text=HOSTILE[:8], start=0, end=8),))
    found = {f"1{HOSTILE}": [mask(prompt, box(1, 1, 3, 3))], f"2{HOSTILE}": None, f"3{HOSTILE}": []}
    store, _ = write_output(
        tmp_path / "out",
        found,
        common=[prompt],
        said={f"1{HOSTILE}": [said]},
        errors={f"2{HOSTILE}": HOSTILE},
    )
    page = _page(store)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, values in page.tags for name in values if name.startswith("on")]
    sources = [values["src"] for _, values in page.tags if "src" in values]
    assert all(source and source.startswith("data:image/webp;base64,") for source in sources)
    assert page.text.count(HOSTILE) > 6


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    _photo(tmp_path / "p", "a")
    store, _ = write_output(
        tmp_path / "out",
        {"a": [mask(CAT, box(0, 0, 9, 9, SIZE))]},
        common=[CAT],
        sizes={"a": SIZE},
        pictures=tmp_path / "p",
    )
    html = build_report(store, ReportConfig(), made_at=NOW)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert "url(" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_an_image_that_cannot_be_shown_is_a_placeholder_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    _photo(folder, "other-size", (20, 20))
    (folder / "broken").write_bytes((folder / "other-size").read_bytes()[:60])
    (folder / "text").write_text("hello")
    found = {name: [mask(CAT, box(0, 0, 9, 9, SIZE))] for name in ("gone", "broken", "text", "other-size")}
    store, _ = write_output(tmp_path / "out", found, common=[CAT], sizes=dict.fromkeys(found, SIZE), pictures=folder)
    page = _page(store)
    for reason in ("not_found", "truncated", "not_an_image", "its masks are not drawn"):
        assert reason in page.text
    assert set(page.pictures) == {"other-size, with cat"}


def test_a_small_mask_on_a_large_image_is_ringed(tmp_path: Path) -> None:
    size_hw = (900, 1200)
    _photo(tmp_path / "p", "a", size_hw)
    found = {"a": [mask(CAT, box(600, 450, 3, 3, size_hw), 0.9)]}
    store, _ = write_output(tmp_path / "out", found, common=[CAT], sizes={"a": size_hw}, pictures=tmp_path / "p")
    drawn = _page(store).pictures["a, with cat"]
    assert drawn.shape == (240, 320, 3)
    assert np.abs(drawn[110:131, 150:171] - 90).max() > 60
    assert np.abs(drawn[:100] - 90).max() < 12


def test_a_quarantined_image_has_its_reason_and_its_error_once(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a").write_bytes(b"")
    (tmp_path / "p" / "b").write_text("hello")
    errors = {"a": "truncated: the file ends early", "b": "truncated: the end is missing", "c": "timeout: slow"}
    store, _ = write_output(tmp_path / "out", dict.fromkeys("abc"), errors=errors, pictures=tmp_path / "p")
    text = " ".join(_page(store).text.split())
    cards = text[text.index("Quarantined images") :]
    # The table of reasons and each card.
    assert cards.count("truncated") == 1 + 3
    for error in ("the file ends early", "the end is missing", "zero_bytes: ", "not_an_image: "):
        assert cards.count(error) == 1
    (tmp_path / "p" / "b").write_bytes(b"")
    same, _ = write_output(
        tmp_path / "same", {"b": None}, errors={"b": "zero_bytes: the file is empty"}, pictures=tmp_path / "p"
    )
    assert _page(same).text.count("the file is empty") == 1


@pytest.mark.slow
def test_the_same_rows_give_the_same_page(tmp_path: Path) -> None:
    found = {f"{n:02d}": [mask(CAT, box(0, 0, 1 + n % 9, 5), 0.1 + n / 50)] for n in range(30)}
    store, _ = write_output(tmp_path / "out", found, common=[CAT])
    assert len({build_report(store, ReportConfig(), made_at=NOW) for _ in range(2)}) == 1


@pytest.mark.slow
def test_pictures_are_bounded_whatever_the_table_holds(tmp_path: Path) -> None:
    names = named("ovseg", *[f"thing {number}" for number in range(90)])
    found = {
        f"{n:03d}": None if n % 10 == 0 else [] if n % 10 == 1 else [mask(p, box(0, 0, 5, 5), 0.3) for p in names[:60]]
        for n in range(60)
    }
    found["all"] = [mask(prompt, box(0, 0, 5, 5)) for prompt in names]
    store, _ = write_output(tmp_path / "out", found, common=names, per_shard=30)
    page = _page(store, per_category=2, scores=3, empty=2, quarantined=2)
    cards = [values for tag, values in page.tags if tag == "figure"]
    assert len(cards) == 12 * 2 + 3 * 3 + 2 + 2
    assert "60 of 90 categories" in page.text


def test_samples_show_a_category_by_its_sure_masks_if_it_has_any(tmp_path: Path) -> None:
    whole = box(0, 0, 10, 10)
    found = {f"{n:02d}": [mask(CAT, whole, 0.05)] for n in range(40)}
    found["sure"] = [mask(CAT, box(1, 1, 3, 3), 0.3), mask(CAT, box(6, 6, 2, 2), 0.29), mask(DOG, whole, 0.1)]
    store, _ = write_output(tmp_path / "out", found, common=[CAT, DOG])
    with open_database(store) as database:
        categories = read_facts(store, database, max_categories=9).categories
        samples = draw_samples(database, categories, SampleSizes())
    shown = {
        category.name: [(card.image.image_id, [round(one.score, 2) for one in card.masks]) for card in cards]
        for category, cards in samples.by_category
    }
    assert shown == {"cat": [("sure", [0.3])], "dog": [("sure", [0.1])]}
    assert {category.name: category.masks for category in categories} == {"cat": 42, "dog": 1}


def test_of_several_runs_current_rows_are_shown_and_every_run_is_told(tmp_path: Path) -> None:
    for run_id, score in (("run-1", 0.2), ("run-2", 0.8)):
        write_output(tmp_path / "out", {"a": [mask(CAT, box(0, 0, 5, 5), score)]}, common=[CAT], run_id=run_id)
    store, _ = write_output(tmp_path / "out", {"b": [], "c": [], "d": []}, common=[DOG], run_id="run-3", committed=1)
    page = _page(store)
    text = " ".join(page.text.split())
    assert "1 mask of 1 category on 1 image, from 3 runs" in text
    assert "listed 3 = ok 1 + empty 2 + quarantined 0" in text
    assert "Run run-3 is not finished: 1 of its 3 images are not labeled yet;" in text
    assert [run for run in ("run-1", "run-2", "run-3") if f"Run {run}" in text] == ["run-1", "run-2", "run-3"]
    assert "0.20" not in text


def test_of_words_of_several_runs_the_last_are_shown(tmp_path: Path) -> None:
    (asked,) = named("chat", "What is it?")
    for number, text in enumerate(("a barn", "a house"), start=1):
        said = {"a": [Caption(prompt=asked, text=text)]}
        store, _ = write_output(tmp_path / "out", {"a": []}, common=[asked], said=said, run_id=f"run-{number}")
    page = _page(store)
    assert "a house" in page.text
    assert "a barn" not in page.text


def test_an_output_without_a_committed_shard_has_a_page(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "out", {"a": []}, committed=0)
    assert "listed 1 = ok 0 + empty 0 + quarantined 0 + not labeled yet 1" in " ".join(_page(store).text.split())


def test_rates_are_images_over_the_time_that_their_shards_took() -> None:
    work = [Work(started_at=0, ended_at=60, images=120), Work(started_at=30, ended_at=60, images=30)]
    chart = charts.rate_chart(work)
    assert chart is not None
    assert "2.5 images/s on average, 3 at most" in chart.summary
    assert [bar.label.split(": ")[1] for bar in (chart.bars[0], chart.bars[29], chart.bars[30], chart.bars[59])] == [
        *["2 images/s"] * 2,
        *["3 images/s"] * 2,
    ]
    assert charts.rate_chart([]) is None


@pytest.mark.parametrize(
    "work", [Work(started_at=5, ended_at=5, images=3), Work(started_at=0, ended_at=1e-9, images=1)]
)
def test_a_shard_that_took_no_time_has_a_chart(work: Work) -> None:
    assert charts.rate_chart([work]) is not None
