#!/usr/bin/env bash
# tifffile 2026.3.3: a bool mask that it writes is read inverted by Pillow 13.0.0 and OpenCV 5.0.0.
# The file has one bit a pixel and says WhiteIsZero (PhotometricInterpretation 0), as fax machines do, but its bits are those
# of the array, not inverted ones. Pillow and OpenCV do as the file says, so the object is background and the background is
# object; tifffile reads the bits and gets its own array back. Masks are saved by one tool and trained on with another, and
# an inverted mask is a valid mask. photometric="minisblack" gives one that all three read alike.
# Seen 2026-11-29, 4 of 64 pixels set: tifffile 4, Pillow 60, OpenCV 60; with photometric="minisblack": 4, 4, 4
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tifffile==2026.3.3 pillow==13.0.0 numpy==2.4.6 \
  opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - "$folder/mask.tif" <<'PY'
import sys

import cv2
import numpy as np
import tifffile
from PIL import Image

path = sys.argv[1]
mask = np.zeros((8, 8), bool)
mask[2:4, 2:4] = True


def pixels_set(**options):
    tifffile.imwrite(path, mask, **options)
    readers = (tifffile.imread(path), np.asarray(Image.open(path)), cv2.imread(path, cv2.IMREAD_UNCHANGED))
    return [int(np.count_nonzero(pixels)) for pixels in readers]


plain, black_is_zero = pixels_set(), pixels_set(photometric="minisblack")
print(f"{mask.sum()} of {mask.size} pixels are set; read by tifffile, Pillow, OpenCV: {plain}")
print("written with photometric='minisblack':", black_is_zero)
assert plain == [4, 60, 60], "changed: the mask as it is written by itself"
assert black_is_zero == [4, 4, 4], "changed: the mask written with minisblack"
PY
echo "as described: tifffile 2026.3.3, pillow 13.0.0, OpenCV 5.0.0"
