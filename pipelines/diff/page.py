"""The page of a comparison: its figures, and pictures of the largest changes with both masks on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pipelines.diff.changes import Difference
from pipelines.diff.comparison import Comparison
from pipelines.diff.largest import SHOWN, LargeChange
from pipelines.diff.tally import IOU_BINS
from pipelines.masks import rle
from pipelines.masks.drawing import Rgb
from pipelines.planning.plan import plan_documents
from pipelines.redaction import named
from pipelines.report import charts
from pipelines.report.colors import color, css
from pipelines.report.page import Entry, Figure, render_page
from pipelines.report.pictures import Access, Picture, PictureConfig, draw_cards
from pipelines.report.samples import Card, ImageRow, Mask
from pipelines.storage.store import Store

# Numbers of colors, which a card's masks carry in the place of their category's.
_BEFORE, _AFTER = 1, 0
_MAX_PROMPTS = 200
_TITLES = {
    Difference.LOST: ("Lost", "not there any more"),
    Difference.ADDED: ("Added", "not there before"),
    Difference.RELABELED: ("Relabeled", "in the same place under another name"),
    Difference.MOVED: ("Moved", "of the same name and another shape"),
}


def build_page(
    comparison: Comparison,
    after: Store,
    *,
    made_at: datetime,
    on_step: Callable[[str], None] = lambda _: None,
) -> str:
    """Build one HTML page that shows a comparison, without scripts and without external resources.

    Args:
        comparison: what is shown.
        after: the output of the side after, from whose images the pictures are made.
        made_at: time shown on the page.
        on_step: called with a description of each step, for progress.

    Raises:
        StorageError: a plan cannot be read. Images that cannot be read are shown as placeholders.
    """
    larges = [large for kind in SHOWN for large in comparison.largest.get(kind, ())]
    pictures = draw_cards(
        list(map(_card, larges)),
        _access(after),
        lambda _card, mask: _color(mask),
        PictureConfig(),
        lambda done, total: on_step(f"drawing images, {done} of {total}"),
    )
    drawn = iter(map(_figure, larges, pictures))
    sections = [
        (*_TITLES[kind], comparison.total.counts[kind], [next(drawn) for _ in comparison.largest[kind]])
        for kind in SHOWN
        if kind in comparison.largest
    ]
    return render_page(
        Path(__file__).with_name("diff.html.j2"),
        comparison=comparison,
        prompts=list(comparison.prompts.items())[:_MAX_PROMPTS],
        sections=sorted(sections, key=lambda section: list(_TITLES.values()).index(section[:2])),
        made_at=made_at.isoformat(timespec="seconds"),
        before_color=css(color(_BEFORE)),
        after_color=css(color(_AFTER)),
        chart=_chart(comparison.total.iou_counts),
        chart_size=(charts.WIDTH, charts.HEIGHT),
    )


def _access(store: Store) -> Mapping[str, Access]:
    """Return how the images of each run are fetched."""
    sources = {
        run_id: plan.get("facts", {}).get("config", {}).get("source") or {}
        for run_id, plan in plan_documents(store).items()
    }
    return {
        run_id: Access(
            options={**(source.get("storage_options") or {}), "http": source.get("http")},
            allow_http=bool(source.get("allow_http")),
        )
        for run_id, source in sources.items()
    }


def _card(large: LargeChange) -> Card:
    image, size_hw = large.image, large.image.size_hw or (None, None)
    row = ImageRow(
        image_id=image.image_id,
        uri=image.uri,
        run_id=image.run_id,
        width=size_hw[1],
        height=size_hw[0],
        content_sha256=image.content_sha256,
        reason=None,
        stage=None,
        error=None,
    )
    return Card(image=row, masks=tuple(_masks(large)))


def _masks(large: LargeChange) -> Iterator[Mask]:
    # The first is drawn last, over the other.
    for mask, number in ((large.change.after, _AFTER), (large.change.before, _BEFORE)):
        if mask is not None:
            yield Mask(
                annotation_id=mask.annotation_id,
                image_id=large.image.image_id,
                task=mask.task,
                category=mask.category_name,
                category_id=number,
                prompt_id=mask.prompt_id,
                score=mask.score,
                segmentation=mask.segmentation,
                bbox_xywh=rle.bbox_xywh(mask.segmentation),
            )


def _color(mask: Mask) -> Rgb:
    return color(mask.category_id)


def _figure(large: LargeChange, picture: Picture) -> Figure:
    card, iou = _card(large), large.change.iou
    masks = card.masks[::-1]
    names = " and ".join(named(mask.category) for mask in masks)
    agreement = "" if iou is None else f"IoU {iou:.2f}, "
    return Figure(
        card=card,
        picture=picture,
        alt=f"{card.image.image_id}, {large.change.difference.value}: {names}",
        legend=tuple(Entry(color=css(_color(mask)), name=mask.category, score=mask.score) for mask in masks),
        missing=picture.missing,
        note=f"{agreement}{100 * large.share:.1f} % of the picture",
    )


def _chart(counts: list[int]) -> charts.Chart:
    width = 1 / IOU_BINS
    labels = [f"{number * width:.2f} to {(number + 1) * width:.2f}" for number in range(IOU_BINS)]
    ticks: list[tuple[float, str]] = [(0, "0"), (IOU_BINS // 2, "0.5"), (IOU_BINS, "1")]
    return charts.histogram(counts, labels, ticks, of="masks", x_name="IoU")
