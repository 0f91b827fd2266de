#!/usr/bin/env bash
# Pillow 13.0.0: a TIFF that holds 16-bit red, green and blue one after the other (PlanarConfiguration 2) opens as RGB, and its
# pixels are neither the high bytes nor anything else of the picture.
# For such planes the raw mode of each is taken from the letters of that of the whole ("RGB;16L" gives "R", "G", "B"), which
# are 8-bit modes: each byte of a value is taken for a pixel, so that a row shows its left half only. There is no error and no
# warning; mode and size are right. 8-bit planes, and 16-bit values that are interleaved, are read as they are.
# Seen 2026-11-30, red 256 x (column), columns 0 to 7: interleaved [0, 1, 2, 3, 4, 5, 6, 7], planes [0, 0, 0, 1, 0, 2, 0, 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check tifffile==2026.3.3 pillow==13.0.0
"$folder/venv/bin/python" - "$folder/picture.tif" <<'PY'
import sys

import numpy as np
import tifffile
from PIL import Image

path = sys.argv[1]
planes = np.zeros((3, 4, 8), np.uint16)
planes[0] = np.arange(8) * 256


def red_of_first_row(pixels, **options):
    tifffile.imwrite(path, pixels, photometric="rgb", **options)
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (8, 4))
        return np.asarray(image)[0, :, 0].tolist()


interleaved = red_of_first_row(np.ascontiguousarray(np.moveaxis(planes, 0, -1)))
apart = red_of_first_row(planes, planarconfig="separate")
print("red of the first row, interleaved:", interleaved, "in planes:", apart)
assert interleaved == list(range(8)), "changed: interleaved"
assert apart != interleaved, "changed: planes are read right"
PY
echo "as described: pillow 13.0.0"
