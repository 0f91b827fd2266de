"""Windows around visual prompts: what they hold, and how prompts are drawn in them."""

import numpy as np
import pytest

from xsam_model.prompts.close_ups import close_ups
from xsam_model.prompts.visual import POINT_RADIUS, draw_box, draw_points, draw_scribble

SIZE = (480, 640)


def extent(window):
    height, width = window.region.shape
    return window.top, window.left, window.top + height, window.left + width


def test_a_box_is_looked_at_in_one_window_around_it():
    (window,) = close_ups(draw_box((200, 100, 80, 60), SIZE), zoom=1.5)
    assert window.is_box
    # 1.5 times the longer side, 120 pixels, around the box's center (240, 130).
    assert extent(window) == (70, 180, 190, 300)
    assert np.argwhere(window.region).min(0).tolist() == [30, 20]
    assert window.region.sum() == 80 * 60


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 100, 100), (0, 0, 200, 200)),
        ((600, 440, 40, 40), (400, 560, 480, 640)),
        ((10, 100, 600, 40), (0, 0, 480, 640)),  # longer than the image is high
        ((300, 200, 9, 9), (180, 280, 228, 328)),  # fewer pixels than this show nothing more
    ],
)
def test_a_window_lies_in_the_image(box, expected):
    (window,) = close_ups(draw_box(box, SIZE), zoom=2)
    assert extent(window) == expected
    assert window.region.sum() == box[2] * box[3]


def test_a_point_is_looked_at_in_ever_smaller_windows_and_is_as_small_in_each():
    windows = close_ups(draw_points([(300, 200)], SIZE), zoom=1.3)
    assert [max(window.region.shape) for window in windows] == [640, 384, 230, 138]
    assert extent(windows[0]) == (0, 0, *SIZE)
    for window in windows:
        assert not window.is_box
        length = max(window.region.shape)
        assert window.region.sum() == pytest.approx(np.pi * (POINT_RADIUS * length / 640) ** 2, rel=0.15)
        row, column = np.argwhere(window.region).mean(0)
        assert (window.top + row, window.left + column) == pytest.approx((200, 300), abs=0.6)


def test_a_point_at_the_edge_stays_in_its_windows():
    for corner in [(0, 0), (639, 479), (0, 479)]:
        for window in close_ups(draw_points([corner], SIZE), zoom=1.3):
            assert window.region.any()


def test_windows_around_a_scribble_hold_all_of_it():
    scribble = draw_scribble([(250, 200), (330, 260)], SIZE)
    windows = close_ups(scribble, zoom=1.3)
    assert [max(window.region.shape) for window in windows] == [640, 384, 230, 138]
    assert all(window.region.sum() == scribble.sum() for window in windows)
    long = draw_scribble([(50, 200), (600, 260)], SIZE)
    assert [extent(window) for window in close_ups(long, zoom=1.3)] == [(0, 0, *SIZE)]


def test_a_tiny_image_is_seen_whole_and_its_points_are_no_boxes():
    whole = np.zeros((40, 30), dtype=bool)
    whole[7, 9] = True
    (window,) = close_ups(whole, zoom=1.3)
    assert extent(window) == (0, 0, 40, 30)
    assert not window.is_box
    assert window.region[7, 9]


def test_a_window_is_cut_from_the_pixels_of_its_place():
    pixels = np.arange(480 * 640 * 3, dtype=np.uint32).reshape(480, 640, 3).astype(np.uint8)
    (window,) = close_ups(draw_box((200, 100, 80, 60), SIZE), zoom=1.5)
    assert (window.cut(pixels) == pixels[70:190, 180:300]).all()


def test_a_mask_that_fills_its_window_reaches_all_edges_but_those_of_the_image():
    whole, *inner = close_ups(draw_points([(300, 200)], SIZE), zoom=1.3)
    filled = [np.ones(window.region.shape, dtype=bool) for window in (whole, inner[-1])]
    assert not whole.is_filled_by(filled[0], SIZE)
    assert inner[-1].is_filled_by(filled[1], SIZE)
    filled[1][:, :9] = filled[1][:9] = False
    assert not inner[-1].is_filled_by(filled[1], SIZE)
    # Of a window in the image's corner both inner edges count, of one that is as high as the image both sides.
    (corner,) = close_ups(draw_box((0, 0, 100, 100), SIZE), zoom=2)
    assert corner.is_filled_by(np.ones((200, 200), dtype=bool), SIZE)
    (column,) = close_ups(draw_box((280, 100, 80, 300), SIZE), zoom=1.6)
    assert column.region.shape == (480, 480)
    assert column.is_filled_by(np.ones((480, 480), dtype=bool), SIZE)


@pytest.mark.parametrize("point", [(0, 240), (639, 479), (3, 3), (300, 476)])
def test_a_point_that_the_edge_cuts_off_is_drawn_where_it_was_asked(point):
    for window in close_ups(draw_points([point], SIZE), zoom=1.3):
        assert window.region[point[1] - window.top, point[0] - window.left]
        # As near to the edge of the image as it was, up to the rounding of its radius.
        expected = draw_points([(point[0] - window.left, point[1] - window.top)], window.region.shape,
                               max(1, POINT_RADIUS * max(window.region.shape) / 640))  # fmt: skip
        assert (window.region != expected).sum() <= 3


@pytest.mark.parametrize("box", [(100, 100, 7, 7), (100, 100, 5, 200), (636, 10, 4, 30)])
def test_a_small_box_is_a_box_where_its_kind_is_known(box):
    (window,) = close_ups(draw_box(box, SIZE), 1.3, "box")
    assert window.is_box
    assert window.region.sum() == box[2] * box[3]


@pytest.mark.parametrize("kind", ["mask", "polygon", "scribble", None])
def test_a_small_region_that_is_no_point_keeps_its_shape(kind):
    region = np.zeros(SIZE, dtype=bool)
    region[100:112, 200:204] = region[108:112, 200:215] = True
    windows = close_ups(region, 1.3, kind)
    assert len(windows) == 4
    assert all(window.region.sum() == region.sum() for window in windows)
