"""Training and labeling see a picture alike: turned by its EXIF, never by its XMP."""

import numpy as np
import pytest
from PIL import Image

from pipelines.images.decode import decode_image
from pipelines.types import ImageRef
from tests.support.picture_bytes import RGB, encoded, png, tiff, xmp
from xsam_model.training.datasets.images import open_image
from xsam_model.training.names.assembly import read_pictures
from xsam_model.training.scenes.art.assets import read_ground


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block


BROKEN = b"Exif\0\0II*\0\xff\xff\xff\xff"
HEX = "\nexif\n      38\n" + exif(6).tobytes().hex() + "\n"
PICTURES = {
    **{f"exif_{number}.jpg": encoded(RGB, "JPEG", quality=95, exif=exif(number)) for number in range(10)},
    **{f"xmp_{number}.jpg": encoded(RGB, "JPEG", quality=95, xmp=xmp(number)) for number in (3, 6)},
    "both.jpg": encoded(RGB, "JPEG", quality=95, exif=exif(6), xmp=xmp(3)),
    "broken_exif.jpg": encoded(RGB, "JPEG", quality=95, exif=BROKEN),
    "broken_exif_and_xmp.jpg": encoded(RGB, "JPEG", quality=95, exif=BROKEN, xmp=xmp(3)),
    "exif.png": encoded(RGB, "PNG", exif=exif(8)),
    "xmp.png": png(RGB, 2, (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(3))),
    "hex.png": png(RGB, 2, (b"tEXt", b"Raw profile type exif\0" + HEX.encode())),
    "broken_hex.png": png(RGB, 2, (b"tEXt", b"Raw profile type exif\0\nexif\n 3\nxyz")),
    "exif.webp": encoded(RGB, "WEBP", lossless=True, exif=exif(3)),
    "xmp.webp": encoded(RGB, "WEBP", lossless=True, xmp=xmp(3)),
    "tag.tif": tiff(RGB, {0x0112: ("H", 6)}, photometric=2),
    "xmp.tif": tiff(RGB, {700: ("s", xmp(3).decode())}, photometric=2),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_trained_on_as_it_is_labeled(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(PICTURES[name])
    labeled = decode_image(PICTURES[name], ImageRef(image_id=name, uri=name)).pixels
    assert np.array_equal(open_image(path), labeled)
    ground = read_ground(path, name, ()).pixels
    assert np.array_equal(ground, labeled)


def test_photographs_that_names_are_learned_from_are_upright(tmp_path):
    for name in ("exif_6.jpg", "xmp_3.jpg"):
        (tmp_path / name).write_bytes(PICTURES[name])
    side = max(RGB.shape)
    turned, plain = read_pictures([tmp_path], 2, side)
    expected = [np.rot90(RGB, -1), RGB]
    for found, right in zip((turned, plain), expected, strict=True):
        assert found.shape == right.shape
        assert np.abs(found.astype(int) - right).mean() < 12
