"""Draw a report's pictures: fetch images in parallel, decode each once, shrink it, draw its masks, make data URIs.

An image that cannot be shown becomes a placeholder with the reason; it never makes the report fail.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from pipelines.images.decode import DecodeError, DecodeLimits, decode_image, peek_size
from pipelines.masks import rle
from pipelines.masks.drawing import LabeledMask, Rgb, draw_masks
from pipelines.redaction import redacted
from pipelines.report.samples import Card, ImageRow, Mask
from pipelines.sources.fetch import FetchError, fetch
from pipelines.types import ImageRef

_OVERSAMPLING = 2  # masks are drawn at twice the size, so that their edges are smooth
# Larger images are decoded one at a time: several at once could take gigabytes.
_LARGE_PIXELS = 20_000_000
_QUALITY = 76
_SMALL_SHARE = 0.002  # masks with a smaller share of the picture get a ring around them
_RING_PX = 7
_LINE_PX = 2  # thinner outlines do not tell masks of like colors apart

_one_large_image = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How the images of a run are fetched: its storage options, and whether http:// and https:// are allowed."""

    options: Mapping[str, Any] = field(default_factory=dict)
    allow_http: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureConfig:
    """How pictures are made.

    Attributes:
        side_px: length of a picture's longer side, pixels.
        threads: number of images fetched in parallel.
        timeout_s: seconds for fetching one image.
        limits: larger images are not shown.
    """

    side_px: int = 320
    threads: int = 8
    timeout_s: float = 20.0
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A card's picture, or the reason why there is none.

    Attributes:
        uri: the picture as a data URI; None if there is none.
        width, height: its size in pixels.
        missing: why there is no picture, or why its masks are not drawn.
    """

    uri: str | None = None
    width: int = 0
    height: int = 0
    missing: str | None = None


def draw_cards(
    cards: Sequence[Card],
    access: Mapping[str, Access],
    color_of: Callable[[Card, Mask], Rgb],
    config: PictureConfig,
    on_image: Callable[[int, int], None] = lambda *_: None,
) -> list[Picture]:
    """Draw cards; each image is read once, no matter how many cards show it.

    Args:
        cards: the cards.
        access: how to fetch images, by run_id.
        color_of: returns the color of a mask on a card.
        config: sizes and limits.
        on_image: called with the number of images done and their total.

    Returns:
        One picture for each card, in order.
    """
    places: dict[str, list[int]] = {}
    for place, card in enumerate(cards):
        places.setdefault(card.image.image_id, []).append(place)
    pictures = [Picture(missing="not read")] * len(cards)

    def draw(numbers: Sequence[int]) -> list[Picture]:
        image = cards[numbers[0]].image
        how = access.get(image.run_id, Access())
        return _draw_image([cards[number] for number in numbers], how, color_of, config)

    with ThreadPoolExecutor(config.threads) as readers:
        done = zip(places.values(), readers.map(draw, places.values()), strict=True)
        for number_done, (numbers, drawn) in enumerate(done, start=1):
            for number, picture in zip(numbers, drawn, strict=True):
                pictures[number] = picture
            on_image(number_done, len(places))
    return pictures


def _draw_image(
    cards: Sequence[Card], access: Access, color_of: Callable[[Card, Mask], Rgb], config: PictureConfig
) -> list[Picture]:
    """Draw all cards of one image."""
    try:
        small, changed = _read_small(cards[0].image, access, config)
        return [_draw(card, small, color_of, config.side_px, changed) for card in cards]
    except FetchError as error:
        missing = f"{error.reason.value}: {error}"
    except DecodeError as error:
        missing = str(error)
    except rle.RleError as error:
        missing = f"a mask cannot be decoded: {error}; verify names what is damaged"
    except Exception as error:  # noqa: BLE001  (whatever one image brings, the page is made)
        missing = redacted(f"{type(error).__name__}: {error}")
    return [Picture(missing=missing)] * len(cards)


def _read_small(row: ImageRow, access: Access, config: PictureConfig) -> tuple[PILImage.Image, bool]:
    """Read an image at the size for drawing, and return whether it has changed since it was labeled."""
    ref = ImageRef(image_id=row.image_id, uri=row.uri)  # without the listed size, which may have changed
    data = fetch(
        ref,
        options=access.options,
        max_bytes=config.limits.max_image_bytes,
        timeout_s=config.timeout_s,
        allow_http=access.allow_http,
    )
    side = config.side_px * _OVERSAMPLING
    width, height = peek_size(data)
    with _one_large_image if width * height > _LARGE_PIXELS else nullcontext():
        image = decode_image(data, ref, config.limits, enough_px=side)
        small = PILImage.fromarray(image.pixels)
        small.thumbnail((side, side), PILImage.Resampling.BOX, reducing_gap=2.0)
    has_other_bytes = row.content_sha256 is not None and image.content_sha256 != row.content_sha256
    # Sorted, because the header gives the size before EXIF orientation, and the row the size after it.
    has_other_size = row.width is not None and sorted((row.width, row.height or 0)) != sorted((width, height))
    return small, has_other_bytes or has_other_size


def _draw(
    card: Card, small: PILImage.Image, color_of: Callable[[Card, Mask], Rgb], side: int, changed: bool
) -> Picture:
    picture, missing = small, None
    if changed:
        missing = "the image has changed since it was labeled" + (": its masks are not drawn" if card.masks else "")
    if card.masks and not changed:
        size_hw = (small.height, small.width)
        masks = [
            LabeledMask(
                segmentation=rle.scaled(mask.segmentation, size_hw),
                name=mask.category,
                score=mask.score,
                color=color_of(card, mask),
            )
            for mask in reversed(card.masks)
        ]
        picture = draw_masks(np.asarray(small), masks, line_px=_LINE_PX * _OVERSAMPLING)
        _ring_small(picture, card, color_of)
    else:
        # thumbnail works in place, and other cards share this image.
        picture = small.copy()
    picture.thumbnail((side, side), PILImage.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=4)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(uri=f"data:image/webp;base64,{data}", width=picture.width, height=picture.height, missing=missing)


def _ring_small(picture: PILImage.Image, card: Card, color_of: Callable[[Card, Mask], Rgb]) -> None:
    """Draw a ring around small masks, which would otherwise be overlooked."""
    draw = ImageDraw.Draw(picture)
    for mask in card.masks:
        height, width = mask.segmentation.size_hw
        x, y, w, h = mask.bbox_xywh
        if w * h >= _SMALL_SHARE * width * height:
            continue
        across, down = picture.width / width, picture.height / height
        left, top, right, bottom = x * across, y * down, (x + w) * across, (y + h) * down
        box = (left - _RING_PX, top - _RING_PX, right + _RING_PX, bottom + _RING_PX)
        draw.ellipse(box, outline=color_of(card, mask), width=3)
