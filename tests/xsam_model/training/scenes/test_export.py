"""Scenes written as COCO are what they were."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.export import export_scenes, run_lengths
from xsam_model.training.scenes.scene import SceneConfig, make_scene


def test_pictures_and_masks_are_read_back_by_pycocotools(tmp_path):
    scenes = [make_scene(seed, SceneAssets.builtin(), "train", SceneConfig(side_pixels=96)) for seed in range(4)]
    path = export_scenes(scenes, tmp_path / "scenes", names=["a name that nothing shows"])
    coco = COCO(str(path))
    assert "a name that nothing shows" in {entry["name"] for entry in coco.dataset["categories"]}
    for number, scene in enumerate(scenes):
        (image,) = coco.loadImgs([number])
        assert np.array_equal(np.asarray(Image.open(path.parent / image["file_name"])), scene.pixels)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        assert len(found) == len(scene.objects)
        for entry, thing in zip(found, scene.objects, strict=True):
            assert np.array_equal(coco.annToMask(entry).astype(bool), thing.mask)
            assert coco.loadCats([entry["category_id"]])[0]["name"] == thing.name
            assert entry["area"] == thing.mask.sum()
            assert entry["bbox"] == coco_mask.toBbox(coco.annToRLE(entry)).tolist()
    assert json.loads(path.read_text())["images"][0]["height"] == 96


@pytest.mark.parametrize("first", [False, True])
def test_runs_begin_with_what_is_outside(first):
    mask = np.array([[first, True], [False, True]])
    assert run_lengths(mask) == ([0, 1, 1, 2] if first else [2, 2])
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == [6]
    assert run_lengths(np.ones((2, 3), dtype=bool)) == [0, 6]
