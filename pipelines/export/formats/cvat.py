"""Write CVAT for images 1.1: XML with a mask element for each mask, and the labels for the task's label constructor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipelines.export.choice import ExportMask, Progress
from pipelines.export.selection import Selection
from pipelines.export.splits import split_file

FILE = "annotations"

_SCORE = {"name": "score", "mutable": False, "input_type": "text", "default_value": "", "values": [""]}


def write_cvat(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``annotations.xml``, or ``annotations_<split>.xml`` for each split, and ``labels.json``.

    CVAT finds images by name, here the image_id; characters that XML cannot represent become U+FFFD.
    """
    labels = [{"name": category.name, "attributes": [_SCORE]} for category in selection.categories]
    (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    for split in selection.splits:
        with (folder / split_file(FILE, split, ".xml")).open("x", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            _write_meta(file, selection, split)
            for place, image in enumerate(selection.images(split)):
                name = quoteattr(_writable(image.image_id))
                file.write(f'  <image id="{place}" name={name} width="{image.width}" height="{image.height}">\n')
                for mask in image.masks:
                    file.write(_mask(mask))
                file.write("  </image>\n")
                on_masks(len(image.masks))
            file.write("</annotations>\n")
    return []


def _write_meta(file: IO[str], selection: Selection, split: str) -> None:
    file.write(f"  <meta>\n    <task>\n      <size>{selection.num_images[split]}</size>\n      <labels>\n")
    for category in selection.categories:
        file.write(
            f"        <label><name>{escape(_writable(category.name))}</name><attributes><attribute><name>score</name>"
            "<mutable>False</mutable><input_type>text</input_type><default_value></default_value><values></values>"
            "</attribute></attributes></label>\n"
        )
    file.write("      </labels>\n    </task>\n  </meta>\n")


def _mask(mask: ExportMask) -> str:
    """Return a mask element: run lengths along the rows of the mask's box, zeros first; empty for an empty mask."""
    pixels = mask.pixels()
    if not pixels.any():
        return ""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inside = pixels[top : rows[-1] + 1, left : columns[-1] + 1]
    runs = ", ".join(map(str, row_runs(inside.reshape(-1))))
    box = f'left="{left}" top="{top}" width="{inside.shape[1]}" height="{inside.shape[0]}"'
    label = quoteattr(_writable(mask.category_name))
    return (
        f'    <mask label={label} source="auto" occluded="0" rle="{runs}" {box} z_order="0">\n'
        f'      <attribute name="score">{mask.score:.4f}</attribute>\n    </mask>\n'
    )


def row_runs(flat: np.ndarray) -> list[int]:
    """Return the run lengths of a flat bool array, zeros first (possibly a run of length 0)."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0, 0] if flat[0] else [0], changes))
    lengths: list[int] = np.diff(starts, append=flat.size).tolist()
    return lengths


def _writable(text: str) -> str:
    """Replace the characters that XML 1.0 cannot represent, not even escaped."""
    return "".join(
        char if char in "\t\n\r" or (char >= " " and char not in "\ufffe\uffff") else "\ufffd" for char in text
    )
