"""Polygons of files: what is drawn is what pycocotools draws, and nothing reaches it that it cannot count with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pipelines.masks import polygons, rle
from pipelines.masks.polygons import MAX_COORDINATE, from_polygons
from pipelines.masks.regions import read_region

SIZE = (40, 60)


def test_polygons_are_those_of_pycocotools() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        parts = [random.uniform(-20, 80, 2 * random.integers(3, 9)).tolist() for _ in range(random.integers(1, 4))]
        theirs = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, *SIZE)))
        assert np.array_equal(rle.decode(from_polygons(parts, SIZE)), theirs.astype(bool))


def test_a_vertex_at_the_bound_is_drawn() -> None:
    assert rle.area(from_polygons([[0, 0, MAX_COORDINATE, 0, MAX_COORDINATE, 10, 0, 10]], SIZE)) == 10 * SIZE[1]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([[0, 0, 200_000, 0, 5, 5]], "vertex at 200000, beyond any image: at most 100,000"),
        ([[0, 0, 5, 0, 5, 5], [0, 0, -200_000, 0, 5, 5]], "vertex at -200000"),
        ([[0, 0, float("inf"), 0, 5, 5]], "vertex at inf"),
        ([[0, 0, float("nan"), 0, 5, 5]], "vertex at nan"),
        ([[0, 0, 10**400, 0, 5, 5]], "flat list of x and y"),
        ([[0, 0, 4, 4]], "at least three x, y"),
        ([[]], "at least three x, y"),
        ([[0, 0, 4, 4, 5]], "of 5 numbers is no list of x, y"),
        ([[[0, 0], [4, 4], [5, 0]]], "numbers is no list"),
        ([[0, 0, None, 4, 5, 0]], "flat list|vertex at nan"),
        ([[0, 0, "3", 4, 5, 0]], "a list of at least three x, y"),
        ([{"x": 1}], "a list of at least three x, y"),
        ([7], "a list of at least three x, y"),
    ],
)
def test_what_is_no_polygon_never_reaches_the_library(
    monkeypatch: pytest.MonkeyPatch, parts: list[Any], words: str
) -> None:
    monkeypatch.setattr(polygons, "coco_mask", None)
    with pytest.raises(ValueError, match=words):
        from_polygons(parts, SIZE)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (2**16, 2**16)])
def test_an_image_of_no_size_or_too_large_a_size_is_not_drawn_on(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(polygons, "coco_mask", None)
    with pytest.raises(ValueError, match="is not drawn on"):
        from_polygons([[0, 0, 5, 0, 5, 5]], size)


def test_a_polygon_that_is_asked_about_is_held_to_the_same_bound() -> None:
    with pytest.raises(ValueError, match="polygon has a vertex at 200000, beyond any image"):
        read_region("polygon", coordinates=[0, 0, 200_000, 0, 5, 5])
    assert read_region("polygon", coordinates=[0, 0, 90_000, 0, 5, 5]).kind == "polygon"
