"""Build the report of an output: a single, self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from pipelines.masks.drawing import Rgb
from pipelines.query.database import open_database
from pipelines.query.files import query_errors
from pipelines.query.row_agreement import check_agreement
from pipelines.redaction import named
from pipelines.report import charts
from pipelines.report.colors import CategoryColors, color, css
from pipelines.report.facts import AREA_EDGES, MASK_EDGES, SCORE_BINS, Facts, read_facts
from pipelines.report.page import Entry, Figure, render_page
from pipelines.report.pictures import Access, Picture, PictureConfig, draw_cards
from pipelines.report.samples import DRAWN_SCORE, Card, ImageRow, Mask, Samples, SampleSizes, draw_samples
from pipelines.storage.store import Store

_SPARK = (100.0, 22.0)
_FIRST_CATEGORIES = 16
_MAX_LEGEND = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConfig:
    """How much a report shows: by default a page of one or two megabytes.

    Attributes:
        listed_categories: number of categories in the table of categories.
        shown_categories: how many of these are shown with pictures.
        samples: numbers of pictures.
        pictures: how pictures are made.
        drop_removed: whether to leave out what only earlier runs asked of every image.
    """

    listed_categories: int = 60
    shown_categories: int = 12
    samples: SampleSizes = field(default_factory=SampleSizes)
    pictures: PictureConfig = field(default_factory=PictureConfig)
    drop_removed: bool = False


def build_report(
    store: Store,
    config: ReportConfig,
    *,
    made_at: datetime,
    on_step: Callable[[str], None] = lambda _: None,
) -> str:
    """Build one HTML page that shows an output's current rows, without scripts and without external resources.

    Args:
        store: the output; it is only read.
        config: how much is shown.
        made_at: time shown on the page.
        on_step: called with a description of each step, for progress.

    Raises:
        StorageError: the output cannot be read. Images that cannot be read are shown as placeholders.
    """
    on_step("opening the tables")
    with query_errors(store), open_database(store, drop_removed=config.drop_removed) as database:
        on_step("counting")
        check_agreement(database, store)
        facts = read_facts(store, database, max_categories=config.listed_categories)
        on_step("choosing what to show")
        samples = draw_samples(database, facts.categories[: config.shown_categories], config.samples)
    colors = CategoryColors(facts.categories)
    groups = samples.groups()
    pictures = draw_cards(
        [card for group in groups for card in group],
        {run.run_id: Access(options=run.source_options, allow_http=run.allow_http) for run in facts.runs},
        lambda card, mask: _color(card, mask, colors),
        config.pictures,
        lambda done, total: on_step(f"drawing images, {done} of {total}"),
    )
    drawn = iter(pictures)
    figures = [[_figure(card, next(drawn), colors) for card in group] for group in groups]
    return _render(store, facts, samples, figures, colors, made_at)


def _color(card: Card, mask: Mask, colors: CategoryColors) -> Rgb:
    """Return a mask's color: its category's, or its phrase's on a card with a caption."""
    return color(mask.category_id) if card.said is not None else colors.of(mask.category)


def _figure(card: Card, picture: Picture, colors: CategoryColors) -> Figure:
    best: dict[str, Mask] = {}
    for mask in card.masks if card.said is None else ():
        best.setdefault(mask.category, mask)
    legend = [Entry(color=css(_color(card, mask, colors)), name=name, score=mask.score) for name, mask in best.items()]
    names = ", ".join(map(named, best)) or "no masks"
    several = f"{len(card.masks)} masks: " if len(card.masks) > 1 else ""
    return Figure(
        card=card,
        picture=picture,
        alt=f"{card.image.image_id}, with {several}{names}" if card.masks else card.image.image_id,
        legend=tuple(legend[:_MAX_LEGEND]),
        more=max(0, len(card.masks) - 1) if card.said is None else 0,
        error=(card.image.error or "").removeprefix(f"{card.image.reason}: "),
        missing=None if card.image.error and _is_same(card.image, picture.missing) else picture.missing,
    )


def _is_same(image: ImageRow, missing: str | None) -> bool:
    """Return whether an image cannot be shown for the very error for which it is quarantined."""
    # Tables have the reason before the messages of decoding only; a report has it before those of fetching, too.
    return missing in (image.error, f"{image.reason}: {image.error}")


def _render(
    store: Store,
    facts: Facts,
    samples: Samples,
    figures: Sequence[Sequence[Figure]],
    colors: CategoryColors,
    made_at: datetime,
) -> str:
    sections = dict(zip(samples.sections, figures[len(samples.by_category) :], strict=True))
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        output=store.uri,
        made_at=made_at.isoformat(timespec="seconds"),
        facts=facts,
        ledger=_ledger(facts),
        by_category=[(category, figures[number]) for number, (category, _) in enumerate(samples.by_category)],
        **sections,
        drawn_score=DRAWN_SCORE,
        first_categories=_FIRST_CATEGORIES,
        charts=_charts(facts),
        rates=[(run.run_id, chart) for run in facts.runs if (chart := charts.rate_chart(run.work))],
        chart_size=(charts.WIDTH, charts.HEIGHT),
        spark=lambda category: charts.sparkline(category.score_counts, *_SPARK),
        spark_size=_SPARK,
        color_of=lambda name: css(colors.of(name)),
        phrase_color=lambda number: css(color(number)),
        share=lambda part, whole: 100 * part / whole if whole else 0.0,
    )


def _ledger(facts: Facts) -> dict[str, int]:
    """Return the counts of listed = ok + empty + not_asked + quarantined + forgotten + left.

    Several runs may list the same images, so with more than one run those that no run has labeled are not counted.
    """
    left = facts.runs[0].left if len(facts.runs) == 1 else 0
    labeled = sum(facts.counts.values())
    return {"listed": labeled + left, **facts.counts, "left": left}


def _charts(facts: Facts) -> list[tuple[str, charts.Chart]]:
    width = 1 / SCORE_BINS
    scores = charts.histogram(
        facts.score_counts,
        [f"{number * width:.2f} to {(number + 1) * width:.2f}" for number in range(SCORE_BINS)],
        [(0, "0"), (SCORE_BINS // 2, "0.5"), (SCORE_BINS, "1")],
        of="masks",
        x_name="score",
    )
    edges = list(MASK_EDGES)
    names = [str(low) if high - low == 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]
    per_image = charts.histogram(
        facts.image_counts,
        [*names, f"{edges[-1]} or more"],
        [(place + 0.5, str(edges[place])) for place in (0, 1, 3, 5, 7, 9, 11)],
        of="images",
        x_name="masks",
    )
    areas = charts.histogram(
        facts.area_counts,
        [f"{_percent(low)} to {_percent(high)}" for low, high in pairwise(AREA_EDGES)],
        [(place, _percent(AREA_EDGES[place])) for place in (1, 3, 5, 7, 9)],
        of="masks",
        x_name="share of the image",
    )
    return [("Scores", scores), ("Masks of an image", per_image), ("Size of masks", areas)]


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
