#!/usr/bin/env bash
# OpenCV 5.0.0: some functions take a NumPy bool mask now, and bitwise_not gives one that is True in every pixel.
# The bytes are flipped, 1 to 254 and 0 to 255, and handed back as dtype bool, in which any byte but 0 is True. NumPy takes
# such bytes at face value: sum() is all pixels, == ~mask fails, & with the mask keeps it. OpenCV 4 refused bool at once, so
# the habit of mask.astype(np.uint8) * 255 was safe. Now resize(INTER_NEAREST), bitwise_and and bitwise_not accept bool, while
# findContours, connectedComponents, erode and linear resize still raise: a mask passes the first steps and fails at the third.
# Seen 2026-11-29, 100 of 400 pixels set: bitwise_not: bool, 400 set, bytes 254 and 255;
#   bool is taken by bitwise_and, bitwise_not, countNonZero and resize to the nearest pixel
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check opencv-python-headless==5.0.0.93 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import cv2
import numpy as np

mask = np.zeros((20, 20), bool)
mask[5:15, 5:15] = True
calls = {
    "bitwise_and": lambda: cv2.bitwise_and(mask, mask),
    "bitwise_not": lambda: cv2.bitwise_not(mask),
    "countNonZero": lambda: cv2.countNonZero(mask),
    "resize, nearest": lambda: cv2.resize(mask, (40, 40), interpolation=cv2.INTER_NEAREST),
    "resize, linear": lambda: cv2.resize(mask, (40, 40), interpolation=cv2.INTER_LINEAR),
    "connectedComponents": lambda: cv2.connectedComponents(mask),
    "erode": lambda: cv2.erode(mask, np.ones((3, 3), np.uint8)),
    "findContours": lambda: cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE),
}
accepted = []
for name, call in calls.items():
    try:
        call()
        accepted.append(name)
    except cv2.error:
        pass
inverse = cv2.bitwise_not(mask)
stored = sorted(set(inverse.view(np.uint8).ravel().tolist()))
print("take bool:", accepted, "refuse it:", sorted(calls.keys() - set(accepted)))
print(f"not of {mask.sum()} of {mask.size} pixels: {inverse.dtype}, {inverse.sum()} set, bytes {stored}")
assert accepted == ["bitwise_and", "bitwise_not", "countNonZero", "resize, nearest"], "changed: who takes bool"
assert inverse.dtype == bool and inverse.all() and stored == [254, 255], "changed: bitwise_not of a bool mask"
PY
echo "as described: OpenCV 5.0.0"
