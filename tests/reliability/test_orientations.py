"""All eight EXIF orientations through a whole run: masks, boxes and sizes are in the frame of the upright image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.table.reader import open_table
from tests.reliability.small_run import SmallRun, run

# What a viewer shows: an L, bright on black, that no rotation or reflection leaves as it is.
UPRIGHT = np.zeros((48, 32), bool)
UPRIGHT[8:40, 8:16] = True
UPRIGHT[32:40, 8:24] = True

# How the camera stored it: what each tag asks a viewer to do, undone (TIFF 6.0, Orientation).
STORED = {
    1: lambda picture: picture,
    2: np.fliplr,
    3: lambda picture: np.rot90(picture, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda picture: np.rot90(picture, 1),
    7: lambda picture: np.rot90(picture, 2).T,
    8: lambda picture: np.rot90(picture, -1),
}


@pytest.mark.parametrize("file_format", ["png", "jpg", "tif", "webp"])
def test_masks_of_turned_photographs_lie_in_the_upright_frame(file_format: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for tag, stored in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        pixels = np.ascontiguousarray(stored(UPRIGHT)).astype(np.uint8) * 255
        options = {"quality": 100} if file_format in ("jpg", "webp") else {}
        picture = Image.fromarray(np.stack([pixels] * 3, axis=-1))
        picture.save(tmp_path / "in" / f"{tag}.{file_format}", exif=exif, **options)
    small = SmallRun(source=str(tmp_path / "in"), output=str(tmp_path / "out"), categories=("bright",))
    assert run(small).ok
    images = open_table(small.store(), "images").to_table().to_pylist()
    assert [row["exif_orientation"] for row in images] == list(range(1, 9))
    assert {(row["height"], row["width"]) for row in images} == {UPRIGHT.shape}
    rows = open_table(small.store(), "annotations").to_table().to_pylist()
    assert len(rows) == 8
    for row in rows:
        assert np.array_equal(coco_mask.decode(row["segmentation"]).astype(bool), UPRIGHT), row["image_id"]
        assert [row[f"bbox_{side}"] for side in "xywh"] == [8, 8, 16, 32]
