#!/usr/bin/env bash
# webdataset 1.0.2, Pillow 13.0.0: decode("pil"), decode("rgb8") and decode("l8") clip a 16 bit gray PNG at 255.
# Depth, X-ray and thermal cameras write such files, with nearly all values far above 255: what comes out is a white picture,
# of the right size and dtype, without an error. It is Image.convert that cuts instead of scaling, from mode "I;16" to "L" and
# "RGB"; 16 bit color, in contrast, Pillow scales when it opens the file. Float does not help, decode("l") is 1.0 where
# the picture is 255.
# Seen 2026-11-29, values 100, 4660, 65535: pil RGB, rgb8 and l8: 100, 255, 255; 16 bit red 4660 opens as 18
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check webdataset==1.0.2 pillow==13.0.0 \
  numpy==2.4.6 opencv-python-headless==5.0.0.93
"$folder/venv/bin/python" - "$folder/samples.tar" <<'PY'
import io
import sys

import cv2
import numpy as np
import webdataset
from PIL import Image

values = np.array([[100, 4660, 65535]], np.uint16)
gray = io.BytesIO()
Image.fromarray(values).save(gray, "png")
with webdataset.TarWriter(sys.argv[1]) as tar:
    tar.write({"__key__": "0001", "png": gray.getvalue()})


def decoded(kind):
    (sample,) = list(webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode(kind))
    pixels = np.asarray(sample["png"])
    return (pixels[..., 0] if pixels.ndim == 3 else pixels).ravel().tolist()


seen = {kind: decoded(kind) for kind in ("pil", "rgb8", "l8", "l")}
_, color = cv2.imencode(".png", np.dstack([np.zeros_like(values)] * 2 + [values]))
red = np.asarray(Image.open(io.BytesIO(color.tobytes())))[..., 0].ravel().tolist()
print("16 bit gray 100, 4660, 65535:", seen, "as red of 16 bit color, by Pillow:", red)
assert seen["pil"] == seen["rgb8"] == seen["l8"] == [100, 255, 255], "changed: 16 bit gray is not clipped"
assert seen["l"][1:] == [1.0, 1.0], "changed: as float"
assert red == [0, 18, 255], "changed: 16 bit color"
PY
echo "as described: webdataset 1.0.2, pillow 13.0.0"
