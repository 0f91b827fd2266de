from __future__ import annotations

import hashlib
import io
import pickle
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from pipelines.images.decode import DecodeError, DecodeLimits, decode_image, peek_size
from pipelines.types import Image, ImageRef, Reason

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")

REF = ImageRef(image_id="a", uri="/a")
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")


def smooth_rgb(height: int = 48, width: int = 64) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=-1).astype(np.uint8)


def encoded(image: PilImage.Image | np.ndarray, file_format: str, **options: object) -> bytes:
    picture = PilImage.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def gray_tiff(values: np.ndarray, *, bits: int, white_is_zero: bool = False) -> bytes:
    """An uncompressed single-strip gray TIFF, written by hand: Pillow writes neither 12 bit nor inverted ones."""
    height, width = values.shape
    if bits == 12:
        flat = values.ravel().astype(np.uint32)
        pairs = (flat[0::2] << 12) | flat[1::2]
        strip = b"".join(int(pair).to_bytes(3, "big") for pair in pairs)
    else:
        strip = values.astype("<u2").tobytes()
    entries = [
        (256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1),
        (273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, height), (279, len(strip)),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 9) + directory + bytes(4) + strip


def reason_of(data: bytes, limits: DecodeLimits | None = None) -> Reason:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, REF, limits or DecodeLimits())
    return caught.value.reason


def image_or_reason(data: bytes) -> Image | Reason:
    """What decoding comes to; anything else that is raised fails the test."""
    try:
        return decode_image(data, REF, DecodeLimits(max_image_pixels=1_000_000))
    except DecodeError as error:
        return error.reason


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_round_trip_exactly(file_format: str) -> None:
    pixels = smooth_rgb()
    np.testing.assert_array_equal(decode_image(encoded(pixels, file_format), REF).pixels, pixels)


@pytest.mark.parametrize(("file_format", "tolerance"), [("JPEG", 24), ("WEBP", 24), ("GIF", 40)])
def test_lossy_formats_come_close(file_format: str, tolerance: int) -> None:
    pixels = smooth_rgb()
    image = decode_image(encoded(pixels, file_format), REF)
    assert np.abs(image.pixels.astype(int) - pixels).max() <= tolerance


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixels_are_rgb_uint8_hwc_contiguous_and_writable(file_format: str) -> None:
    data = encoded(smooth_rgb(10, 20), file_format)
    image = decode_image(data, REF)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == (10, 20, 3)
    assert image.pixels.flags.c_contiguous
    assert image.pixels.flags.writeable
    assert image.size_hw == (10, 20)
    assert peek_size(data) == (20, 10)


def test_facts_of_the_bytes_are_recorded() -> None:
    data = encoded(smooth_rgb(), "JPEG")
    image = decode_image(data, REF)
    assert image.ref is REF
    assert image.num_bytes == len(data)
    assert image.content_sha256 == hashlib.sha256(data).hexdigest()
    assert 0 < image.decode_ms < 10_000


# A red, green / blue, white picture as a camera held in each of the eight ways would store it.
UPRIGHT = np.array([[[255, 0, 0], [0, 255, 0], [9, 9, 9]], [[0, 0, 255], [255, 255, 255], [99, 99, 99]]], np.uint8)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_adobe_deflate"})],
)
def test_exif_orientation_is_applied_once_and_recorded(file_format: str, options: dict, orientation: int) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation]), file_format, exif=exif, **options)
    image = decode_image(data, REF)
    assert image.exif_orientation == orientation
    np.testing.assert_array_equal(image.pixels, UPRIGHT)


def test_exif_orientation_of_a_jpeg_turns_a_portrait_upright() -> None:
    exif = PilImage.Exif()
    exif[0x0112] = 6
    upright = smooth_rgb(64, 48)
    image = decode_image(encoded(np.ascontiguousarray(np.rot90(upright)), "JPEG", exif=exif, quality=95), REF)
    assert image.size_hw == (64, 48)
    assert np.abs(image.pixels.astype(int) - upright).max() < 24


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_exif_orientation_outside_one_to_eight_is_ignored(value: int) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = value
    image = decode_image(encoded(UPRIGHT, "PNG", exif=exif), REF)
    assert image.exif_orientation == 1
    np.testing.assert_array_equal(image.pixels, UPRIGHT)


