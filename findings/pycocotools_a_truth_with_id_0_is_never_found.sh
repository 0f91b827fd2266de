#!/usr/bin/env bash
# pycocotools 2.0.11: a ground-truth annotation whose id is 0 cannot be found. A detection with the very same mask gets AP 0.
# COCOeval keeps the id of the match of each detection, and asks of that number whether there was a match. COCO's own files
# count from 1; whoever writes a file with Python's enumerate() counts from 0. In a large data set the loss is one object
# in many, which nobody sees; in a test with one object everything is wrong. hotcoco 1.3.0, which is read by the same code
# as a drop-in, says 1 (0.9999999999999998) for both, so that the two disagree on such a file.
# Seen 2026-11-29: AP with id 0: pycocotools 0.0, hotcoco 0.9999999999999998; with id 1: both 0.9999999999999998
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pycocotools==2.0.11 numpy==2.4.6 hotcoco==1.3.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import contextlib
import io
import json
import pathlib
import sys

import hotcoco
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pycocotools.mask

folder = pathlib.Path(sys.argv[1])
pixels = np.zeros((20, 20), np.uint8, order="F")
pixels[5:15, 5:15] = 1
mask = pycocotools.mask.encode(pixels)
mask["counts"] = mask["counts"].decode()


def average_precision(index, evaluator, first_id):
    truth = {"id": first_id, "image_id": 1, "category_id": 1, "segmentation": mask, "area": 100, "bbox": [5, 5, 10, 10]}
    path = folder / f"truth-{first_id}.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 20}],
                "categories": [{"id": 1, "name": "cat"}],
                "annotations": [truth | {"iscrowd": 0}],
            }
        )
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truths = index(str(path))
        found = truths.loadRes([{"image_id": 1, "category_id": 1, "segmentation": dict(mask), "score": 0.9}])
        evaluation = evaluator(truths, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


official = [average_precision(pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval, first) for first in (0, 1)]
other = [average_precision(hotcoco.COCO, hotcoco.COCOeval, first) for first in (0, 1)]
print("AP of one perfect mask with id 0, with id 1: pycocotools", official, "hotcoco", other)
assert official[0] == 0 and official[1] > 0.999, "changed: pycocotools finds the truth with id 0"
assert min(other) > 0.999, "changed: hotcoco does not find both"
PY
echo "as described: pycocotools 2.0.11, hotcoco 1.3.0"
