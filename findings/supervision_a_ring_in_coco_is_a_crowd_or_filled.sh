#!/usr/bin/env bash
# supervision 0.31.2: DetectionDataset.as_coco has no way for an ordinary object with a hole, of the two that COCO allows.
# Made in Python, the ring is written as RLE, pixel by pixel, but with iscrowd 1: evaluators take it for a region in which
# they ignore what is found, and an object that is not found there costs nothing. Read from a COCO file with iscrowd 0, as
# RLE, it is written as two polygons, outline and hole. Polygons of an object are joined in COCO, so the hole is gone for
# whoever reads it, supervision included, while the area beside it is still that of the ring.
# Seen 2026-11-29, ring of 500 pixels: made: RLE, iscrowd 1; read and written again: 2 polygons, iscrowd 0, area 500, 900 pixels
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check supervision==0.31.2 \
  opencv-python-headless==5.0.0.93 pycocotools==2.0.11 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import json
import pathlib
import sys

import cv2
import numpy as np
import supervision as sv
from pycocotools import mask

folder = pathlib.Path(sys.argv[1])
image = folder / "images" / "a.png"
image.parent.mkdir()
cv2.imwrite(str(image), np.zeros((60, 50, 3), np.uint8))
ring = np.zeros((60, 50), bool)
ring[10:40, 10:40] = True
ring[15:35, 15:35] = False
num_pixels = int(ring.sum())


def dataset_of(path):
    return sv.DetectionDataset.from_coco(str(image.parent), str(path))


def written(dataset, name):
    dataset.as_coco(annotations_path=str(folder / name))
    (annotation,) = json.loads((folder / name).read_text())["annotations"]
    segmentation = annotation["segmentation"]
    form = "RLE" if isinstance(segmentation, dict) else f"{len(segmentation)} polygons"
    ((_, _, detections),) = list(dataset_of(folder / name))
    return form, annotation["iscrowd"], int(annotation["area"]), int(np.asarray(detections.mask).sum())


detections = sv.Detections(xyxy=np.array([[10.0, 10, 39, 39]]), mask=ring[None], class_id=np.array([0]))
made = sv.DetectionDataset(classes=["ring"], images=[str(image)], annotations={str(image): detections})
rle = mask.encode(np.asfortranarray(ring.astype(np.uint8)))
rle["counts"] = rle["counts"].decode()
annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle, "area": num_pixels, "iscrowd": 0}
(folder / "truth.json").write_text(
    json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 50}],
            "categories": [{"id": 1, "name": "ring"}],
            "annotations": [annotation | {"bbox": [10, 10, 30, 30]}],
        }
    )
)
read = dataset_of(folder / "truth.json")
((_, _, held),) = list(read)
assert np.array_equal(np.asarray(held.mask)[0], ring), "changed: the ring is not read as it is"
outcomes = written(made, "made.json"), written(read, "again.json")
print(f"a ring of {num_pixels} pixels: form, iscrowd, area, pixels when it is read")
print("  made in Python:    ", *outcomes[0])
print("  read from COCO RLE:", *outcomes[1])
assert outcomes[0] == ("RLE", 1, num_pixels, num_pixels), "changed: the ring made in Python"
assert outcomes[1] == ("2 polygons", 0, num_pixels, 900), "changed: the ring read from COCO"
PY
echo "as described: supervision 0.31.2"
