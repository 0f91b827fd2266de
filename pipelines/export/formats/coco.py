"""Write COCO instances JSON with RLE masks, batch by batch; DuckDB formats the entries, so no mask becomes a dict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipelines.errors import DamagedError
from pipelines.export.choice import Progress
from pipelines.export.formats.polygons import Loss, edges, opencv
from pipelines.export.selection import Selection
from pipelines.export.splits import split_file
from pipelines.masks import rle
from pipelines.masks.polygons import from_polygons
from pipelines.types import Rle

FILE = "instances"

_IMAGES = """
SELECT '{"id": ' || number || ', "file_name": ' || to_json(image_id) || ', "width": ' || width || ', "height": '
    || height || ', "coco_url": ' || to_json(url) || '}'
FROM export_images WHERE split = $split ORDER BY image_id
"""
# With the ids of an image's masks, whoever reads the file again can tell those that were deleted from those that were
# never exported.
_IMAGES_AND_IDS = """
SELECT '{"id": ' || number || ', "file_name": ' || to_json(image_id) || ', "width": ' || width || ', "height": '
    || height || ', "coco_url": ' || to_json(url) || ', "annotation_ids": ' || coalesce(to_json(ids), '[]') || '}'
FROM export_images
LEFT JOIN (SELECT image_id, list(annotation_id ORDER BY annotation_id) AS ids FROM chosen_masks GROUP BY image_id)
USING (image_id) WHERE split = $split ORDER BY image_id
"""
# DuckDB writes a float32 as the shortest text that reads back as the same float32. Rows are sorted in the subquery,
# before they become text, so that the sort does not carry the text.
_ANNOTATIONS = """
SELECT '"image_id": ' || number || ', "category_id": ' || position + 1 || ', "segmentation": ' || to_json(segmentation)
    || ', "area": ' || area || ', "bbox": [' || bbox_x || ', ' || bbox_y || ', ' || bbox_w || ', ' || bbox_h
    || '], "iscrowd": 0, "score": ' || coalesce(score::VARCHAR, 'null') || ', "task": ' || to_json(task)
    || ', "annotation_id": ' || to_json(annotation_id) || '}'
FROM (
    SELECT number, position, segmentation, area, bbox_x, bbox_y, bbox_w, bbox_h, task, annotation_id,
        CASE WHEN isfinite(score) THEN score END AS score
    FROM chosen_masks JOIN export_categories USING (category_name)
    WHERE split = $split ORDER BY image_id, score DESC, annotation_id
)
"""


def write_coco(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``instances.json``, or ``instances_<split>.json`` for each split.

    Image ids are the images' numbers; annotation ids count from 1 across all splits, so that the files can be merged;
    category ids are positions plus 1. Masks are RLE, or polygons with ``choice.polygons``: what those lose, drawn again
    by pycocotools, is measured and told.

    Raises:
        SourceError: polygons are to be traced, and OpenCV is not installed.
        DamagedError: polygons are to be traced, and a mask is damaged.
    """
    loss = Loss() if selection.choice.polygons else None
    if loss:
        opencv()
    # From 1: pycocotools takes the annotation id 0 for "no match".
    number = 0
    for split in selection.splits:
        with (folder / split_file(FILE, split, ".json")).open("x", encoding="utf-8") as file:
            file.write("{\n")
            write_head(file, selection, split)
            file.write('"annotations": [')
            separator = "\n"
            for texts in batches(selection, _ANNOTATIONS, split):
                if loss:
                    texts[:] = [_as_polygons(text, loss) for text in texts]
                entries = [f'{{"id": {number + place}, {text}' for place, text in enumerate(texts, start=1)]
                file.write(separator + ",\n".join(entries))
                number += len(entries)
                separator = ",\n"
                on_masks(len(entries))
            file.write("\n]\n}\n")
    return [loss.told("when pycocotools draws their polygons")] if loss else []


def _as_polygons(text: str, loss: Loss) -> str:
    """Replace the run lengths in an entry by polygons, and measure what that loses."""
    entry = json.loads(f"{{{text}")
    mask = Rle.from_coco(entry["segmentation"])
    try:
        pixels = rle.decode(mask)
    except rle.RleError as error:
        raise DamagedError(
            f"mask {entry['annotation_id']} cannot be decoded ({error}); verify names what is damaged"
        ) from error
    polygons = [part.reshape(-1).tolist() for part in edges(pixels)]
    loss.add(float(rle.iou([from_polygons(polygons, mask.size_hw)], [mask])[0, 0]) if polygons else 1.0)
    return json.dumps({**entry, "segmentation": polygons})[1:]


def write_head(file: IO[str], selection: Selection, split: str, *, of_maps: bool = False) -> None:
    """Write the members info, images and categories; if ``of_maps``, categories say whether they are things."""
    choice = selection.choice
    info = {"description": "exported by xsam-label", "where": choice.where, "images_where": choice.images_where}
    file.write(f'"info": {json.dumps({**info, "split": split, "tasks": selection.tasks})},\n"images": [')
    separator = "\n"
    for texts in batches(selection, _IMAGES if of_maps else _IMAGES_AND_IDS, split):
        file.write(separator + ",\n".join(texts))
        separator = ",\n"
    categories = [
        {"id": category.position + 1, "name": category.name, **({"isthing": int(category.is_thing)} if of_maps else {})}
        for category in selection.categories
    ]
    file.write(f'\n],\n"categories": {json.dumps(categories)},\n')


def batches(selection: Selection, query: str, split: str) -> Iterator[list[str]]:
    """Yield the results of a query with one text column, in batches."""
    batch: list[str] = []
    for (text,) in selection.rows(query, split):
        batch.append(text)
        if len(batch) == 4096:
            yield batch
            batch = []
    if batch:
        yield batch
