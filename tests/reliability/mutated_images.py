"""Decodes mutated images, one after the other, in a process whose end would be the test's failure.

    python -m tests.reliability.mutated_images COUNT SEED FILE

Prints what became of them as JSON. FILE holds the mutant under way, so that one that ends the process is not lost.
"""

from __future__ import annotations

import io
import json
import random
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.images.decode import DecodeError, DecodeLimits, decode_image
from pipelines.types import ImageRef

_REF = ImageRef(image_id="mutant", uri="/mutant")
_LIMITS = DecodeLimits(max_image_pixels=1_000_000)
_EDGES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01")


def originals() -> list[bytes]:
    """Return small pictures in every format and mode that is decoded, each a few hundred bytes to a few thousand."""
    y, x = np.mgrid[:40, :56]
    rgb = Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], axis=-1).astype(np.uint8))
    gray16 = Image.fromarray((x * 1000 + y).astype(np.uint16))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    frames = [rgb.rotate(angle) for angle in (90, 180)]
    pictures = [
        (rgb, "JPEG", {}),
        (rgb, "JPEG", {"progressive": True, "exif": orientation}),
        (rgb, "JPEG", {"subsampling": 0, "restart_marker_blocks": 2}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {"exif": orientation}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("1"), "PNG", {}),
        (gray16, "PNG", {}),
        (rgb, "WEBP", {}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": frames}),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate", "exif": orientation}),
        (rgb.convert("CMYK"), "TIFF", {"compression": "packbits"}),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (gray16, "TIFF", {}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb.convert("P"), "GIF", {}),
        (rgb.convert("P"), "GIF", {"save_all": True, "append_images": [frame.convert("P") for frame in frames]}),
    ]
    found = []
    for picture, file_format, options in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, file_format, **options)
        found.append(buffer.getvalue())
    return found


def mutate(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Return a copy that is broken in one to four places: bytes changed, cut out, put in, or taken from another."""
    mutant = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        # Headers are where lengths and sizes stand: half of the changes go there.
        end = min(len(mutant), 120) if chance.random() < 0.5 else len(mutant)
        place = chance.randrange(max(1, end))
        kind = chance.randrange(6)
        if kind == 0:
            mutant[place : place + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            edge = chance.choice(_EDGES)
            mutant[place : place + len(edge)] = edge
        elif kind == 2:
            del mutant[place : place + chance.randint(1, 64)]
        elif kind == 3:
            mutant[place:place] = chance.randbytes(chance.randint(1, 16))
        elif kind == 4:
            other = chance.choice(others)
            start = chance.randrange(len(other))
            mutant[place : place + 64] = other[start : start + 64]
        else:
            del mutant[max(1, place) :]
    return bytes(mutant)


def main(count: int, seed: int, last: Path) -> None:
    """Decode mutants; see the module."""
    warnings.simplefilter("ignore")
    chance, pictures = random.Random(seed), originals()
    outcomes: Counter[str] = Counter()
    with last.open("wb") as file:
        for number in range(count):
            mutant = mutate(pictures[number % len(pictures)], pictures, chance)
            file.seek(0)
            file.truncate()
            file.write(mutant)
            file.flush()
            try:
                image = decode_image(mutant, _REF, _LIMITS)
            except DecodeError as error:
                outcomes[error.reason] += 1
            else:
                assert image.pixels.dtype == np.uint8
                assert image.pixels.shape == (*image.size_hw, 3)
                outcomes["decoded"] += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
