"""Write COCO panoptic: a PNG of segment ids for each image, and a JSON file that describes the segments."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from pipelines.bounded_json import plain_json
from pipelines.errors import SourceError
from pipelines.export.choice import ExportImage, Progress
from pipelines.export.formats.coco import write_head
from pipelines.export.formats.file_names import FileNames
from pipelines.export.selection import Selection
from pipelines.export.splits import split_file
from pipelines.redaction import counted

FILE = "panoptic"


def write_panoptic(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``panoptic.json`` and its folder of maps ``panoptic/``, or ``panoptic_<split>`` of both for each split.

    A pixel holds its segment's id as R + 256 G + 65536 B, 0 for void. Where segments overlap, the one with the better
    score gets the pixel. ``isthing`` is 0 for categories of semantic tasks, which have one segment each.

    Raises:
        SourceError: a mask has a different size than its image.
    """
    hidden = Counter[bool]()
    things = {category.position: int(category.is_thing) for category in selection.categories}
    for split in selection.splits:
        maps = folder / split_file(FILE, split, "")
        maps.mkdir()
        with (folder / split_file(FILE, split, ".json")).open("x", encoding="utf-8") as file:
            file.write("{\n")
            write_head(file, selection, split, of_maps=True)
            file.write('"annotations": [')
            separator, names = "\n", FileNames(maps, ".png")
            for image in selection.images(split):
                ids, segments = _map(image, things, hidden)
                png = names.new_file(image.image_id)
                PILImage.fromarray(_colors(ids)).save(png, format="PNG")
                name = png.relative_to(maps).as_posix()
                entry = {"image_id": image.number, "file_name": name, "segments_info": segments}
                file.write(separator + json.dumps(entry))
                separator = ",\n"
                on_masks(len(image.masks))
            file.write("\n]\n}\n")
    if not hidden:
        return []
    lie = counted(hidden.total(), "mask lies", "masks lie")
    return [f"{lie} under better ones, {hidden[True]:,} of them wholly: the maps have what is seen of them"]


def _map(
    image: ExportImage, things: Mapping[int, int], hidden: Counter[bool]
) -> tuple[NDArray[np.uint32], list[dict[str, Any]]]:
    ids = np.zeros((image.height, image.width), np.uint32)
    segments = []
    for number, mask in enumerate(image.masks, start=1):
        if mask.segmentation.size_hw != ids.shape:
            raise SourceError(f"{image.image_id}: mask {mask.annotation_id} is of another size than its image")
        pixels = mask.pixels()
        free = pixels & (ids == 0)
        area = int(np.count_nonzero(free))
        if area < np.count_nonzero(pixels):
            hidden[not area] += 1
        # Panoptic evaluators fail on a listed segment that has no pixel in the map.
        if not area:
            continue
        ids[free] = number
        rows, columns = np.flatnonzero(free.any(axis=1)), np.flatnonzero(free.any(axis=0))
        x, y = int(columns[0]), int(rows[0])
        segments.append(
            {
                "id": number,
                "category_id": mask.category + 1,
                "isthing": things[mask.category],
                "iscrowd": 0,
                "area": area,
                "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
                "score": plain_json(round(mask.score, 6)),
            }
        )
    return ids, segments


def _colors(ids: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """Return the ids as RGB: uint8 (H, W, 3)."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)
