import numpy as np
import pytest
from pycocotools import mask as coco_mask

from xsam_model.training.datasets.records import RecordError
from xsam_model.training.datasets.segmentations import read_box, read_segmentation

SIZE = (8, 12)


def test_a_polygon_is_what_pycocotools_makes_of_it(box_mask):
    found = read_segmentation([[2, 1, 6, 1, 6, 4, 2, 4]], SIZE)
    assert (found.mask(SIZE) == box_mask(2, 1, 4, 3)).all()
    assert found.mask(SIZE).dtype == np.bool_


def test_parts_are_united(box_mask):
    found = read_segmentation([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 4, 1, 4, 3, 1, 3]])
    assert (found.mask(SIZE) == box_mask(0, 0, 2, 2) | box_mask(1, 1, 3, 2)).all()


def test_both_kinds_of_run_lengths_give_the_same_mask(box_mask, rle):
    mask = box_mask(1, 2, 2, 3)
    # Down the columns: one column and two pixels before, three inside, five between, three inside, the rest.
    plain = {"size": [8, 12], "counts": [10, 3, 5, 3, 75]}
    packed = rle(mask)
    assert (read_segmentation(plain, SIZE).mask(SIZE) == mask).all()
    assert (read_segmentation(packed, SIZE).mask(SIZE) == mask).all()
    assert (read_segmentation([packed, rle(box_mask(0, 0, 1, 1))]).mask(SIZE) == mask | box_mask(0, 0, 1, 1)).all()


def test_run_lengths_of_random_masks_are_unpacked_exactly():
    random = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.3, 0.99, 1.0):
        mask = random.random((211, 307)) < share
        counts = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        assert (read_segmentation(counts).mask(mask.shape) == mask).all()


def test_a_box_is_its_rectangle(box_mask):
    assert (read_box([2, 1, 4, 3]).mask(SIZE) == box_mask(2, 1, 4, 3)).all()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        "polygon",
        [[1, 1, 5, 5]],
        [[1, 1, 5, 5, 3]],
        [[1, 1, 5, float("nan"), 3, 3]],
        [[1, 1, 5, 1e30, 3, 3]],
        [["a", 1, 5, 5, 3, 3]],
        [1, 2, 3, 4, 5, 6],
        {"counts": [96]},
        {"size": [8, 12], "counts": [10, 3]},
        {"size": [8, 12], "counts": [-10, 106]},
        {"size": [0, 12], "counts": []},
        {"size": [8, 12], "counts": ""},
        {"size": [8, 12], "counts": "5"},
        {"size": [8, 12], "counts": "52\u00e9"},
        {"size": [8, 12], "counts": "P"},
        {"size": [8, 12], "counts": "oooooooooooo0"},
    ],
)
def test_what_is_no_mask_is_refused(broken):
    with pytest.raises(RecordError, match="malformed annotation"):
        read_segmentation(broken, SIZE)


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(RecordError, match="another size"):
        read_segmentation({"size": [4, 4], "counts": [16]}, SIZE)
    with pytest.raises(RecordError, match="another size"):
        read_segmentation({"size": [4, 4], "counts": [16]}).mask(SIZE)
