#!/usr/bin/env bash
# Pillow 13.0.0 (libjpeg-turbo): a JPEG of which the second half is zeros is read without an error, its lower half gray.
# That is what a download leaves that was broken off after the file had been given its full size. Pillow says "image file is
# truncated" only if it runs out of bytes; zeros are valid data, some 24 bytes for a block of 8 x 8, and a rich picture has more.
# A smooth picture at the same quality has fewer bytes than that, and is an error. The end marker is missing in both, which
# is not looked at.
# Seen 2026-11-30, noise of 200 x 300 at quality 95: read; a gradient of that size: OSError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 pillow==13.0.0
"$folder/venv/bin/python" - <<'PY'
import io

import numpy as np
from PIL import Image

noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
smooth = np.broadcast_to(np.arange(300) // 2, (3, 200, 300)).transpose(1, 2, 0).astype(np.uint8)


def half_and_zeros(pixels):
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    half = data[: len(data) // 2]
    try:
        return np.asarray(Image.open(io.BytesIO(half + bytes(len(data) - len(half)))))
    except OSError as error:
        return str(error)


read, refused = half_and_zeros(noise), half_and_zeros(smooth)
print("noise:", read if isinstance(read, str) else f"read, contrast {read[:50].std():.0f} above and {read[-50:].std():.0f} below")
print("gradient:", refused if isinstance(refused, str) else "read")
assert not isinstance(read, str) and read[-50:].std() < 12 < read[:50].std(), "changed: half a rich picture"
assert isinstance(refused, str) and "truncated" in refused, "changed: half a smooth picture"
PY
echo "as described: pillow 13.0.0"