def test_broken_exif_does_not_lose_the_picture() -> None:
    data = encoded(smooth_rgb(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff broken")
    assert decode_image(data, REF).exif_orientation == 1


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    gray = np.array([[0, 128, 257, 25_700, 32_768, 65_535]], np.uint16)
    expected = [0, 0, 1, 100, 128, 255]
    for file_format in ("PNG", "TIFF"):
        pixels = decode_image(encoded(gray, file_format), REF).pixels
        assert pixels[0, :, 0].tolist() == expected, file_format
        assert (pixels == pixels[:, :, :1]).all()


def test_16_bit_gray_inverts_every_8_bit_value_times_257() -> None:
    gray8 = np.arange(256, dtype=np.uint16).reshape(16, 16)
    pixels = decode_image(encoded(gray8 * 257, "PNG"), REF).pixels
    np.testing.assert_array_equal(pixels[..., 0], gray8)


def test_12_bit_gray_tiff_fills_the_range() -> None:
    data = gray_tiff(np.array([[0, 2048, 4095, 1000]]), bits=12)
    assert decode_image(data, REF).pixels[0, :, 0].tolist() == [0, 128, 255, 62]


def test_inverted_16_bit_gray_tiff_is_put_right() -> None:
    data = gray_tiff(np.array([[0, 65_535]]), bits=16, white_is_zero=True)
    assert decode_image(data, REF).pixels[0, :, 0].tolist() == [255, 0]


def test_16_bit_rgb_png_keeps_the_high_byte() -> None:
    rows = b"\0" + struct.pack(">6H", 0, 0x80FF, 0xFFFF, 0x1234, 0x0100, 0x00FF)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert decode_image(data, REF).pixels.tolist() == [[[0, 0x80, 0xFF], [0x12, 1, 0]]]


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("1", "PNG"), ("1", "TIFF"), ("L", "JPEG"), ("P", "PNG"), ("P", "BMP"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")],
)
def test_other_modes_become_the_rgb_that_pillow_makes_of_them(mode: str, file_format: str) -> None:
    picture = PilImage.fromarray(smooth_rgb()).convert(mode)
    data = encoded(picture, file_format)
    expected = np.asarray(PilImage.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, REF).pixels, expected)


def test_cmyk_jpeg_is_not_inverted() -> None:
    red = PilImage.new("RGB", (32, 32), (250, 20, 20)).convert("CMYK")
    pixels = decode_image(encoded(red, "JPEG", quality=95), REF).pixels
    assert np.abs(pixels.astype(int) - (250, 20, 20)).max() < 12


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_white_and_half_transparent_ones_mix(file_format: str) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 128]]
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    pixels = decode_image(encoded(rgba, file_format, **options), REF).pixels
    assert pixels.tolist() == [[[200, 0, 0], [255, 255, 255], [127, 127, 127]]]


def test_gray_with_alpha_shows_white() -> None:
    picture = PilImage.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert decode_image(encoded(picture, "PNG"), REF).pixels[0, :, 0].tolist() == [10, 255]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_transparent_palette_entry_shows_white(file_format: str) -> None:
    picture = PilImage.new("P", (2, 1), 0)
    picture.putpalette([255, 0, 255, 0, 100, 0])
    picture.putpixel((1, 0), 1)
    pixels = decode_image(encoded(picture, file_format, transparency=0), REF).pixels
    assert pixels.tolist() == [[[255, 255, 255], [0, 100, 0]]]


