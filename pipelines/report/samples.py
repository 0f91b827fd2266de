"""Choose the images and masks that a report shows: small samples, the same ones for the same rows.

An annotation_id is a hash, so the smallest ids are a reproducible random sample; images are sampled by the MD5 of their
ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import duckdb

from pipelines.report.facts import Category
from pipelines.report.words import Said, current_words
from pipelines.types import Rle

# Candidates read for each mask shown, so that others are left when many are of the same image or category.
_CANDIDATES_OF_CATEGORY = 10
_CANDIDATES = 40
_MASKS_OF_A_CATEGORY = 12
DRAWN_SCORE = 0.3
"""Masks of a category are shown from this score on: tables hold those below it, which would cover whole pictures."""
# Sections of masks in an order of their scores; the last are those nearest to one half.
_ORDERS = {"highest": "score DESC", "lowest": "score", "doubtful": "abs(score - 0.5)"}
_MAX_TEXT = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """One row of ``annotations``."""

    annotation_id: str
    image_id: str
    task: str
    category: str
    category_id: int
    prompt_id: str
    score: float
    segmentation: Rle
    bbox_xywh: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """The columns of ``images`` for an image that is shown."""

    image_id: str
    uri: str
    run_id: str
    width: int | None
    height: int | None
    content_sha256: str | None
    reason: str | None
    stage: str | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One picture to show.

    Attributes:
        image: the image.
        masks: masks to draw on it, best first.
        said: what the model said about it.
    """

    image: ImageRow
    masks: tuple[Mask, ...] = ()
    said: Said | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """All cards of a report.

    Attributes:
        by_category: those of each shown category.
        sections: those of the sections "highest", "lowest", "doubtful", "said", "empty" and "quarantined".
    """

    by_category: tuple[tuple[Category, tuple[Card, ...]], ...]
    sections: Mapping[str, tuple[Card, ...]]

    def groups(self) -> list[tuple[Card, ...]]:
        """Return the cards, section by section."""
        return [*(cards for _, cards in self.by_category), *self.sections.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSizes:
    """How many pictures are shown.

    Attributes:
        per_category: pictures for each shown category.
        scores: masks with the highest scores, with the lowest, and with those nearest to 0.5, each.
        said: images with a caption or answer.
        empty: images without a mask.
        quarantined: quarantined images for each reason.
    """

    per_category: int = 4
    scores: int = 8
    said: int = 6
    empty: int = 8
    quarantined: int = 3


def draw_samples(database: duckdb.DuckDBPyConnection, categories: Sequence[Category], sizes: SampleSizes) -> Samples:
    """Choose the samples.

    Args:
        database: the output's database, see pipelines.query.database.
        categories: the categories shown with pictures.
        sizes: how many pictures to choose.
    """
    of_categories = _of_categories(database, categories, sizes.per_category)
    by_score = {name: _by_score(database, order, sizes.scores) for name, order in _ORDERS.items()}
    said = current_words(database, sizes.said)
    bare = {
        "empty": _ids(database, _EMPTY, sizes.empty),
        "quarantined": _ids(database, _QUARANTINED, sizes.quarantined),
    }
    picks = [*of_categories, *chain.from_iterable(by_score.values())]
    with_masks = {pick.image_id for pick in picks} | {words.image_id for words in said}
    shown = _Shown(
        rows=_image_rows(database, with_masks.union(*bare.values())),
        masks=_masks(database, with_masks, {pick.annotation_id for pick in picks}),
    )
    return Samples(
        by_category=tuple((category, shown.of_category(category, of_categories)) for category in categories),
        sections={name: shown.single(picks) for name, picks in by_score.items()}
        | {"said": shown.spoken(said)}
        | {name: shown.bare(image_ids) for name, image_ids in bare.items()},
    )


class _Pick(NamedTuple):
    """A mask that is to be shown."""

    annotation_id: str
    image_id: str
    task: str
    category: str


class _Shown:
    """The rows from which the cards are built."""

    def __init__(self, rows: Mapping[str, ImageRow], masks: Sequence[Mask]) -> None:
        self._rows, self._masks = rows, {mask.annotation_id: mask for mask in masks}
        self._of_image: dict[str, list[Mask]] = {}
        for mask in masks:
            self._of_image.setdefault(mask.image_id, []).append(mask)

    def single(self, picks: Iterable[_Pick]) -> tuple[Card, ...]:
        """Return a card for each mask."""
        return tuple(Card(image=self._rows[p.image_id], masks=(self._masks[p.annotation_id],)) for p in picks)

    def of_category(self, category: Category, picks: Iterable[_Pick]) -> tuple[Card, ...]:
        """Return a card for each image among a category's picks, with all of the category's masks that were read."""
        key = (category.task, category.name)
        ids = [pick.image_id for pick in picks if (pick.task, pick.category) == key]
        masks = {i: tuple(mask for mask in self._of_image[i] if (mask.task, mask.category) == key) for i in ids}
        return tuple(Card(image=self._rows[i], masks=masks[i]) for i in ids)

    def spoken(self, said: Iterable[Said]) -> tuple[Card, ...]:
        """Return a card for each caption or answer, with the masks of a caption's phrases."""

        def grounded(words: Said) -> tuple[Mask, ...]:
            masks = self._of_image.get(words.image_id, ())
            return tuple(mask for mask in masks if mask.prompt_id == words.prompt_id and words.task == "gcgseg")

        return tuple(Card(image=self._rows[words.image_id], masks=grounded(words), said=words) for words in said)

    def bare(self, image_ids: Iterable[str]) -> tuple[Card, ...]:
        """Return a card without masks for each image."""
        return tuple(Card(image=self._rows[image_id]) for image_id in image_ids)


_PICK = "annotation_id, image_id, task, category_name"
_EMPTY = "SELECT image_id FROM images WHERE status = 'empty' ORDER BY md5(image_id), 1 LIMIT ?"
_QUARANTINED = """
SELECT image_id FROM images WHERE status = 'quarantined'
QUALIFY row_number() OVER (PARTITION BY reason ORDER BY md5(image_id), image_id) <= ?
ORDER BY reason, md5(image_id), image_id
"""


def _of_categories(database: duckdb.DuckDBPyConnection, categories: Sequence[Category], number: int) -> list[_Pick]:
    """Choose masks of each category, those with the smallest ids, at most one from an image.

    A category without a mask of DRAWN_SCORE is shown by others. First only the ids, then the rows of those few: the
    aggregate must not carry the run lengths of all masks.
    """
    count = number * _CANDIDATES_OF_CATEGORY
    least = database.execute(
        f"""
        SELECT task, category_name, coalesce(min(annotation_id, {count}) FILTER (score >= {DRAWN_SCORE}),
            min(annotation_id, {count})) FROM annotations
        WHERE (task, category_name) IN (SELECT unnest(?), unnest(?)) GROUP BY ALL
        """,
        [[category.task for category in categories], [category.name for category in categories]],
    ).fetchall()
    ids = [annotation_id for *_, found in least for annotation_id in found]
    query = f"SELECT {_PICK} FROM annotations WHERE annotation_id IN (SELECT unnest(?)) ORDER BY annotation_id"
    rows: dict[tuple[str, str], list[_Pick]] = {}
    for pick in _picks(database, query, [ids]):
        rows.setdefault((pick.task, pick.category), []).append(pick)
    return [
        pick
        for category in categories
        for pick in _spread(rows.get((category.task, category.name), ()), number, per_category=number)
    ]


def _by_score(database: duckdb.DuckDBPyConnection, order: str, number: int) -> list[_Pick]:
    query = f"SELECT {_PICK} FROM annotations ORDER BY {order}, annotation_id LIMIT ?"
    return _spread(_picks(database, query, [number * _CANDIDATES]), number, per_category=2)


def _picks(database: duckdb.DuckDBPyConnection, query: str, values: list[Any]) -> list[_Pick]:
    return [_Pick(*row) for row in database.execute(query, values).fetchall()]


def _spread(picks: Iterable[_Pick], number: int, *, per_category: int) -> list[_Pick]:
    """Take the first picks, one per image, and at most ``per_category`` of a category unless too few others exist."""
    taken, passed = list[_Pick](), list[_Pick]()
    images, categories = set[str](), Counter[tuple[str, str]]()
    for pick in picks:
        key = (pick.task, pick.category)
        if pick.image_id in images:
            continue
        if categories[key] >= per_category:
            passed.append(pick)
            continue
        images.add(pick.image_id)
        categories[key] += 1
        taken.append(pick)
    for pick in passed:
        if pick.image_id not in images:
            images.add(pick.image_id)
            taken.append(pick)
    return taken[:number]


def _ids(database: duckdb.DuckDBPyConnection, query: str, number: int) -> list[str]:
    return [row[0] for row in database.execute(query, [number]).fetchall()]


def _image_rows(database: duckdb.DuckDBPyConnection, ids: set[str]) -> dict[str, ImageRow]:
    rows = database.execute(
        """
        SELECT image_id, uri, run_id, width, height, content_sha256, reason, stage, error FROM images
        WHERE image_id IN (SELECT unnest(?))
        """,
        [sorted(ids)],
    ).fetchall()
    names = ImageRow.__slots__
    return {row[0]: ImageRow(**dict(zip(names, (*row[:8], _shortened(row[8])), strict=True))) for row in rows}


def _shortened(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _masks(database: duckdb.DuckDBPyConnection, image_ids: set[str], annotation_ids: set[str]) -> list[Mask]:
    """Read masks of some images, best first: the best of each category that are to be drawn, and the given ones."""
    rows = database.execute(
        f"""
        SELECT annotation_id, image_id, task, category_name, category_id, prompt_id, score,
            segmentation.size, segmentation.counts, bbox_x, bbox_y, bbox_w, bbox_h
        FROM annotations WHERE image_id IN (SELECT unnest(?))
        QUALIFY row_number() OVER (PARTITION BY image_id, task, category_name ORDER BY score DESC, annotation_id)
            <= {_MASKS_OF_A_CATEGORY} AND (score >= {DRAWN_SCORE} OR task = 'gcgseg')
            OR annotation_id IN (SELECT unnest(?))
        ORDER BY image_id, score DESC, annotation_id
        """,
        [sorted(image_ids), sorted(annotation_ids)],
    ).fetchall()
    return [
        Mask(
            annotation_id=row[0],
            image_id=row[1],
            task=row[2],
            category=row[3],
            category_id=row[4],
            prompt_id=row[5],
            score=row[6],
            segmentation=Rle(size_hw=(row[7][0], row[7][1]), counts=row[8]),
            bbox_xywh=tuple(row[9:13]),
        )
        for row in rows
    ]
