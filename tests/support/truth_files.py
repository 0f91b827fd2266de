"""Files of ground truth made by hand, in each of the forms that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from pipelines.masks import rle
from tests.support.labeled import SIZE


def instances(path: Path, objects: dict[str, list[Any]], names: tuple[str, ...] = ("cat", "dog"), **image: Any) -> str:
    """Write COCO instances: by file name (category, mask) or (category, mask, crowd)."""
    numbers = {name: 10 + number for number, name in enumerate(names)}
    annotations = []
    for image_id, shown in enumerate(objects.values()):
        for category, segmentation, *crowd in shown:
            coded = rle.encode(segmentation).to_coco() if isinstance(segmentation, np.ndarray) else segmentation
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[category],
                    "segmentation": coded,
                    "area": 0,
                    "iscrowd": int(bool(crowd and crowd[0])),
                }
            )
    size = {"height": SIZE[0], "width": SIZE[1]} | image
    document = {
        "images": [{"id": number, "file_name": name, **size} for number, name in enumerate(objects)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    path.write_text(json.dumps(document))
    return str(path)


def panoptic(path: Path, maps: dict[str, list[tuple[str, np.ndarray, bool]]], things: dict[str, bool]) -> str:
    """Write COCO panoptic with its folder of maps: by file name (category, mask, crowd)."""
    path.with_suffix("").mkdir()
    numbers = {name: number for number, name in enumerate(things, 1)}
    annotations = []
    for image_id, (file_name, segments) in enumerate(maps.items()):
        colors, infos = np.zeros((*SIZE, 3), dtype=np.uint8), []
        for number, (category, pixels, is_crowd) in enumerate(segments, 1):
            colors[pixels] = (number, 3, 1)
            infos.append({"id": number + 3 * 256 + 65536, "category_id": numbers[category], "iscrowd": int(is_crowd)})
        png = f"{Path(file_name).stem}.png"
        PILImage.fromarray(colors).save(path.with_suffix("") / png)
        annotations.append({"image_id": image_id, "file_name": png, "segments_info": infos})
    document = {
        "images": [{"id": n, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for n, name in enumerate(maps)],
        "categories": [{"id": numbers[name], "name": name, "isthing": int(thing)} for name, thing in things.items()],
        "annotations": annotations,
    }
    path.write_text(json.dumps(document))
    return str(path)


def phrases(path: Path, *entries: dict[str, Any]) -> str:
    """Write a list of phrases; masks are given as arrays."""
    coded = [
        {name: rle.encode(value).to_coco() if isinstance(value, np.ndarray) else value for name, value in entry.items()}
        for entry in entries
    ]
    path.write_text(json.dumps(coded))
    return str(path)
