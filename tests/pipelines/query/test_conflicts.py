"""The view ``conflicts``: masks in the place of one of another name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import StorageError
from pipelines.masks import rle
from pipelines.query.database import open_database
from pipelines.query.files import query_errors
from pipelines.types import Rle
from tests.support.labeled import SIZE, box, mask, named, write_output

CUP, DOG, CAT = named("ovseg", "cup", "dog", "cat")
(SKY,) = named("genseg", "sky")
WHOLE, MOST, OTHER = box(0, 0, 10, 4), box(0, 0, 8, 4), box(0, 5, 10, 4)


def asked(folder: Path, query: str, found: dict[str, Any], **options: Any) -> list[tuple[Any, ...]]:
    store, _ = write_output(folder / "out", found, common=[CUP, DOG, CAT, SKY])
    with open_database(store, **options) as database, query_errors(store):
        return database.execute(query).fetchall()


def test_each_mask_is_told_the_one_of_another_name_that_it_agrees_with_best(tmp_path: Path) -> None:
    found = {
        "a": [mask(CUP, WHOLE, 0.9), mask(DOG, MOST, 0.6), mask(CAT, box(0, 0, 5, 4), 0.3), mask(SKY, WHOLE, 0.8)],
        "b": [mask(CUP, WHOLE, 0.9), mask(CUP, MOST, 0.7), mask(DOG, OTHER, 0.5)],
        "c": [],
    }
    columns = "image_id, category_name, conflict_name, conflict_iou, round(conflict_score, 2)"
    query = f"SELECT {columns} FROM conflicts ORDER BY ALL"
    assert asked(tmp_path, query, found) == [
        ("a", "cat", "dog", pytest.approx(0.625), pytest.approx(0.6)),
        ("a", "cup", "dog", 0.8, pytest.approx(0.6)),
        ("a", "dog", "cup", 0.8, pytest.approx(0.9)),
    ]


def test_no_pair_is_passed_over_that_agrees_and_none_is_shown_that_does_not(tmp_path: Path) -> None:
    rng, found = np.random.default_rng(0), {}
    for number in range(40):
        shapes = [box(*rng.integers(0, 3, 2).tolist(), *rng.integers(5, 9, 2).tolist()) for _ in range(3)]
        holed = [shape & (rng.random(SIZE) < 0.9) for shape in shapes]
        found[f"{number:02d}"] = [mask(p, shape, 0.5) for p, shape in zip((CUP, DOG, CAT), holed, strict=True)]
    told = asked(tmp_path, "SELECT image_id, prompt_id, conflict_prompt, conflict_iou FROM conflicts", found)
    wanted = {}
    for name, masks in found.items():
        ious = rle.iou([one.segmentation for one in masks], [one.segmentation for one in masks])
        np.fill_diagonal(ious, 0)
        for place, one in enumerate(masks):
            if ious[place].max() >= 0.5:
                wanted[name, one.prompt.prompt_id] = ious[place].max()
    assert 20 < len(wanted) < 120
    assert {(name, prompt): iou for name, prompt, _, iou in told} == pytest.approx(wanted)


def test_a_mask_that_cannot_be_read_is_an_error_of_the_output(tmp_path: Path) -> None:
    broken = mask(DOG, WHOLE, 0.6)
    object.__setattr__(broken, "segmentation", Rle(size_hw=SIZE, counts="~~"))
    with pytest.raises(StorageError, match="RLE"):
        asked(tmp_path, "FROM conflicts", {"a": [mask(CUP, WHOLE, 0.9), broken]})
