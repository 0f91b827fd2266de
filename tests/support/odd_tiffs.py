"""Odd but valid TIFFs: values of more than 8 bits, signed and floating-point ones, bands that are no colors."""

from __future__ import annotations

import io

import numpy as np
import tifffile
from numpy.typing import NDArray

from pipelines.types import PixelNote, Reason
from tests.support.picture_bytes import (
    GRAY,
    HEIGHT,
    RGB,
    WIDTH,
    OddPicture,
    as_rgb,
    gdal_bands,
    infrared,
    stretched,
    tiff,
    xmp,
)


def odd_values() -> list[OddPicture]:
    """Return those whose values are not 8 bits, or whose small ones are bright."""
    twelve = GRAY.astype(np.uint16) * 16
    unit = GRAY.astype(np.float32) / 255
    reflectance = GRAY.astype(np.int16) * 20 - 500
    holes = np.where(GRAY < 5, np.nan, GRAY * 3.5 - 100).astype(np.float32)
    seen_holes = np.where(GRAY < 5, 255, stretched(np.where(GRAY < 5, np.nan, holes)) if GRAY.size else 0)
    filled = np.where(GRAY < 5, -9999, reflectance).astype(np.int16)
    low, high = np.percentile(reflectance[GRAY >= 5], (2, 98))
    seen_filled = np.where(GRAY < 5, 255, (np.clip((reflectance - low) / (high - low), 0, 1) * 255 + 0.5).astype(int))
    bilevel = np.packbits(GRAY > 100, axis=1)
    from_tag, by_stretch = (PixelNote.RANGE_FROM_TAG,), (PixelNote.STRETCHED,)
    one_bit = {256: ("I", WIDTH), 258: ("H", 1)}
    return [
        OddPicture("float_0_to_1.tif", tiff(unit), pixels=as_rgb(GRAY)),
        OddPicture("float64.tif", tiff(unit.astype(np.float64)), pixels=as_rgb(GRAY)),
        OddPicture("float_with_holes.tif", tiff(holes), pixels=as_rgb(seen_holes), notes=by_stretch, tolerance=1),
        OddPicture("float_with_largest_values.tif", pixels=as_rgb(seen_holes), notes=by_stretch, tolerance=1,
                   data=tiff(np.where(np.isnan(holes), np.finfo(np.float32).min, holes).astype(np.float32))),
        OddPicture("float_stated.tif", tiff(unit * 4, {340: ("d", 0.0), 341: ("d", 4.0)}), pixels=as_rgb(GRAY),
                   notes=from_tag),
        OddPicture("signed.tif", tiff(reflectance), pixels=as_rgb(stretched(reflectance)), notes=by_stretch),
        OddPicture("signed_no_data.tif", tiff(filled, {42113: ("s", "-9999")}), pixels=as_rgb(seen_filled),
                   notes=by_stretch),
        OddPicture("signed_8_bits.tif", tiff((GRAY.astype(int) - 128).astype(np.int8)),
                   pixels=as_rgb(stretched(GRAY)), notes=by_stretch),
        OddPicture("no_data_beyond_its_type.tif", tiff(twelve, {42113: ("s", "nan")}),
                   pixels=as_rgb(stretched(twelve)), notes=by_stretch),
        OddPicture("32_bits.tif", tiff(GRAY.astype(np.uint32) * 1000), pixels=as_rgb(stretched(GRAY)),
                   notes=by_stretch),
        OddPicture("12_of_16_bits.tif", tiff(twelve), pixels=as_rgb(stretched(twelve)), notes=by_stretch),
        OddPicture("12_of_16_bits_stated.tif", tiff(twelve, {281: ("H", 4021)}), notes=from_tag,
                   pixels=as_rgb((twelve * 255.0 / 4095 + 0.5).astype(int))),
        OddPicture("10_of_16_bits_rgb.tif", tiff(RGB.astype(np.uint16) * 4, photometric=2),
                   pixels=stretched(RGB), notes=by_stretch),
        OddPicture("big_endian_12_of_16_bits.tif", with_tifffile(twelve, byteorder=">"), notes=by_stretch,
                   pixels=as_rgb(stretched(twelve))),
        OddPicture("big_endian_16_bits.tif", with_tifffile(GRAY.astype(np.uint16) * 256, byteorder=">"),
                   pixels=as_rgb((GRAY * (256 * 255 / 65535) + 0.5).astype(int))),
        OddPicture("big_endian_signed_deflate.tif", with_tifffile(reflectance, byteorder=">", compression="zlib"),
                   pixels=as_rgb(stretched(reflectance)), notes=by_stretch),
        OddPicture("big_endian_float_deflate.tif", with_tifffile(unit, byteorder=">", compression="zlib"),
                   pixels=as_rgb(GRAY)),
        OddPicture("half_float.tif", with_tifffile(unit.astype(np.float16)), pixels=as_rgb(GRAY)),
        OddPicture("deflate_10_of_16.tif", pixels=stretched(RGB), notes=by_stretch,
                   data=with_tifffile(RGB.astype("u2") * 4, photometric="rgb", compression="zlib", predictor=True)),
        OddPicture("white_is_zero.tif", tiff(GRAY, photometric=0), pixels=as_rgb(255 - GRAY)),
        OddPicture("white_is_zero_16.tif", tiff(GRAY.astype(np.uint16) * 257, photometric=0),
                   pixels=as_rgb(255 - GRAY)),
        OddPicture("bilevel.tif", tiff(bilevel, one_bit), pixels=as_rgb((GRAY > 100) * 255)),
        OddPicture("bilevel_white_is_zero.tif", tiff(bilevel, one_bit, photometric=0),
                   pixels=as_rgb((GRAY <= 100) * 255)),
    ]  # fmt: skip


