"""Valid pictures beyond Pillow, read by tifffile and imagecodecs where they are installed (the extra ``pictures``)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.images.decode_error import DecodeError
from pipelines.images.headers import tiff_tags
from pipelines.images.headers.jpeg_markers import JpegHead
from pipelines.images.headers.jxl_header import jxl_header
from pipelines.images.value_range import Values
from pipelines.types import Reason

_INSTALL = "pip install 'xsam-label[pictures]' for it to be read"
MAX_BYTES_PER_PIXEL = 16
"""All samples of a picture are held at once: they may take so many bytes of each of `max_image_pixels`, at most."""

_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
_MINISBLACK_KINDS = (0, 1, 2)  # white is zero, black is zero, RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherImage:
    """A picture that another decoder reads.

    Attributes:
        size: (width, height) in pixels, as stored.
        num_bytes: bytes of its samples.
        num_samples: samples of each pixel.
        tags: of a TIFF, what its tags say, by number.
        load: decodes it.
    """

    size: tuple[int, int]
    num_bytes: int
    num_samples: int
    load: Callable[[], Values]
    tags: Mapping[int, Any] = field(default_factory=dict)

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8."""
        found = self.tags.get(tiff_tags.ORIENTATION, 1)
        return int(found) if found in range(1, 9) else 1


def other_jpeg(data: bytes, head: JpegHead) -> OtherImage:
    """Open a JPEG that is no 8-bit DCT one: 12-bit, lossless, JPEG-LS.

    Raises:
        DecodeError: UNSUPPORTED_MODE if no decoder is installed, or none knows it.
    """
    kind = {_LOSSLESS: "lossless JPEG", _JPEG_LS: "JPEG-LS"}.get(head.frame, f"JPEG of frame type 0x{head.frame:02X}")
    what = f"{kind} of {head.num_components} components of {head.bits} bits"
    if head.num_components not in (1, 3) or not head.height:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"{what} and {head.height} rows: no decoder reads it")
    try:
        import imagecodecs
    except ImportError as error:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"{what} is beyond Pillow: {_INSTALL}") from error
    decode = imagecodecs.jpegls_decode if head.frame == _JPEG_LS else imagecodecs.jpeg_decode

    def load() -> Values:
        try:
            samples = decode(data)
        except Exception as error:
            raise DecodeError(Reason.UNSUPPORTED_MODE, f"{what}: {type(error).__name__}: {error}") from error
        return _values(samples.reshape(head.height, head.width, -1), bits=head.bits)

    size = (head.width, head.height)
    num_bytes = head.width * head.height * head.num_components * (1 if head.bits <= 8 else 2)
    return OtherImage(size=size, num_bytes=num_bytes, num_samples=head.num_components, load=load)


def jpeg_xl(data: bytes) -> OtherImage:
    """Open a JPEG XL file; of an animation its first picture is meant.

    Raises:
        DecodeError: UNSUPPORTED_MODE if the decoder is not installed, or there are channels beside colors and opacity;
            TRUNCATED or CORRUPT if the file is damaged.
    """
    try:
        header = jxl_header(data)
    except ValueError as error:
        raise DecodeError(Reason.CORRUPT, f"JPEG XL: {error}") from error
    try:
        import imagecodecs
    except ImportError as error:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"JPEG XL: {_INSTALL}") from error
    # Each may be as large as a picture, and there may be thousands of them.
    if header.num_extra_channels > 1:
        what = f"JPEG XL: {header.num_extra_channels} channels beside the colors"
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"{what}: no decoder here reads them")

    def load() -> Values:
        try:
            samples = imagecodecs.jpegxl_decode(data, index=0, numthreads=1)
        except Exception as error:
            is_short = "INPUT" in str(error)  # the decoder needs more of it
            reason = Reason.TRUNCATED if is_short else Reason.CORRUPT
            raise DecodeError(reason, f"JPEG XL: {type(error).__name__}: {error}") from error
        samples = samples.reshape(*samples.shape[:2], -1)
        has_alpha = samples.shape[2] in (2, 4)
        return _values(samples, bits=header.bits, alpha=samples.shape[2] - 1 if has_alpha else None)

    # The decoder computes with numbers of 4 bytes, whatever it returns.
    num_bytes = header.size[0] * header.size[1] * 4 * 4
    return OtherImage(size=header.size, num_bytes=num_bytes, num_samples=4, load=load)


def other_tiff(data: bytes, why: str) -> OtherImage:
    """Open a TIFF whose kind of samples or compression Pillow does not know.

    Args:
        data: the file.
        why: what Pillow says of it.

    Raises:
        DecodeError: UNSUPPORTED_MODE if no decoder is installed, or none knows it; CORRUPT if it is damaged.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"TIFF: {why}: beyond Pillow: {_INSTALL}") from error
    try:
        file = tifffile.TiffFile(io.BytesIO(data))
        page: Any = file.pages.first
        tags = {tag: page.tags[tag].value for tag in tiff_tags.TAGS if tag in page.tags}
        size, num_samples, dtype = (int(page.imagewidth), int(page.imagelength)), int(page.samplesperpixel), page.dtype
        photometric = tiff_tags.photometric(tags)
    except Exception as error:
        raise DecodeError(Reason.CORRUPT, f"TIFF: {type(error).__name__}: {error}") from error
    if dtype is None or dtype.kind not in "uif" or photometric not in _MINISBLACK_KINDS or page.imagedepth != 1:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"TIFF: {why}: no decoder reads it")

    def load() -> Values:
        try:
            samples = page.asarray()
        except Exception as error:
            # A codec that is not there, or one that finds its data damaged: their exceptions have no common base.
            is_unknown = "codec" in str(error) or isinstance(error, ImportError)
            reason = Reason.UNSUPPORTED_MODE if is_unknown else Reason.CORRUPT
            raise DecodeError(reason, f"TIFF: {type(error).__name__}: {error}") from error
        if page.planarconfig == tiff_tags.PLANES and num_samples > 1:
            samples = np.moveaxis(samples.reshape(num_samples, size[1], size[0]), 0, -1)
        return _tiff_values(samples.reshape(size[1], size[0], num_samples), tags)

    return OtherImage(
        size=size,
        num_bytes=size[0] * size[1] * num_samples * dtype.itemsize,
        num_samples=num_samples,
        load=load,
        tags=tags,
    )


def _tiff_values(samples: NDArray[Any], tags: dict[int, Any]) -> Values:
    """Return the samples of a TIFF, (height, width, samples), with what its tags say of them."""
    num_samples = samples.shape[2]
    colors = tiff_tags.color_bands(tags, num_samples)
    blank = tiff_tags.no_data(tags)
    return _values(
        samples,
        colors=colors,
        alpha=tiff_tags.alpha_band(tags, num_samples),
        bits=tiff_tags.bits_of(tags),
        limits=tiff_tags.stated_limits(tags),
        blank=None if blank is None else (blank,) * len(colors),
        is_white_zero=tiff_tags.is_white_zero(tags),
    )


def _values(samples: NDArray[Any], **facts: Any) -> Values:
    height, width, num_samples = samples.shape
    facts.setdefault("colors", (0, 1, 2) if num_samples >= 3 else (0,))
    return Values(
        size=(width, height),
        dtype=samples.dtype,
        rows=lambda top, bottom: samples[top:bottom],
        num_samples=num_samples,
        **facts,
    )
