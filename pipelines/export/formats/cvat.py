"""Write CVAT for images 1.1: XML with a mask element for each mask, and the labels for the task's label constructor."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pipelines.errors import some_texts
from pipelines.export.choice import ExportMask, Progress
from pipelines.export.selection import Selection
from pipelines.export.splits import split_file
from pipelines.redaction import counted, quoted

FILE = "annotations"

SHORTENED = "labels_shortened.csv"

_MAX_LABEL = 64
# The id comes back with a correction, and with it what the mask was.
_ATTRIBUTES = ("score", "annotation_id")


def write_cvat(selection: Selection, folder: Path, on_masks: Progress) -> list[str]:
    """Write ``annotations.xml``, or ``annotations_<split>.xml`` for each split, and ``labels.json``.

    CVAT finds images by name, here the image_id; characters that XML cannot represent become U+FFFD. Labels have at
    most 64 characters: longer names are cut and get a part of their hash, and ``labels_shortened.csv`` tells them.
    """
    labels = label_names([category.name for category in selection.categories])
    text = {"mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    attributes = [{"name": name, **text} for name in _ATTRIBUTES]
    described = [{"name": label, "attributes": attributes} for label in labels.values()]
    (folder / "labels.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    for split in selection.splits:
        with (folder / split_file(FILE, split, ".xml")).open("x", encoding="utf-8") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            _write_meta(file, list(labels.values()), selection.num_images[split])
            for place, image in enumerate(selection.images(split)):
                name = quoteattr(writable(image.image_id))
                # CVAT passes over the ids; whoever reads the file again can tell which masks were deleted from it.
                ids = " ".join(mask.annotation_id for mask in image.masks)
                size = f'width="{image.width}" height="{image.height}"'
                file.write(f'  <image id="{place}" name={name} {size} annotation_ids={quoteattr(writable(ids))}>\n')
                for mask in image.masks:
                    file.write(_mask(mask, labels[mask.category_name]))
                file.write("  </image>\n")
                on_masks(len(image.masks))
            file.write("</annotations>\n")
    changed = {name: label for name, label in labels.items() if name != label}
    if not changed:
        return []
    with (folder / SHORTENED).open("x", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("label", "category_name"), *((label, name) for name, label in changed.items())])
    which = some_texts(f"{quoted(name)} as {label}" for name, label in changed.items())
    return [
        f"{counted(len(changed), 'name is no label of', 'names are no labels of')} CVAT ({_MAX_LABEL} characters, "
        f"those of XML), written as: {which}"
    ]


def label_names(names: Sequence[str]) -> dict[str, str]:
    """Return the label of each name: the name, if it is short and can be written, or one like it that is no other's."""
    labels = {name: name for name in names if len(name) <= _MAX_LABEL and writable(name) == name and name.strip()}
    for name in names:
        if name not in labels:
            digest = hashlib.sha256(name.encode()).hexdigest()[:8]
            labels[name] = f"{writable(name).strip()[: _MAX_LABEL - 9]}-{digest}"
    return {name: labels[name] for name in names}


def _write_meta(file: IO[str], labels: Sequence[str], num_images: int) -> None:
    file.write(f"  <meta>\n    <task>\n      <size>{num_images}</size>\n      <labels>\n")
    attributes = "".join(
        f"<attribute><name>{name}</name><mutable>False</mutable><input_type>text</input_type>"
        "<default_value></default_value><values></values></attribute>"
        for name in _ATTRIBUTES
    )
    for label in labels:
        file.write(f"        <label><name>{escape(label)}</name><attributes>{attributes}</attributes></label>\n")
    file.write("      </labels>\n    </task>\n  </meta>\n")


def _mask(mask: ExportMask, label: str) -> str:
    """Return a mask element: run lengths along the rows of the mask's box, zeros first; empty for an empty mask."""
    pixels = mask.pixels()
    if not pixels.any():
        return ""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    inside = pixels[top : rows[-1] + 1, left : columns[-1] + 1]
    runs = ", ".join(map(str, row_runs(inside.reshape(-1))))
    box = f'left="{left}" top="{top}" width="{inside.shape[1]}" height="{inside.shape[0]}"'
    return (
        f'    <mask label={quoteattr(label)} source="auto" occluded="0" rle="{runs}" {box} z_order="0">\n'
        f'      <attribute name="score">{mask.score:.4f}</attribute>\n'
        f'      <attribute name="annotation_id">{escape(writable(mask.annotation_id))}</attribute>\n    </mask>\n'
    )


def row_runs(flat: np.ndarray) -> list[int]:
    """Return the run lengths of a flat bool array, zeros first (possibly a run of length 0)."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0, 0] if flat[0] else [0], changes))
    lengths: list[int] = np.diff(starts, append=flat.size).tolist()
    return lengths


def writable(text: str) -> str:
    """Replace the characters that XML 1.0 cannot represent, not even escaped."""
    return "".join(
        char if char in "\t\n\r" or (char >= " " and char not in "\ufffe\uffff") else "\ufffd" for char in text
    )
