"""Odd but valid pictures, made by code, each with the answer of a reader who knows its format.

Phones, scanners, satellites, microscopes and design programs write them.
"""

from __future__ import annotations

import functools
import struct

import imagecodecs
import numpy as np
from PIL import Image as PilImage

from pipelines.types import PixelNote, Reason
from tests.support.odd_tiffs import odd_bands, odd_values
from tests.support.picture_bytes import (
    GRAY,
    HEIGHT,
    RGB,
    WIDTH,
    OddPicture,
    as_rgb,
    encoded,
    png,
    segment,
    stretched,
    tiff,
    xmp,
)

_LOSSY = 24
_MARKERS = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0\xff\xd9\xff\xd8"  # as bytes of a film or a thumbnail may look


@functools.cache
def odd_pictures() -> tuple[OddPicture, ...]:
    """Return all of them; their names are distinct."""
    return (*_jpegs(), *_jpegs_of_other_kinds(), *_cmyk(), *_pngs(), *odd_values(), *odd_bands(), *_others())


def _without_end(data: bytes) -> bytes:
    assert data.endswith(b"\xff\xd9")
    return data[:-2]


def _jpegs() -> list[OddPicture]:
    plain = encoded(RGB, "JPEG", quality=95)
    progressive = encoded(RGB, "JPEG", quality=95, progressive=True)
    gain_map = encoded(PilImage.fromarray(GRAY), "JPEG", progressive=True)
    turned = PilImage.Exif()
    turned[0x0112] = 6
    files: dict[str, bytes] = {
        "motion_photo": plain + b"\0\0\0\x18ftypmp42" + _MARKERS * 300,
        "motion_photo_progressive": progressive + b"\0\0\0\x18ftypmp42" + _MARKERS * 300,
        "gain_map": progressive + gain_map * 12,
        "large_segments": progressive[:2] + segment(0xEB, _MARKERS * 2000) * 3 + progressive[2:],
        "comment_of_markers": progressive[:2] + segment(0xFE, _MARKERS * 200) + progressive[2:],
        "fill_bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "restart_markers": encoded(RGB, "JPEG", quality=95, restart_marker_blocks=1),
        "multi_picture": encoded(RGB, "MPO", quality=95, save_all=True, append_images=[PilImage.fromarray(GRAY)]),
        "rgb_components": encoded(RGB, "JPEG", quality=95, keep_rgb=True),
    }
    endless = {
        "no_end": _without_end(plain),
        "no_end_progressive": _without_end(progressive),
        "no_end_but_zeros": _without_end(plain) + bytes(3000),
        "no_end_but_another_picture": _without_end(plain) + gain_map,
        "no_end_progressive_but_another_picture": _without_end(progressive) + gain_map,
    }
    no_end = (PixelNote.NO_END_MARKER,)
    last_scan = progressive.rindex(b"\xff\xda")
    return [
        *(OddPicture(f"{n}.jpg", d, pixels=RGB, tolerance=_LOSSY) for n, d in files.items()),
        *(OddPicture(f"{n}.jpg", d, pixels=RGB, tolerance=_LOSSY, notes=no_end) for n, d in endless.items()),
        OddPicture("cut.jpg", plain[: len(plain) * 2 // 3], reason=Reason.TRUNCATED),
        OddPicture("cut_and_filled.jpg", plain[: len(plain) // 2] + bytes(9000), reason=Reason.TRUNCATED),
        OddPicture("lacks_a_scan.jpg", progressive[:last_scan], reason=Reason.TRUNCATED),
        OddPicture(
            "orientation_in_xmp.jpg",
            encoded(RGB, "JPEG", quality=95, xmp=xmp(6)),
            pixels=RGB,
            tolerance=_LOSSY,
            notes=(PixelNote.XMP_ORIENTATION_IGNORED,),
        ),
        OddPicture(
            "orientation_in_both.jpg",
            encoded(RGB, "JPEG", quality=95, exif=turned, xmp=xmp(3)),
            pixels=np.rot90(RGB, -1),
            tolerance=_LOSSY,
            orientation=6,
        ),
    ]


def _jpegs_of_other_kinds() -> list[OddPicture]:
    """Return medical and scientific ones: each is read by imagecodecs, not by Pillow."""
    deep = GRAY.astype(np.uint16) * 16  # 12 bits
    shown = as_rgb((deep.astype(float) * 255 / 4095 + 0.5).astype(np.uint8))
    plain = bytearray(encoded(RGB, "JPEG"))
    frame = plain.index(b"\xff\xc0")
    plain[frame + 5 : frame + 7] = b"\0\0"
    lossless = imagecodecs.ljpeg_encode(deep * 16, bitspersample=16)
    return [
        OddPicture(
            "of_12_bits.jpg",
            imagecodecs.jpeg_encode(deep, bitspersample=12, level=98),
            pixels=shown,
            tolerance=_LOSSY,
        ),
        OddPicture("lossless_of_16_bits.jpg", lossless, pixels=as_rgb(((deep * 16) / 257 + 0.5).astype(int))),
        OddPicture("jpeg_ls.jpg", imagecodecs.jpegls_encode(GRAY), pixels=as_rgb(GRAY)),
        OddPicture("jpeg_ls_colors.jpg", imagecodecs.jpegls_encode(RGB), pixels=RGB),
        OddPicture("height_comes_later.jpg", bytes(plain), reason=Reason.UNSUPPORTED_MODE),
    ]


def _cmyk() -> list[OddPicture]:
    inks = PilImage.new("CMYK", (WIDTH, HEIGHT), (200, 100, 50, 0))
    seen = np.asarray(inks.convert("RGB"))
    adobe = encoded(inks, "JPEG", quality=95)
    at = adobe.index(b"\xff\xee")
    plain = encoded(PilImage.new("CMYK", (WIDTH, HEIGHT), (55, 155, 205, 255)), "JPEG", quality=95)
    assert plain[at : at + 2] == b"\xff\xee"
    # The same numbers as luma and chroma: Y 200, no color, no black ink.
    ycck = bytearray(encoded(PilImage.new("CMYK", (WIDTH, HEIGHT), (55, 127, 127, 0)), "JPEG", quality=95))
    ycck[ycck.index(b"Adobe") + 11] = 2
    return [
        OddPicture("cmyk_of_adobe.jpg", adobe, pixels=seen, tolerance=3),
        OddPicture("cmyk_without_marker.jpg", plain[:at] + plain[at + 16 :], pixels=seen, tolerance=3),
        OddPicture("ycck.jpg", bytes(ycck), pixels=np.full((HEIGHT, WIDTH, 3), 55, np.uint8), tolerance=4),
        OddPicture("cmyk.tif", tiff(np.asarray(inks), photometric=5), pixels=seen),
    ]


def _pngs() -> list[OddPicture]:
    twelve, gray16 = GRAY.astype(np.uint16) * 16, GRAY.astype(np.uint16) * 257
    ten = RGB.astype(np.uint16) * 4
    of_12 = as_rgb((twelve * 255.0 / 4095 + 0.5).astype(int))
    of_10 = (ten * 255.0 / 1023 + 0.5).astype(np.uint8)
    opaque = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    from_tag, by_stretch = (PixelNote.RANGE_FROM_TAG,), (PixelNote.STRETCHED,)
    half = np.dstack([RGB, np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0)[None].repeat(HEIGHT, 0)]).astype(np.uint8)
    seen = np.where(half[..., 3:] == 255, RGB, 255).astype(np.uint8)
    indices = (np.arange(WIDTH) % 3)[None].repeat(HEIGHT, 0).astype(np.uint8)[..., None]
    palette = np.array([[255, 0, 0], [0, 0, 255], [0, 0, 0]], np.uint8)
    return [
        OddPicture("16_bits.png", png(gray16[..., None], 0, bits=16), pixels=as_rgb(GRAY)),
        OddPicture("12_of_16_bits.png", png(twelve[..., None], 0, bits=16), pixels=as_rgb(stretched(twelve)),
                   notes=by_stretch),
        OddPicture("12_of_16_bits_stated.png", png(twelve[..., None], 0, (b"sBIT", b"\x0c"), bits=16),
                   pixels=of_12, notes=from_tag),
        OddPicture("12_bits_scaled_to_16.png", png(gray16[..., None], 0, (b"sBIT", b"\x0c"), bits=16),
                   pixels=as_rgb(GRAY)),
        OddPicture("10_of_16_bits_rgb.png", png(ten, 2, bits=16), pixels=stretched(ten), notes=by_stretch),
        OddPicture("10_of_16_bits_rgb_stated.png", png(ten, 2, (b"sBIT", b"\x0a\x0a\x0a"), bits=16),
                   pixels=of_10, notes=from_tag),
        OddPicture("10_of_16_bits_rgba.png", png(np.dstack([ten, opaque]), 6, bits=16), pixels=stretched(ten),
                   notes=by_stretch),
        OddPicture("12_of_16_bits_with_alpha.png", png(np.dstack([twelve[..., None], opaque]), 4, bits=16),
                   pixels=as_rgb(stretched(twelve)), notes=by_stretch),
        OddPicture("16_bits_rgb.png", png(RGB.astype(np.uint16) * 257, 2, bits=16), pixels=RGB),
        OddPicture("transparent_palette.png", png(indices, 3, (b"PLTE", palette.tobytes()), (b"tRNS", b"\0\xff")),
                   pixels=np.array([[255, 255, 255], [0, 0, 255], [0, 0, 0]], np.uint8)[indices[..., 0]]),
        OddPicture("transparent_gray.png", png(gray16[..., None], 0, (b"tRNS", struct.pack(">H", 257)), bits=16),
                   pixels=as_rgb(np.where(GRAY == 1, 255, GRAY))),
        OddPicture("transparent_rgb16.png",
                   png(RGB.astype(np.uint16) * 257, 2, (b"tRNS", struct.pack(">3H", 0, 0, 0)), bits=16),
                   pixels=np.where((RGB == 0).all(axis=-1, keepdims=True), 255, RGB).astype(np.uint8)),
        OddPicture("half_transparent.png", png(half, 6), pixels=seen),
        OddPicture("no_end.png", png(RGB, 2, has_end=False), pixels=RGB, notes=(PixelNote.NO_END_MARKER,)),
        OddPicture("more_behind_its_end.png", png(RGB, 2) + bytes(200_000), pixels=RGB),
        OddPicture("orientation_in_xmp.png",
                   png(RGB, 2, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(8))), pixels=RGB,
                   notes=(PixelNote.XMP_ORIENTATION_IGNORED,)),
        OddPicture("of_an_app.png", _apple(png(RGB, 2)), reason=Reason.UNSUPPORTED_MODE),
    ]  # fmt: skip


def _apple(data: bytes) -> bytes:
    return data[:8] + b"\0\0\0\x04CgBI\x50\0\x20\x06\x2c\xb8\x77\x66" + data[8:]


def _others() -> list[OddPicture]:
    two = PilImage.fromarray((GRAY > 100).astype(np.uint8), "P")
    two.putpalette([200, 10, 10, 10, 10, 200])
    seen = np.array([[200, 10, 10], [10, 10, 200]], np.uint8)[(GRAY > 100).astype(int)]
    clear = np.where((GRAY > 100)[..., None], seen, 255).astype(np.uint8)
    frames = [PilImage.fromarray(GRAY)]
    return [
        OddPicture("transparent.gif", encoded(two, "GIF", transparency=0), pixels=clear),
        OddPicture("animated.gif", encoded(two, "GIF", save_all=True, append_images=frames), pixels=seen),
        OddPicture("two_colors.bmp", encoded(two, "BMP"), pixels=seen),
        *(OddPicture(name, data, reason=Reason.UNSUPPORTED_MODE) for name, data in {
            "really_jp2.jpg": imagecodecs.jpeg2k_encode(RGB),
            "really_ppm.jpg": encoded(RGB, "PPM"),
            "really_qoi.jpg": imagecodecs.qoi_encode(RGB),
            "really_psd.jpg": b"8BPS\0\1" + bytes(20),
            "really_dcm.jpg": bytes(128) + b"DICM" + bytes(20),
            "really_exr.jpg": b"v/1\1" + bytes(20),
        }.items()),
        OddPicture("really_jxl.jpg", imagecodecs.jpegxl_encode(RGB, lossless=True), pixels=RGB),
        OddPicture("animated.webp", encoded(RGB, "WEBP", lossless=True, save_all=True, append_images=frames),
                   pixels=RGB),
    ]  # fmt: skip
