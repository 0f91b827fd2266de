#!/usr/bin/env bash
# pycocotools 2.0.11: COCO.loadRes(detections) writes into the dicts it is given, and a second call with the same list fails.
# It adds area, bbox, id and iscrowd to each mask's dict. On the next call it sees that there is a bbox, takes the masks for
# boxes, and sets area to that of the box. Before it can, it compares the box, by now an array, with an empty list, which
# NumPy refuses. So nobody can evaluate one list of masks against two truths, or twice in a notebook, and json.dump of the list
# fails as well: the values it was given are NumPy's.
# Seen 2026-11-29: keys added: area, bbox, id, iscrowd; second call: ValueError: operands could not be broadcast together ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import contextlib
import io
import json

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

truth = COCO()
truth.dataset = {
    "images": [{"id": 1, "height": 20, "width": 20}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [],
}
pixels = np.zeros((20, 20), np.uint8, order="F")
pixels[5:15, 5:15] = 1
rle = mask.encode(pixels)
rle["counts"] = rle["counts"].decode()
detections = [{"image_id": 1, "category_id": 1, "segmentation": rle, "score": 0.9}]
before = set(detections[0])


def outcome(function, *arguments):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            function(*arguments)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "works"


outcome(truth.createIndex)
calls = [outcome(json.dumps, detections), outcome(truth.loadRes, detections)]
added = sorted(set(detections[0]) - before)
calls += [outcome(json.dumps, detections), outcome(truth.loadRes, detections)]
print("keys added:", added)
print("json.dumps, loadRes, json.dumps, loadRes:", *calls, sep="\n  ")
assert added == ["area", "bbox", "id", "iscrowd"], "changed: loadRes leaves the caller's dicts as they are"
assert calls[:2] == ["works", "works"], "changed: the first call"
assert calls[2].startswith("TypeError"), "changed: the list can still be written as JSON"
assert calls[3].startswith("ValueError: operands could not be broadcast"), "changed: the second call"
PY
echo "as described: pycocotools 2.0.11"
