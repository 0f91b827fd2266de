import pickle

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from xsam_model.training.datasets.images import ImageFolder, open_image
from xsam_model.training.datasets.records import RecordError


def test_pixels_are_rgb_and_upright(tmp_path, picture):
    pixels = np.asarray(Image.open(picture("plain.png", 3, 2)))
    assert np.array_equal(open_image(tmp_path / "plain.png"), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(open_image(tmp_path / "turned.png"), np.rot90(pixels, -1))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert np.array_equal(open_image(tmp_path / "gray.png"), np.repeat(pixels[..., :1], 3, axis=2))
    see_through = np.zeros((2, 3, 4), dtype=np.uint8)
    Image.fromarray(see_through).save(tmp_path / "clear.png")
    assert (open_image(tmp_path / "clear.png") == 255).all()


def test_broken_images_say_what_is_wrong(tmp_path, truncated):
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((2, 3), dtype=np.uint16)).save(tmp_path / "deep.png")
    for name in (truncated("short.jpg").name, "text.jpg", "deep.png"):
        with pytest.raises(RecordError, match=f"image unreadable.*{name}"):
            open_image(tmp_path / name)
    with pytest.raises(RecordError, match=r"image missing.*none\.jpg"):
        open_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError])
def test_an_image_that_a_parser_of_pillow_stumbles_over_is_unreadable(tmp_path, picture, monkeypatch, kind):
    def stumble(*_):
        raise kind("unexpected chunk")

    picture("odd.png")
    monkeypatch.setattr(PngImageFile, "load", stumble)
    with pytest.raises(RecordError, match=r"image unreadable.*odd\.png.*unexpected chunk"):
        open_image(tmp_path / "odd.png")


def test_a_folder_knows_what_it_holds(tmp_path, picture):
    picture("images/train/a.jpg")
    folder = ImageFolder(tmp_path / "images")
    assert folder.require("train/a.jpg") == "train/a.jpg"
    for name in ("train/b.jpg", "other/a.jpg", "", None):
        with pytest.raises(RecordError, match="image missing"):
            folder.require(name)
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.open("train/a.jpg").shape == (8, 12, 3)
    with pytest.raises(ValueError, match="no such folder"):
        ImageFolder(tmp_path / "nowhere")