def test_transparent_color_of_an_rgb_png_shows_white() -> None:
    data = encoded(UPRIGHT, "PNG", transparency=(255, 0, 0))
    assert decode_image(data, REF).pixels[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("file_format", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animation_gives_its_first_frame(file_format: str, options: dict) -> None:
    frames = [PilImage.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert (decode_image(data, REF).pixels == (255, 0, 0)).all()


def test_multi_page_tiff_gives_its_first_page() -> None:
    pages = [PilImage.new("RGB", (8, 6), "red"), PilImage.new("RGB", (5, 5), "blue")]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    image = decode_image(data, REF)
    assert image.size_hw == (6, 8)
    assert (image.pixels == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", Reason.ZERO_BYTES, id="empty"),
        pytest.param(b"<html>404 not found</html>", Reason.NOT_AN_IMAGE, id="html"),
        pytest.param(bytes(5000), Reason.NOT_AN_IMAGE, id="zeros"),
        pytest.param(b"\xff", Reason.NOT_AN_IMAGE, id="one-byte"),
        pytest.param(b"RIFF\x10\0\0\0WAVEfmt ", Reason.NOT_AN_IMAGE, id="wav"),
        pytest.param(b"%PDF-1.7 ...", Reason.NOT_AN_IMAGE, id="pdf"),
        pytest.param(b"\xff\xd8\xff\xe0", Reason.TRUNCATED, id="jpeg-header-only"),
        pytest.param(b"\x89PNG\r\n\x1a\n", Reason.TRUNCATED, id="png-signature-only"),
        pytest.param(b"BM", Reason.TRUNCATED, id="bmp-signature-only"),
        pytest.param(b"II*\0", Reason.TRUNCATED, id="tiff-signature-only"),
        pytest.param(b"RIFF\xff\xff\0\0WEBPVP8 ", Reason.TRUNCATED, id="webp-header-only"),
        pytest.param(
            encoded(PilImage.fromarray(smooth_rgb()).convert("LAB"), "TIFF"), Reason.UNSUPPORTED_MODE, id="cielab"
        ),
    ],
)
def test_what_is_no_picture_says_why(data: bytes, reason: Reason) -> None:
    assert reason_of(data) is reason


def test_a_flipped_byte_inside_png_data_is_corrupt() -> None:
    data = bytearray(encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "PNG"))
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    assert reason_of(bytes(data)) is Reason.CORRUPT


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        pytest.param("JPEG", {}, id="jpeg"),
        pytest.param("JPEG", {"progressive": True}, id="progressive-jpeg"),
        pytest.param("JPEG", {"restart_marker_blocks": 2}, id="jpeg-with-restarts"),
        pytest.param("PNG", {}, id="png"),
        pytest.param("WEBP", {}, id="webp"),
        pytest.param("WEBP", {"lossless": True}, id="lossless-webp"),
        pytest.param("TIFF", {}, id="tiff"),
        pytest.param("TIFF", {"compression": "tiff_lzw"}, id="lzw-tiff"),
        pytest.param("BMP", {}, id="bmp"),
        pytest.param("GIF", {}, id="gif"),
    ],
)
def test_a_file_cut_anywhere_is_truncated_or_whole_but_never_half_gray(file_format: str, options: dict) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    data = encoded(noise, file_format, **options)
    whole = decode_image(data, REF).pixels
    for length in sorted({*range(12, len(data), 7), *range(len(data) - 20, len(data))}):
        outcome = image_or_reason(data[:length])
        if isinstance(outcome, Image):
            assert length > len(data) - 40, "only an end marker may be missing"
            np.testing.assert_array_equal(outcome.pixels, whole)
        else:
            assert outcome is Reason.TRUNCATED, length


