"""From an opened image to upright RGB pixels, with notes on what had to be decided on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.images.decode_error import DecodeError
from pipelines.images.deep_values import VALUE_MODES, is_deep_color, values_of
from pipelines.images.headers import tiff_tags
from pipelines.images.headers.jpeg_markers import JpegHead
from pipelines.images.headers.png_chunks import png_has_end
from pipelines.images.opening import Opened, as_raw_mode
from pipelines.images.orientation import orientation_of, turns_in_xmp, upright, write_upright
from pipelines.images.other_decoders import OtherImage
from pipelines.images.turbo_jpeg import decoded_jpeg
from pipelines.images.value_range import Stretch, Values, is_like_opacity, range_of, write_rgb
from pipelines.types import PixelNote, Reason

# Pillow's modes of 8-bit samples. CIELAB is left out.
_RGB_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
# Pixels are converted in bands of rows: converting takes some 14 bytes a pixel, which bands keep from adding up.
BAND_PIXELS = 2**19


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """Decoded pixels.

    Attributes:
        rgb: uint8 (height, width, 3), upright.
        orientation: EXIF orientation as found, 1 to 8.
        notes: what had to be decided.
    """

    rgb: NDArray[np.uint8]
    orientation: int = 1
    notes: tuple[PixelNote, ...] = ()


def load(opened: Opened, data: bytes, stretch: Stretch) -> Pixels:
    """Decode an opened image.

    Args:
        opened: its pixels not yet decoded.
        data: the file; nothing if no other decoder shall be tried where Pillow can read it.
        stretch: how values become 8 bits where the file does not say.

    Raises:
        DecodeError: UNSUPPORTED_MODE.
        Exception: one of `PIL_ERRORS`.
    """
    image = opened.image
    if isinstance(image, OtherImage):
        return _from_values(image.load(), image.orientation, stretch, image.tags)
    if image.mode not in _RGB_MODES | VALUE_MODES:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"pixels of mode {image.mode} have no agreed 8 bit range")
    if opened.head is not None and (pixels := _from_jpeg(image, opened.head, data)) is not None:
        return pixels
    is_deep, is_tiff = is_deep_color(image), isinstance(image, TiffImageFile)
    _assume_no_inversion(image, opened.head)
    # A PNG may keep its EXIF behind the pixels, so it is read after loading; loading a TIFF turns it upright and
    # drops the tag, so there it is read before.
    found, has_turn = orientation_of(image) if is_tiff else 1, turns_in_xmp(image)
    if is_tiff:
        image.info.pop("xmp", None)  # or Pillow would turn it by that
    image.load()
    left = orientation_of(image)
    orientation = found if is_tiff else left
    notes: list[PixelNote] = []
    if orientation == 1 and (has_turn or turns_in_xmp(image)):
        notes.append(PixelNote.XMP_ORIENTATION_IGNORED)
    if isinstance(image, PngImageFile) and not png_has_end(data):
        notes.append(PixelNote.NO_END_MARKER)
    if (values := values_of(image, data, is_deep=is_deep)) is not None:
        pixels = _from_values(values, left, stretch, image.tag_v2 if isinstance(image, TiffImageFile) else {})
    elif isinstance(image, TiffImageFile):
        pixels = _from_tiff_colors(image, data, left)
    else:
        is_opaque = _is_invisible(image)
        notes += [PixelNote.ALPHA_LEFT_OUT] * is_opaque
        pixels = Pixels(rgb=_from_colors(image, left, is_opaque=is_opaque))
    return replace(pixels, orientation=orientation, notes=(*notes, *pixels.notes))


def _from_jpeg(image: ImageFile, head: JpegHead, data: bytes) -> Pixels | None:
    """Decode a JPEG without Pillow; None if it is left to Pillow."""
    orientation = orientation_of(image)
    rgb = decoded_jpeg(image, head, data, orientation) if data else None
    if rgb is None:
        return None
    is_ignored = orientation == 1 and turns_in_xmp(image)
    return Pixels(rgb=rgb, orientation=orientation, notes=(PixelNote.XMP_ORIENTATION_IGNORED,) * is_ignored)


def _assume_no_inversion(image: ImageFile, head: JpegHead | None) -> None:
    """Have a CMYK JPEG without Adobe's marker read as it is: Pillow takes all for Adobe's, which are inverted."""
    if head is not None and image.mode == "CMYK" and not head.has_adobe_marker:
        image.tile = [tile._replace(args=("CMYK", "")) for tile in image.tile]


def _from_values(values: Values, orientation: int, stretch: Stretch, tags: Mapping[int, Any]) -> Pixels:
    notes: list[PixelNote] = []
    if values.alpha is not None and tags:  # elsewhere than in TIFF, opacity is opacity
        is_named = tiff_tags.named_opacity(tags, values.alpha)
        if is_named is False or (is_named is None and not is_like_opacity(values)):
            values = replace(values, alpha=None)
            notes.append(PixelNote.ALPHA_LEFT_OUT)
    if values.num_samples > len(values.colors) + (values.alpha is not None) + len(notes):
        notes.append(PixelNote.BANDS_LEFT_OUT)
    within = range_of(values, stretch)
    rgb, as_stored = upright(values.size, orientation)
    write_rgb(values, within, as_stored)
    return Pixels(rgb=rgb, orientation=orientation, notes=(*notes, *([within.note] if within.note else [])))


def _from_tiff_colors(image: TiffImageFile, data: bytes, orientation: int) -> Pixels:
    """Convert a TIFF of 8-bit samples, or of the high bytes of deeper ones."""
    tags, notes = image.tag_v2, list[PixelNote]()
    shown: PilImage.Image = image
    num_samples = int(tags.get(tiff_tags.SAMPLES_PER_PIXEL, 1))
    if (alpha := _alpha_channel(image)) is not None:
        counts = np.array(alpha.histogram())
        is_named = tiff_tags.named_opacity(tags, num_samples - 1)
        is_opacity = 2 * (counts[0] + counts[255]) >= counts.sum() and counts[0] < counts.sum()
        if is_named is False or (is_named is None and not is_opacity):
            notes.append(PixelNote.ALPHA_LEFT_OUT)
            shown = _without_alpha(image, data)
            num_samples -= 1
    elif num_samples > len(image.getbands()):
        notes.append(PixelNote.BANDS_LEFT_OUT)
    if image.mode in ("P", "PA") and (colors := tags.get(tiff_tags.COLOR_MAP)) and max(colors) < 256:
        # Written as 8-bit colors where the format wants 16 bits: the table would be black.
        shown.putpalette(np.array(colors, np.uint8).reshape(3, -1).T.tobytes())
    return Pixels(rgb=_from_colors(shown, orientation), orientation=orientation, notes=tuple(notes))


def _alpha_channel(image: PilImage.Image) -> PilImage.Image | None:
    has_one = image.mode in ("RGBA", "LA", "La", "PA")
    return image.getchannel(len(image.getbands()) - 1) if has_one else None


def _without_alpha(image: TiffImageFile, data: bytes) -> PilImage.Image:
    """Return the colors as stored, of a TIFF whose last band is tagged as opacity and is something else."""
    if tiff_tags.has_premultiplied_colors(image.tag_v2) and image.mode == "RGBA":
        # Pillow has divided the colors by the band.
        return as_raw_mode(data, lambda raw: raw.replace("RGBa", "RGBA")).convert("RGB")
    if image.mode == "La":
        return image.getchannel("L")
    return image.convert("P" if image.mode == "PA" else image.mode.removesuffix("A"))


def _is_invisible(image: PilImage.Image) -> bool:
    """Return whether opacity is 0 everywhere: written by who did not mean it, for nobody keeps a picture of nothing."""
    if image.mode not in ("RGBA", "LA", "PA"):
        return False
    bands = (image.crop((0, top, image.width, bottom)) for top, bottom in _bands(image.size))
    return all(band.getchannel("A").getextrema() == (0, 0) for band in bands)


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield first and last rows of parts of a picture: what is done in parts takes no memory of all pixels."""
    width, height = size
    rows = max(1, BAND_PIXELS // width)
    for top in range(0, height, rows):
        yield top, min(height, top + rows)


def _from_colors(image: PilImage.Image, orientation: int, *, is_opaque: bool = False) -> NDArray[np.uint8]:
    rgb, as_stored = upright(image.size, orientation)
    for top, bottom in _bands(image.size):
        band = image.crop((0, top, image.width, bottom))
        if image.has_transparency_data and not is_opaque:
            band = _over_white(band)
        write_upright(np.asarray(band if band.mode == "RGB" else band.convert("RGB")), as_stored[top:bottom])
    return rgb


def _over_white(image: PilImage.Image) -> PilImage.Image:
    # Pillow converts La (premultiplied alpha) to nothing but LA.
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    canvas = PilImage.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas
