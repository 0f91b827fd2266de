from __future__ import annotations

import numpy as np
import pytest

from pipelines.masks import rle
from pipelines.masks.drawing import LabeledMask, color_of, contact_sheet, draw_masks


def _mask(height: int, width: int) -> LabeledMask:
    dense = np.zeros((height, width), dtype=bool)
    dense[20:80, 30:150] = True
    return LabeledMask(segmentation=rle.encode(dense), name="cat", score=0.5, color=1)


def test_the_mask_is_tinted_and_outlined_and_the_rest_is_left_alone() -> None:
    pixels = np.full((100, 200, 3), 100, dtype=np.uint8)
    drawn = np.asarray(draw_masks(pixels, [_mask(100, 200)]))
    assert (drawn[:20] == 100).all()
    assert (drawn[:, 160:] == 100).all()
    assert tuple(drawn[20, 40]) == color_of(1)
    inside = drawn[25, 40].astype(int)
    assert (inside != 100).any()
    assert tuple(inside) != color_of(1)
    assert (pixels == 100).all()


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask of size \(100, 200\) on an image of size \(50, 50\)"):
        draw_masks(np.zeros((50, 50, 3), dtype=np.uint8), [_mask(100, 200)])


def test_a_sheet_has_a_cell_for_every_picture() -> None:
    picture = draw_masks(np.zeros((100, 200, 3), dtype=np.uint8), [])
    sheet = contact_sheet([("one", picture)] * 5, columns=2, cell=50)
    assert sheet.size == (2 * 56 + 6, 3 * (56 + 22) + 6)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def test_neighbouring_colours_differ() -> None:
    colors = np.array([color_of(number) for number in range(20)], dtype=int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100
