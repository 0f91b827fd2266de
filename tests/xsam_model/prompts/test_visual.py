"""What each kind of visual prompt covers, and which are refused."""

import numpy as np
import pytest

from xsam_model.prompts.visual import POINT_RADIUS, draw_region

SIZE = (60, 100)


def pixels(mask):
    return {(int(row), int(column)) for row, column in np.argwhere(mask)}


def within(radius, x, y, size_hw=SIZE):
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_point_is_a_disc_of_radius_ten():
    mask = draw_region("point", (40, 30), SIZE)
    assert mask.dtype == np.bool_
    assert mask.shape == SIZE
    assert np.array_equal(mask, within(POINT_RADIUS, 40, 30))
    assert mask[30, 50]
    assert not mask[30, 51]


def test_several_points_are_the_union_of_their_discs_cut_at_the_edges():
    mask = draw_region("point", (0, 0, 99, 59), SIZE)
    assert np.array_equal(mask, within(POINT_RADIUS, 0, 0) | within(POINT_RADIUS, 99, 59))


def test_box_covers_exactly_its_pixels():
    mask = draw_region("box", (10, 20, 5, 3), SIZE)
    assert pixels(mask) == {(row, column) for row in range(20, 23) for column in range(10, 15)}


@pytest.mark.parametrize("box", [(0, 0, 100, 60), (-5, -5, 200, 200)])
def test_box_is_cut_at_the_image(box):
    assert draw_region("box", box, SIZE).all()


def test_box_smaller_than_a_pixel_covers_the_pixel_it_is_in():
    assert pixels(draw_region("box", (10.4, 20.6, 0.2, 0.1), SIZE)) == {(20, 10)}


def test_scribble_is_within_five_pixels_of_its_line():
    mask = draw_region("scribble", (20, 30, 60, 30), SIZE)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(rows - 30, columns - np.clip(columns, 20, 60))
    assert np.array_equal(mask, distance <= 5)


def test_scribble_follows_its_corners():
    mask = draw_region("scribble", (20, 10, 20, 50, 80, 50), SIZE)
    assert mask[30, 20]
    assert mask[50, 50]
    assert not mask[30, 50]


def test_polygon_is_filled():
    mask = draw_region("polygon", (10, 10, 30, 10, 30, 30, 10, 30), SIZE)
    assert pixels(mask) == {(row, column) for row in range(10, 31) for column in range(10, 31)}


def test_self_crossing_polygon_follows_the_even_odd_rule():
    star = []
    for corner in range(5):
        angle = 2 * np.pi * (corner * 2 % 5) / 5 - np.pi / 2
        star += [50 + 28 * np.cos(angle), 30 + 28 * np.sin(angle)]
    mask = draw_region("polygon", star, SIZE)
    assert mask[5, 50]
    assert not mask[30, 50]


def test_mask_is_taken_as_it_is():
    given = within(7, 50, 20)
    assert np.array_equal(draw_region("mask", (), SIZE, given), given)


@pytest.mark.parametrize(
    ("kind", "coordinates", "message"),
    [
        ("circle", (1, 2, 3), "unknown kind of visual prompt 'circle'; known: point, box"),
        ("point", (), "at least one"),
        ("point", (1, 2, 3), "pairs of x, y; got 3"),
        ("point", (101, 20), r"point \(101, 20\) lies outside its image of 100 x 60 pixels"),
        ("point", (50, -1), "lies outside"),
        ("point", (50, float("nan")), "not finite"),
        ("box", (1, 2, 3), "needs x, y, width, height; got 3"),
        ("box", (10, 10, 0, 5), "no area: width 0"),
        ("box", (10, 10, 5, -5), "no area"),
        ("box", (100, 10, 5, 5), "lies outside its image"),
        ("box", (-10, -10, 5, 5), "lies outside its image"),
        ("scribble", (10, 10), "at least two"),
        ("scribble", (10, 10, 10, 70), "lies outside"),
        ("polygon", (10, 10, 20, 20), "at least three"),
        ("polygon", (10, 10, 20, 20, 30, 30), "on one line"),
        ("polygon", (10, 10, 10, 10, 10, 10), "on one line"),
        ("polygon", (200, 10, 220, 10, 210, 30), "lies outside its image"),
        ("polygon", (10, 10, 30, 10, -200_000, 30), "vertex at 200000, beyond any image"),
        ("mask", (), "needs a mask"),
    ],
)
def test_regions_that_make_no_sense_are_refused(kind, coordinates, message):
    with pytest.raises(ValueError, match=message):
        draw_region(kind, coordinates, SIZE)


@pytest.mark.parametrize(
    ("mask", "message"),
    [(np.zeros(SIZE, bool), "empty"), (np.ones((100, 60), bool), r"shape \(100, 60\), but its image is 100 x 60")],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        draw_region("mask", (), SIZE, mask)