def test_zeros_in_place_of_the_second_half_of_a_jpeg_are_an_error() -> None:
    data = encoded(smooth_rgb(200, 300), "JPEG")
    assert reason_of(data[: len(data) // 2] + bytes(len(data) - len(data) // 2)) is Reason.TRUNCATED


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    """Each is a few bytes, and a pass over all pixels: at this size the whole file would take ten minutes."""
    progressive = encoded(PilImage.new("L", (4000, 4000), 128), "JPEG", progressive=True)
    last = progressive[progressive.rfind(b"\xff\xda") : -2]
    with pytest.raises(DecodeError, match="it has 30006 scans; at most 100 are decoded") as refused:
        decode_image(progressive[:-2] + last * 30_000 + progressive[-2:], REF)
    assert refused.value.reason == Reason.CORRUPT
    assert decode_image(progressive[:-2] + last * 20 + progressive[-2:], REF).size_hw == (4000, 4000)


def test_too_many_bytes_is_refused_before_decoding() -> None:
    data = encoded(smooth_rgb(), "PNG")
    assert reason_of(data, DecodeLimits(max_image_bytes=len(data) - 1)) is Reason.TOO_MANY_BYTES
    assert decode_image(data, REF, DecodeLimits(max_image_bytes=len(data))).size_hw == (48, 64)


@pytest.mark.parametrize("file_format", FORMATS)
def test_pixel_limit_is_inclusive(file_format: str) -> None:
    data = encoded(smooth_rgb(10, 20), file_format)
    assert reason_of(data, DecodeLimits(max_image_pixels=199)) is Reason.TOO_MANY_PIXELS
    assert decode_image(data, REF, DecodeLimits(max_image_pixels=200)).size_hw == (10, 20)


def bombs() -> list[tuple[str, bytes]]:
    bmp = bytearray(encoded(smooth_rgb(4, 4), "BMP"))
    bmp[18:26] = struct.pack("<ii", 30_000, 30_000)
    jpeg = bytearray(encoded(smooth_rgb(4, 4), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    gif = bytearray(encoded(smooth_rgb(4, 4), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    tiff = bytearray(encoded(smooth_rgb(4, 4), "TIFF"))
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[entry + 8 : entry + 12] = struct.pack("<I", 30_000)
    webp = bytearray(encoded(np.dstack([smooth_rgb(4, 4), np.zeros((4, 4), np.uint8)]), "WEBP", exif=b"Exif\0\0"))
    webp[24:30] = (16_382).to_bytes(3, "little") * 2
    return [("png", png_header(30_000, 30_000)), ("bmp", bytes(bmp)), ("jpeg", bytes(jpeg)), ("gif", bytes(gif)),
            ("tiff", bytes(tiff)), ("webp", bytes(webp))]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), bombs(), ids=[name for name, _ in bombs()])
def test_decompression_bomb_is_refused_fast_from_its_header(name: str, data: bytes) -> None:
    started = time.perf_counter()
    assert reason_of(data) is Reason.TOO_MANY_PIXELS, name
    assert time.perf_counter() - started < 0.5


def test_decompression_bombs_are_refused_in_flat_memory(tmp_path: Path) -> None:
    """In a process of its own: Pillow's memory shows only in the process's peak, which other tests have raised."""
    for name, data in bombs():
        (tmp_path / name).write_bytes(data)
    program = """
import pathlib, resource, sys
from pipelines.images.decode import DecodeError, decode_image
from pipelines.types import ImageRef
files = [path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for data in files:
    try:
        decode_image(data, ImageRef(image_id="", uri=""))
    except DecodeError:
        continue
    sys.exit("a bomb was decoded")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, len(files))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=root, check=True
    )
    grown_mib, num_files = map(int, done.stdout.split())
    assert num_files == 6
    assert grown_mib < 20


@pytest.mark.parametrize("limits", [{"max_image_bytes": 0}, {"max_image_pixels": -1}])
def test_limits_that_nothing_could_pass_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        DecodeLimits(**limits)


def test_decode_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DecodeError(Reason.CORRUPT, "broken")))
    assert (error.reason, error.message, str(error)) == (Reason.CORRUPT, "broken", "corrupt: broken")


def test_decoding_in_many_threads_gives_what_one_thread_gives() -> None:
    files = [encoded(smooth_rgb(40 + i, 60), FORMATS[i % len(FORMATS)]) for i in range(24)]
    alone = [decode_image(data, REF).pixels for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: decode_image(data, REF).pixels, files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


SEEDS = [
    encoded(smooth_rgb(12, 16), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0"),
    encoded(smooth_rgb(12, 16), "JPEG", progressive=True),
    encoded(PilImage.fromarray(smooth_rgb(12, 16)).convert("CMYK"), "JPEG"),
    encoded(smooth_rgb(12, 16), "PNG", transparency=(0, 0, 0)),
    encoded(np.arange(192, dtype=np.uint16).reshape(12, 16), "PNG"),
    encoded(PilImage.fromarray(smooth_rgb(12, 16)).convert("P"), "PNG", transparency=3),
    encoded(smooth_rgb(12, 16), "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    encoded(smooth_rgb(12, 16), "TIFF"),
    encoded(smooth_rgb(12, 16), "TIFF", compression="tiff_lzw"),
    encoded(PilImage.fromarray(smooth_rgb(12, 16)).convert("LA"), "TIFF"),
    encoded(smooth_rgb(12, 16), "BMP"),
    encoded(smooth_rgb(12, 16), "GIF"),
]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["set", "header", "cut", "insert", "delete"])):
            case "set":
                data[at] = draw(st.integers(0, 255))
            case "header":
                data[at % min(len(data), 64)] = draw(st.integers(0, 255))
            case "cut":
                del data[max(at, 8) :]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
        if not data:
            break
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(mutations())
def test_any_mutation_of_a_valid_file_gives_an_image_or_a_decode_error(data: bytes) -> None:
    outcome = image_or_reason(data)
    if isinstance(outcome, Image):
        assert outcome.pixels.dtype == np.uint8
        assert outcome.pixels.shape == (*outcome.size_hw, 3)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"GIF89a", b"BM"]), st.binary(max_size=200)
)
def test_any_bytes_give_an_image_or_a_decode_error(head: bytes, tail: bytes) -> None:
    assert isinstance(image_or_reason(head + tail), (Image, Reason))


def test_a_large_jpeg_can_be_decoded_small() -> None:
    buffer = io.BytesIO()
    PilImage.new("RGB", (1600, 1200), (200, 30, 30)).save(buffer, "JPEG")
    image = decode_image(buffer.getvalue(), ImageRef(image_id="a", uri="a"), enough_px=300)
    assert image.size_hw == (300, 400)
    assert decode_image(buffer.getvalue(), ImageRef(image_id="a", uri="a")).size_hw == (1200, 1600)
