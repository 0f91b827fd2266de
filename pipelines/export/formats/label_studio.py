"""Write Label Studio tasks with masks as brush predictions, and the labeling config that shows them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from pipelines.export.choice import ExportImage, ExportMask, Progress
from pipelines.export.selection import Selection
from pipelines.export.splits import split_file

FILE = "tasks"

# The values that Label Studio's own encoder uses; the stream's header states them.
_WORD_BITS, _LENGTH_BITS = 8, (3, 4, 8, 16)
_CHANNELS = 4  # the brush's canvas is RGBA


def write_label_studio(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``tasks.json``, or ``tasks_<split>.json`` for each split, and ``label_config.xml``.

    Masks are predictions, one set for each model version: the name of the model's folder and the beginning of its hash.
    """
    (folder / "label_config.xml").write_text(_config(selection), encoding="utf-8")
    models = selection.models
    for split in selection.splits:
        with (folder / split_file(FILE, split, ".json")).open("x", encoding="utf-8") as file:
            file.write("[")
            separator = "\n"
            for image in selection.images(split):
                file.write(separator + json.dumps(_task(image, models)))
                separator = ",\n"
                on_masks(len(image.masks))
            file.write("\n]\n")
    return []


def _config(selection: Selection) -> str:
    labels = "\n".join(f"    <Label value={quoteattr(category.name)}/>" for category in selection.categories)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}\n  </BrushLabels>\n</View>\n'
    )


def _task(image: ExportImage, models: Mapping[str, str]) -> dict[str, Any]:
    by_model: dict[str, list[ExportMask]] = defaultdict(list)
    for mask in image.masks:
        by_model[models[mask.run_id]].append(mask)
    return {
        # Label Studio keeps what is here: the ids tell masks that were deleted from those that were never exported.
        "data": {
            "image": image.url,
            "image_id": image.image_id,
            "annotation_ids": [mask.annotation_id for mask in image.masks],
        },
        "predictions": [
            {
                "model_version": model,
                "score": _score(max(m.score for m in masks)),
                "result": [_region(image, m) for m in masks],
            }
            for model, masks in sorted(by_model.items())
        ],
    }


def _region(image: ExportImage, mask: ExportMask) -> dict[str, Any]:
    return {
        "id": mask.annotation_id,
        "from_name": "label",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "score": _score(mask.score),
        "value": {
            "format": "rle",
            "rle": brush_rle(mask.pixels()),
            "brushlabels": [mask.category_name],
        },
    }


def _score(score: float) -> float | None:
    return round(score, 6) if math.isfinite(score) else None


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask in Label Studio's brush format: the RLE of an RGBA image's bytes, 255 in all channels where set.

    The format is a bit stream. Header: the number of bytes (32 bits), the word size minus one (5), and four length
    sizes minus one (4 each). Then for each run of equal bytes: a 1, which of the four length sizes is used (2), the
    length minus one, and the byte (8). Zeros pad the last byte.

    Args:
        mask: bool (H, W).

    Returns:
        The stream as bytes, each 0 to 255.
    """
    flat = np.ascontiguousarray(mask).reshape(-1)
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(starts, append=flat.size).astype(np.int64) * _CHANNELS
    # A length has at most 16 bits: longer runs are cut into pieces.
    longest = 1 << _LENGTH_BITS[-1]
    pieces = -(-lengths // longest)
    stretches = np.full(int(pieces.sum()), longest, np.int64)
    stretches[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    values = np.repeat(np.where(flat[starts], 255, 0), pieces)
    sizes = np.searchsorted(1 << np.array(_LENGTH_BITS), stretches)
    widths = np.array(_LENGTH_BITS)[sizes]
    codes = ((4 | sizes) << (widths + _WORD_BITS)) | ((stretches - 1) << _WORD_BITS) | values
    head = [(flat.size * _CHANNELS, 32), (_WORD_BITS - 1, 5), *((bits - 1, 4) for bits in _LENGTH_BITS)]
    codes = np.concatenate(([code for code, _ in head], codes)).astype(np.uint64)
    widths = np.concatenate(([bits for _, bits in head], widths + 3 + _WORD_BITS))
    encoded: list[int] = np.packbits(_bits(codes, widths)).tolist()
    return encoded


def _bits(codes: NDArray[np.uint64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the bits of numbers written one after the other, each in its own width, high bits first."""
    ends = np.cumsum(widths)
    which = np.repeat(np.arange(widths.size), widths)
    shift = ends[which] - 1 - np.arange(ends[-1])
    return ((codes[which] >> shift.astype(np.uint64)) & np.uint64(1)).astype(np.uint8)
