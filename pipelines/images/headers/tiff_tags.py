"""What a TIFF's tags say of its samples: which are colors, which is opacity, which value is black and which white."""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Rational
from typing import Any

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 338, 339
COLOR_MAP, PLANAR_CONFIGURATION, ORIENTATION = 320, 284, 274
MAX_SAMPLE_VALUE, SMALLEST_VALUE, LARGEST_VALUE, GDAL_METADATA, GDAL_NODATA = 281, 340, 341, 42112, 42113
PLANES = 2
"""The planar configuration of a file that holds one sample of all pixels after the other."""
TAGS = (
    BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL, EXTRA_SAMPLES, SAMPLE_FORMAT,
    MAX_SAMPLE_VALUE, SMALLEST_VALUE, LARGEST_VALUE, GDAL_METADATA, GDAL_NODATA, ORIENTATION,
)  # fmt: skip

_WHITE_IS_ZERO = 0
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_UNSIGNED = 1
_DEPTHS = (8, 10, 12, 14, 16)
# GDAL writes what a band is, in words, as items of an XML document.
_BAND_ITEM = re.compile(
    r'<Item name="(?:COLORINTERP|DESCRIPTION)" sample="(\d+)" role="(?:colorinterp|description)"[^>]*>([^<]*)<'
)
_OPACITY = re.compile(r"alpha|opacity|transparency|mask")
_NO_COLOR = re.compile(r"\bnir\b|infra|swir|thermal|red.?edge|depth|height|elevation|\bds?[em]m\b|panchromatic")


def _all(tags: Mapping[int, Any], tag: int, default: tuple[int, ...] = ()) -> tuple[Any, ...]:
    """Return the numbers of a tag; the default if it has none, as in a damaged file, where it may be text."""
    value = tags.get(tag, default)
    values = value if isinstance(value, tuple | list) else (value,)
    return tuple(one for one in values if isinstance(one, int | float | Rational)) or default


def photometric(tags: Mapping[int, Any]) -> int:
    """Return how samples are to be understood: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, ..."""
    return int(_all(tags, PHOTOMETRIC, (1,))[0])


def is_white_zero(tags: Mapping[int, Any]) -> bool:
    """Return whether small values are bright."""
    return photometric(tags) == _WHITE_IS_ZERO


def bits_of(tags: Mapping[int, Any]) -> int:
    """Return the bits of a sample."""
    return int(max(_all(tags, BITS_PER_SAMPLE, (1,))))


def is_signed(tags: Mapping[int, Any]) -> bool:
    """Return whether samples are signed integers."""
    return bool(_all(tags, SAMPLE_FORMAT, (_UNSIGNED,))[0] == 2)


def band_names(tags: Mapping[int, Any]) -> dict[int, str]:
    """Return what GDAL says of each band: its number from 0, and its color interpretation or description, lower case.

    A description says more than a color interpretation of "undefined", or than one of "alpha", GDAL's default.
    """
    names: dict[int, str] = {}
    text = tags.get(GDAL_METADATA, "")
    for number, name in _BAND_ITEM.findall(text if isinstance(text, str) else ""):
        names[int(number)] = f"{names.get(int(number), '')} {name.strip().lower()}".strip()
    return names


def color_bands(tags: Mapping[int, Any], num_samples: int) -> tuple[int, ...]:
    """Return the positions of red, green and blue, or of the one band that is shown as gray.

    By the names that GDAL gives them; otherwise the first three, as geographic programs show them, too.
    """
    places = {name: place for place, name in band_names(tags).items() if place < num_samples}
    if all(color in places for color in ("red", "green", "blue")):
        return places["red"], places["green"], places["blue"]
    return (0, 1, 2) if num_samples >= 3 else (0,)


def alpha_band(tags: Mapping[int, Any], num_samples: int) -> int | None:
    """Return the position of the band that is tagged as opacity, None if none is."""
    extra = _all(tags, EXTRA_SAMPLES)
    kinds = enumerate(extra, num_samples - len(extra))
    tagged = [place for place, kind in kinds if kind in (_ASSOCIATED_ALPHA, _ALPHA)]
    return tagged[0] if tagged and 0 < tagged[0] < num_samples else None


def has_premultiplied_colors(tags: Mapping[int, Any]) -> bool:
    """Return whether colors are tagged as multiplied by the opacity."""
    return _ASSOCIATED_ALPHA in _all(tags, EXTRA_SAMPLES)


def named_opacity(tags: Mapping[int, Any], band: int) -> bool | None:
    """Return whether a band's name says that it is opacity (True) or something else (False), None if neither."""
    name = band_names(tags).get(band, "")
    if _NO_COLOR.search(name) or name in ("undefined", "gray"):
        return False
    return True if _OPACITY.search(name) else None


def stated_limits(tags: Mapping[int, Any]) -> tuple[float, float] | None:
    """Return the values of black and white that tags state; None if they state none.

    SMinSampleValue and SMaxSampleValue are taken as they are. MaxSampleValue is a statistic, not meant for showing the
    picture, so it only tells how many bits of 16 are used.
    """
    try:
        smallest, largest = min(_all(tags, SMALLEST_VALUE)), max(_all(tags, LARGEST_VALUE))
        if float(smallest) < float(largest):
            return float(smallest), float(largest)
    except (TypeError, ValueError):
        pass
    try:
        most = int(max(_all(tags, MAX_SAMPLE_VALUE)))
    except (TypeError, ValueError):
        return None
    if bits_of(tags) != 16 or _all(tags, SAMPLE_FORMAT, (_UNSIGNED,))[0] != _UNSIGNED or not 0 < most < 2**14:
        return None
    return 0.0, float(2 ** next(bits for bits in _DEPTHS if most < 2**bits) - 1)


def no_data(tags: Mapping[int, Any]) -> float | None:
    """Return the value of pixels that have none, as GDAL states it; None if it states none."""
    try:
        return float(str(tags[GDAL_NODATA]).strip("\0 "))
    except (KeyError, ValueError):
        return None
