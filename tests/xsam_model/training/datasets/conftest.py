"""Small files in the real formats, and a batch of what a reader makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from xsam_model import XSamProcessor
from xsam_model.training.samples.batches import BatchBuilder

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "Person"}, {"id": 90, "name": "wall-other-merged"}]
WEIGHTS = Path(__file__).parents[4] / "xsam_model" / "weights" / "xsam-tiny"


@pytest.fixture
def picture(tmp_path):
    """Write a picture: picture("a.jpg", width, height) -> its path. PNG files hold noise, JPEG files one color."""

    def write(name, width=12, height=8, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((height, width, 3), (200, 30, 60), dtype=np.uint8)
        if path.suffix == ".png":
            pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def truncated(picture):
    """Write a JPEG that ends early."""

    def write(name, width=120, height=80):
        path = picture(name, width, height)
        path.write_bytes(path.read_bytes()[:-200])
        return path

    return write


@pytest.fixture
def box_mask():
    """Make a bool mask of a rectangle: box_mask(x, y, width, height, size_hw)."""

    def make(x, y, width, height, size_hw=(8, 12)):
        mask = np.zeros(size_hw, dtype=np.bool_)
        mask[y : y + height, x : x + width] = True
        return mask

    return make


@pytest.fixture
def rle():
    """Write a mask as COCO's compressed RLE, as JSON holds it."""

    def write(mask):
        found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": list(found["size"]), "counts": found["counts"].decode()}

    return write


@pytest.fixture
def write(tmp_path):
    """Write a COCO file: write(images, annotations) -> its path."""

    def made(images, annotations, name="instances.json", categories=CATEGORIES):
        path = tmp_path / name
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return str(path)

    return made


@pytest.fixture
def photos(tmp_path, picture):
    """Two pictures of 12 x 8 pixels: a folder."""
    picture("photos/1.jpg")
    picture("photos/2.jpg")
    return str(tmp_path / "photos")


@pytest.fixture(scope="session")
def tiny_processor():
    return XSamProcessor.from_pretrained(WEIGHTS)


@pytest.fixture
def batch_of(tiny_processor):
    """Make a training batch of a source's first samples."""

    def build(source, count=2):
        randoms = [np.random.default_rng([0, place]) for place in range(count)]
        samples = [source.draw(place % len(source), random) for place, random in enumerate(randoms)]
        return BatchBuilder(processor=tiny_processor, classes=source.categories).build(samples, randoms)

    return build