def odd_bands() -> list[OddPicture]:
    """Return those with other bands than colors, and those that need another decoder."""
    nir = infrared()
    rgbn, deep = np.dstack([RGB, nir]), np.dstack([RGB, nir]).astype(np.uint16) * 257
    half = np.dstack([RGB, np.where(np.arange(WIDTH) < 9, 0, 255)[None].repeat(HEIGHT, 0)]).astype(np.uint8)
    eight = np.dstack([RGB, *[nir] * 5]).astype(np.uint16) * 40
    unclear, opacity, multiplied = {338: ("H", 0)}, {338: ("H", 2)}, {338: ("H", 1)}
    no_alpha, fewer = (PixelNote.ALPHA_LEFT_OUT,), (PixelNote.BANDS_LEFT_OUT,)
    named = {**opacity, 42112: gdal_bands("Red", "Green", "Blue", "NIR")}
    first_infrared = {338: ("H", (0, 0, 0)), 42112: gdal_bands("Undefined", "Blue", "Green", "Red")}
    planes = with_tifffile(np.moveaxis(deep[..., :3], -1, 0), photometric="rgb", planarconfig="separate")
    stack = with_tifffile(np.moveaxis(eight, -1, 0), photometric="minisblack", planarconfig="separate")
    colors = tuple(int(one) for one in np.array([[9, 200, 90], [99, 20, 0]], np.uint8).T.reshape(-1))
    table = tuple(value for start in range(0, 6, 2) for value in (*colors[start : start + 2], *[0] * 254))
    return [
        OddPicture("infrared_as_alpha.tif", tiff(rgbn, opacity, photometric=2), pixels=RGB, notes=no_alpha),
        OddPicture("infrared_as_premultiplied.tif", tiff(rgbn, multiplied, photometric=2), pixels=RGB,
                   notes=no_alpha),
        OddPicture("infrared_untagged.tif", tiff(rgbn, photometric=2), pixels=RGB, notes=no_alpha),
        OddPicture("infrared_16.tif", tiff(deep, opacity, photometric=2), pixels=RGB, notes=no_alpha),
        OddPicture("infrared_named.tif", tiff(half, {**named, **opacity}, photometric=2), pixels=RGB,
                   notes=no_alpha),
        OddPicture("infrared_unspecified.tif", tiff(rgbn, unclear, photometric=2), pixels=RGB, notes=fewer),
        OddPicture("infrared_first.tif", tiff(np.dstack([nir, RGB[..., ::-1]]), first_infrared), pixels=RGB,
                   notes=fewer),
        OddPicture("real_alpha.tif", tiff(half, opacity, photometric=2),
                   pixels=np.where(half[..., 3:] == 255, RGB, 255).astype(np.uint8)),
        OddPicture("unused_alpha.tif", tiff(half * np.uint8([1, 1, 1, 0]), opacity, photometric=2), pixels=RGB,
                   notes=no_alpha),
        OddPicture("gray_and_infrared.tif", tiff(np.dstack([GRAY, nir]), opacity), pixels=as_rgb(GRAY),
                   notes=no_alpha),
        OddPicture("six_bands.tif", tiff(np.dstack([rgbn, nir, nir]), {338: ("H", (0, 0, 0))}, photometric=2),
                   pixels=RGB, notes=fewer),
        OddPicture("eight_bands_16.tif", tiff(eight, {338: ("H", (0,) * 5)}), pixels=stretched(eight[..., :3]),
                   notes=(*fewer, PixelNote.STRETCHED)),
        OddPicture("eight_planes_16.tif", stack, pixels=stretched(eight[..., :3]),
                   notes=(*fewer, PixelNote.STRETCHED)),
        OddPicture("planes_16.tif", planes, pixels=RGB),
        OddPicture("8_bit_palette.tif",
                   tiff((GRAY > 100).astype(np.uint8), {320: ("H", table)}, photometric=3),
                   pixels=np.array([[9, 200, 90], [99, 20, 0]], np.uint8)[(GRAY > 100).astype(int)]),
        OddPicture("zstd.tif", with_tifffile(RGB, photometric="rgb", compression="zstd"), pixels=RGB),
        OddPicture("jpeg2000.tif", with_tifffile(RGB, photometric="rgb", compression="jpeg2000"), pixels=RGB),
        OddPicture("webp.tif", pixels=RGB,
                   data=with_tifffile(RGB, photometric="rgb", compression="webp", compressionargs={"lossless": True})),
        OddPicture("big_endian_big.tif", with_tifffile(RGB, photometric="rgb", byteorder=">", bigtiff=True),
                   pixels=RGB),
        OddPicture("orientation_in_xmp.tif", tiff(RGB, {700: ("s", xmp(6).decode())}, photometric=2), pixels=RGB,
                   notes=(PixelNote.XMP_ORIENTATION_IGNORED,)),
        OddPicture("camera_raw.tif", tiff(RGB, {50706: ("I", 0x0401)}, photometric=2),
                   reason=Reason.UNSUPPORTED_MODE),
        OddPicture("thumbnail_first.tif", with_pages((RGB[::4, ::4], 1), (RGB, 0)), reason=Reason.UNSUPPORTED_MODE),
        OddPicture("thumbnail_last.tif", with_pages((RGB, 0), (RGB[::4, ::4], 1)), pixels=RGB),
        OddPicture("thumbnail_alone.tif", with_pages((RGB, 1)), pixels=RGB),
        OddPicture("complex.tif", with_tifffile(GRAY.astype(np.complex64)), reason=Reason.UNSUPPORTED_MODE),
    ]  # fmt: skip


def with_pages(*pages: tuple[NDArray[np.generic], int]) -> bytes:
    """Encode pages with tifffile: their pixels, and what kind of page each is (1: at reduced size)."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for pixels, kind in pages:
            writer.write(pixels, photometric="rgb", subfiletype=kind)
    return buffer.getvalue()


def with_tifffile(pixels: NDArray[np.generic], **options: object) -> bytes:
    """Encode with tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()
