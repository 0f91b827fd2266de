"""Exports scenes as a folder of pictures with a COCO file of their ground truth, for the demo and for COCO tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.scenes.asked.prompts import bounding_box
from xsam_model.training.scenes.scene import Scene

TRUTH_FILE = "instances.json"


def export_scenes(scenes: Sequence[Scene], folder: Path, names: Sequence[str] = ()) -> Path:
    """Write the pictures of scenes and the masks of their objects.

    Args:
        scenes: scenes of any sizes.
        folder: created if missing; pictures are named `scene-<number>.png`.
        names: categories to list in addition to those that the scenes show.

    Returns:
        Path of the COCO instances file, with masks as uncompressed RLE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {thing.name for scene in scenes for thing in scene.objects}
    category_ids = {name: number for number, name in enumerate(sorted(shown | set(names)), 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes):
        file_name, (height, width) = f"scene-{number:02d}.png", scene.pixels.shape[:2]
        Image.fromarray(scene.pixels).save(folder / file_name, optimize=True)
        images.append({"id": number, "file_name": file_name, "height": height, "width": width, "ground": scene.ground})
        for thing in scene.objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category_ids[thing.name],
                    "segmentation": {"size": [height, width], "counts": run_lengths(thing.mask)},
                    "area": int(thing.mask.sum()),
                    "bbox": list(bounding_box(thing.mask)),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in category_ids.items()]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (folder / TRUTH_FILE).write_text(json.dumps(truth) + "\n", encoding="utf-8")
    return folder / TRUTH_FILE


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed counts of a bool (H, W) mask: column-major runs of 0 and 1 in turn, 0 first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return [0, *runs] if flat[0] else runs
