from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import ImageFont

from pipelines.masks import rle
from pipelines.masks.drawing import LabeledMask, color_of, contact_sheet, draw_masks, place_names


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
    sheet = contact_sheet([("one", picture, [])] * 5, columns=2, cell=50)
    assert sheet.size == (2 * 56 + 6, 3 * (56 + 22) + 6)
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])


def _named(name: str, score: float, size_hw: tuple[int, int], y: int, x: int) -> LabeledMask:
    dense = np.zeros(size_hw, dtype=bool)
    dense[y : y + 9, x : x + 9] = True
    return LabeledMask(segmentation=rle.encode(dense), name=name, score=score, color=round(100 * score))


@pytest.mark.parametrize("size_hw", [(200, 320), (320, 200), (90, 90), (3000, 4000)])
def test_names_are_as_large_on_every_picture_inside_it_and_apart(size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    corners = [(0, 0), (0, width - 9), (height - 9, 0), (height - 9, width - 9), (0, 0), (0, 1), (5, 0), (0, 0)]
    masks = [_named(f"{number} wide " * 9, number / 10, size_hw, *corner) for number, corner in enumerate(corners)]
    scale = 320 / max(size_hw)
    shown = (round(width * scale), round(height * scale))
    labels = place_names(shown, masks, ImageFont.load_default(16))
    assert [label.text[-4:] for label in labels] == ["0.70", "0.60", "0.50", "0.40"]
    for number, one in enumerate(labels):
        left, top, right, bottom = one.box
        assert 0 <= left < right <= shown[0]
        assert 0 <= top < bottom <= shown[1]
        assert bottom - top >= 16
        for other in labels[:number]:
            assert bottom <= other.box[1] or other.box[3] <= top or right <= other.box[0] or other.box[2] <= left


def test_masks_of_one_name_that_lie_over_one_another_are_named_once() -> None:
    masks = [_named(name, score, (100, 100), 9, x) for name, score, x in [("a", 0.9, 9), ("a", 0.8, 11), ("b", 0.7, 9)]]
    masks.append(_named("a", 0.6, (100, 100), 9, 60))
    labels = place_names((100, 100), masks, ImageFont.load_default(12))
    assert [label.text for label in labels] == ["a 0.90", "b 0.70", "a 0.60"]


def test_names_are_light_on_dark_whatever_the_color_of_the_mask() -> None:
    mask = dataclasses.replace(_mask(100, 200), color=(0, 0, 90))
    picture = draw_masks(np.full((100, 200, 3), 128, dtype=np.uint8), [mask])
    bare, named = (np.asarray(contact_sheet([("", picture, masks)])).astype(int) for masks in ([], [mask]))
    written = named[(bare != named).any(axis=2)]
    assert (written.min(axis=1) > 220).sum() > 50
    assert (written.max(axis=1) < 50).sum() > 200


def test_a_long_caption_stays_in_its_cell() -> None:
    picture = draw_masks(np.zeros((100, 100, 3), dtype=np.uint8), [])
    sheets = [np.asarray(contact_sheet([("a" * length, picture, []), ("", picture, [])])) for length in (1, 300)]
    assert (sheets[0][:, 332:] == sheets[1][:, 332:]).all()


def test_neighboring_colors_differ() -> None:
    colors = np.array([color_of(number) for number in range(20)], dtype=int)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 100
