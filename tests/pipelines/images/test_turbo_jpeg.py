"""JPEG through simplejpeg: in every case what Pillow makes of it, be that pixels or a reason."""

from __future__ import annotations

import io
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image as PilImage

from pipelines.images import turbo_jpeg
from pipelines.images.decode import DecodeError, DecodeLimits, decode_image
from pipelines.images.headers.jpeg_markers import jpeg_head
from pipelines.images.opening import open_image
from pipelines.types import ImageRef

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")

REF = ImageRef(image_id="a", uri="/a")
LIMITS = DecodeLimits(max_image_pixels=1_000_000)
SIZES_WH = ((1, 1), (2, 5), (9, 1), (1, 17), (33, 31), (130, 71))


class Counted:
    """simplejpeg's decoder, and how many files it decoded."""

    def __init__(self) -> None:
        self.decode = turbo_jpeg._decoder()
        self.num_decoded = 0
        assert self.decode is not None, "Pillow's libjpeg gives other bits here"

    def __call__(self, *arguments: Any, **options: Any) -> np.ndarray:
        pixels = self.decode(*arguments, **options)
        self.num_decoded += 1
        return pixels


@pytest.fixture
def turbo() -> Counted:
    return Counted()


@pytest.fixture
def outcomes(turbo: Counted, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """What becomes of a file with simplejpeg and without."""

    def outcome(data: bytes, decoder: Counted | None, enough_px: int | None) -> Any:
        monkeypatch.setattr(turbo_jpeg, "_decoder", lambda: decoder)
        try:
            image = decode_image(data, REF, LIMITS, enough_px=enough_px)
        except DecodeError as error:
            return error.reason, error.message
        assert image.pixels.flags.c_contiguous
        assert image.pixels.flags.writeable
        return image.pixels.shape, image.pixels.tobytes(), image.exif_orientation, image.notes

    return lambda data, enough_px=None: (outcome(data, turbo, enough_px), outcome(data, None, enough_px))


def picture(size_wh: tuple[int, int], seed: int = 0) -> PilImage.Image:
    """Smooth colors with some noise: all coefficients of all components matter."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size_wh[1], : size_wh[0]]
    waves = [127 + 90 * np.sin((x * a + y * b) / 23 + seed) for a, b in ((1, 2), (3, -1), (-2, 3))]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 12, (*x.shape, 3))
    return PilImage.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(image: PilImage.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def common_files() -> Iterator[bytes]:
    """All that simplejpeg decodes."""
    ways = ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"progressive": True, "restart_marker_rows": 1})
    for number, (size, way) in enumerate(itertools.product(SIZES_WH, ways)):
        quality = (1, 30, 75, 90, 100)[number % 5]
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            yield saved(picture(size, number), subsampling=subsampling, quality=quality, **way)
        yield saved(picture(size, number).convert("L"), quality=quality, **way)
        yield saved(picture(size, number), keep_rgb=True, quality=quality, **way)
        for subsampling in ("411", "440"):
            yield simplejpeg.encode_jpeg(np.array(picture(size, number)), quality, "RGB", subsampling)


def test_common_files_have_pillows_pixels_and_are_not_decoded_by_pillow(
    turbo: Counted, outcomes: Callable[..., tuple[Any, Any]]
) -> None:
    for number, data in enumerate(common_files(), start=1):
        with_turbo, without = outcomes(data)
        assert with_turbo == without
        assert turbo.num_decoded == number


def test_every_orientation_is_applied(turbo: Counted, outcomes: Callable[..., tuple[Any, Any]]) -> None:
    """Larger than the blocks in which pixels are turned, and no multiple of them."""
    for orientation in range(1, 9):
        exif = PilImage.Exif()
        exif[0x0112] = orientation
        data = saved(picture((150, 270)), exif=exif)
        with_turbo, without = outcomes(data)
        assert with_turbo == without
        rgb = np.array(PilImage.open(io.BytesIO(data)))
        turned = {1: rgb, 3: rgb[::-1, ::-1], 6: np.rot90(rgb, 3), 8: np.rot90(rgb)}.get(orientation)
        assert turned is None or with_turbo[1] == turned.tobytes()
    assert turbo.num_decoded == 8


def test_a_smaller_scale_has_pillows_pixels(turbo: Counted, outcomes: Callable[..., tuple[Any, Any]]) -> None:
    sizes = [*SIZES_WH, (3, 3), (200, 150), (65, 64)]
    for size, enough_px, gray in itertools.product(sizes, (1, 3, 8, 20), (False, True)):
        with_turbo, without = outcomes(saved(picture(size).convert("L" if gray else "RGB")), enough_px)
        assert with_turbo == without
    assert turbo.num_decoded > len(sizes)


def test_what_simplejpeg_would_color_otherwise_is_left_to_pillow(
    turbo: Counted, outcomes: Callable[..., tuple[Any, Any]]
) -> None:
    cmyk = saved(picture((40, 30)).convert("CMYK"))
    for data in (cmyk, cmyk.replace(b"Adobe", b"adobe")):
        with_turbo, without = outcomes(data)
        assert with_turbo == without
    assert turbo.num_decoded == 0


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one of the damages that files have."""
    place, length = (int(one) for one in (rng.integers(2, len(data)), rng.integers(1, 40)))
    start, end = data[:place], data[place:]
    match rng.integers(8):
        case 0:
            return start
        case 1:
            return start + bytes(len(end))
        case 2:
            return start + bytes([end[0] ^ 1 << int(rng.integers(8))]) + end[1:]
        case 3:
            return start + end[length:]
        case 4:
            return start + rng.bytes(length) + end
        case 5:
            return start + data[int(rng.integers(2, place + 1)) :][:200] + end
        case 6:
            return data + rng.bytes(length)
        case _:  # among the headers
            place = int(rng.integers(2, min(600, len(data))))
            return data[:place] + rng.bytes(1) + data[place + 1 :]


def test_a_damaged_file_has_pillows_pixels_or_pillows_reason(
    turbo: Counted, outcomes: Callable[..., tuple[Any, Any]]
) -> None:
    files = [data for data in common_files() if 400 < len(data) < 4000]
    rng = np.random.default_rng(5)
    reasons = set()
    for number in range(240):
        with_turbo, without = outcomes(damaged(files[number % len(files)], rng))
        assert with_turbo == without, number
        reasons |= {str(without[0])} if len(without) == 2 else set()
    assert {"truncated", "corrupt"} <= reasons
    assert 30 < turbo.num_decoded < 200, "some are as good as whole, others are not"


def test_other_threads_run_while_a_jpeg_is_decoded(turbo: Counted) -> None:
    data = saved(picture((300, 300)))
    image, head, turn, has_run = open_image(data).image, jpeg_head(data), threading.Lock(), []

    def run() -> None:
        with turn:
            has_run.append(True)

    interval = sys.getswitchinterval()
    with turn:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        sys.setswitchinterval(1000)  # from here on the thread runs only if it is let
    try:
        for _ in range(1000):
            turbo_jpeg.decoded_jpeg(image, head, data, 1)
            if has_run:
                break
        assert has_run
    finally:
        sys.setswitchinterval(interval)
    thread.join()


def test_without_simplejpeg_pillow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert turbo_jpeg._decoder.__wrapped__() is None


def test_a_simplejpeg_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *data: exact(*data, fastupsample=True))
    assert turbo_jpeg._decoder.__wrapped__() is None
