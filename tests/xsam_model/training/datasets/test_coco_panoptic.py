import pickle

import numpy as np
import pytest
from PIL import Image

from xsam_model.training.datasets.coco import panoptic

RANDOM = np.random.default_rng


def entry(image_id, name=None, width=12, height=8):
    return {"id": image_id, "file_name": name or f"{image_id}.jpg", "width": width, "height": height}


def write_segments(path, ids):
    """Write segment ids as colors: id = red + 256 green + 65536 blue."""
    path.parent.mkdir(exist_ok=True)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], axis=-1).astype(np.uint8)
    Image.fromarray(colors).save(path)


@pytest.fixture
def segment_ids(box_mask):
    """Two dogs, two pieces of wall, a crowd, and one row of nothing at the bottom."""
    ids = np.zeros((8, 12), dtype=np.int64)
    for number, box in [(5, (0, 0, 3, 7)), (300, (3, 0, 3, 7)), (70_000, (6, 0, 2, 7)), (9, (8, 0, 2, 7))]:
        ids[box_mask(*box)] = number
    ids[box_mask(10, 0, 2, 7)] = 11
    return ids


PANOPTIC_CATEGORIES = [
    {"id": 18, "name": "dog", "isthing": 1},
    {"id": 199, "name": "wall-other-merged", "isthing": 0},
]
SEGMENTS = [
    {"id": 5, "category_id": 18, "iscrowd": 0},
    {"id": 70_000, "category_id": 199, "iscrowd": 0},
    {"id": 300, "category_id": 18, "iscrowd": 0},
    {"id": 9, "category_id": 199, "iscrowd": 0},
    {"id": 11, "category_id": 18, "iscrowd": 1},
]


def test_things_have_a_mask_each_and_stuff_has_one(write, photos, tmp_path, segment_ids, box_mask, batch_of):
    write_segments(tmp_path / "segments" / "1.png", segment_ids)
    annotations = [{"image_id": 1, "file_name": "1.png", "segments_info": SEGMENTS}]
    path = write([entry(1)], annotations, "panoptic.json", PANOPTIC_CATEGORIES)
    source = panoptic(path, photos, str(tmp_path / "segments"))
    assert source.categories == ("dog", "wall")
    sample = pickle.loads(pickle.dumps(source)).draw(0, RANDOM(0))
    assert sample.labels.tolist() == [0, 1, 0]
    expected = [box_mask(0, 0, 3, 7), box_mask(6, 0, 4, 7), box_mask(3, 0, 3, 7)]
    assert (sample.masks == np.stack(expected)).all()
    assert (sample.ignore == (box_mask(10, 0, 2, 8) | box_mask(0, 7, 12, 1))).all()
    batch = batch_of(source)
    assert len(batch.targets.masks) == 6
    assert batch.class_ids.tolist() == [0, 1, 0] * 2


def test_bad_panoptic_records_are_left_out(write, photos, picture, tmp_path, segment_ids):
    for number in (3, 4, 5):
        picture(f"photos/{number}.jpg")
    write_segments(tmp_path / "segments" / "1.png", segment_ids)
    write_segments(tmp_path / "segments" / "4.png", segment_ids[:, :10])
    (tmp_path / "segments" / "5.png").write_bytes((tmp_path / "segments" / "1.png").read_bytes()[:40])
    annotations = [{"image_id": n, "file_name": f"{n}.png", "segments_info": SEGMENTS} for n in (1, 2, 4, 5)]
    annotations[0]["segments_info"] = [*SEGMENTS, {"id": 6, "category_id": 77}]
    annotations.append({"image_id": 3, "file_name": "1.png", "segments_info": SEGMENTS[:1] * 2})
    path = write([entry(n) for n in (1, 2, 3, 4, 5)], annotations, "panoptic.json", PANOPTIC_CATEGORIES)
    source = panoptic(path, photos, str(tmp_path / "segments"))
    assert source.skipped == {
        "unknown category": ("segment 6 of 1",),
        "segments image missing": ("2",),
        "malformed annotation": ("3",),
    }
    for index in (1, 2):
        assert source.draw(index, RANDOM(0)).masks.shape == (3, 8, 12)
    assert source.skipped["image of another size"] == ("4",)
    assert source.skipped["segments image unreadable"] == ("5",)
