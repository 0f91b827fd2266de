"""Each format read back as its tool reads it: masks pixel by pixel, or as near as polygons come."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image as PILImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipelines.errors import SourceError, StorageError
from pipelines.evaluation.evaluate import evaluate_output
from pipelines.evaluation.ground_truth import PanopticTruth, read_ground_truth
from pipelines.export.formats.label_studio import brush_rle
from pipelines.export.formats.polygons import edges, outline
from pipelines.export.selection import _model
from pipelines.export.splits import Splits
from pipelines.export.write import Choice, export_output
from pipelines.layout import is_ours
from pipelines.masks import rle
from pipelines.masks.polygons import from_polygons
from pipelines.query.database import open_database
from pipelines.sources.listing import list_images
from pipelines.storage.store import Store, open_store
from pipelines.table.dataset_card import leave_card
from pipelines.table.stray_files import stray_files
from tests.support.fakes import half_bright, png
from tests.support.labeled import RUN, box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "d<o>g & co")
SIZE = (40, 60)
RING = box(10, 5, 30, 25, SIZE) & ~box(15, 10, 10, 10, SIZE) & ~box(30, 12, 4, 4, SIZE)
PARTS = box(2, 2, 8, 8, SIZE) | box(40, 20, 12, 12, SIZE) | box(20, 30, 5, 5, SIZE)
FULL = np.ones(SIZE, np.bool_)
FOUND = {
    "a/1.jpg": [mask(CAT, RING, 0.9), mask(DOG, PARTS, 0.4)],
    "b.jpg": [],
    "c.jpg": None,
    "d.jpg": [mask(DOG, FULL, 0.7)],
}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Masks with holes, of several parts, and of the whole image."""
    return write_output(tmp_path / "output", FOUND, common=[CAT, DOG], sizes=dict.fromkeys(FOUND, SIZE))[0]


def blobs(seed: int, size_hw: tuple[int, int] = (120, 160)) -> np.ndarray:
    """Return a random mask of smooth outlines, with holes and parts: bool (H, W)."""
    noise = np.random.default_rng(seed).random(size_hw).astype(np.float32)
    return cv2.GaussianBlur(noise, (0, 0), 5) > 0.5


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def drawn(points: np.ndarray, size_hw: tuple[int, int], whole: Callable[[Any], Any] = np.trunc) -> np.ndarray:
    """Fill a polygon as YOLO's trainer does: cut to whole pixels, or rounded, as supervision does."""
    picture = np.zeros(size_hw, np.uint8)
    cv2.fillPoly(picture, [whole(points).astype(np.int32)], 1)
    return picture.astype(bool)


# YOLO


def yolo_masks(
    path: Path, size_hw: tuple[int, int] = SIZE, whole: Callable[[Any], Any] = np.trunc
) -> list[tuple[int, np.ndarray]]:
    """Read a label file: (category, mask) of each line."""
    found = []
    for line in path.read_text().splitlines():
        category, *values = line.split(" ")
        points = np.array(values, float).reshape(-1, 2)
        assert len(points) >= 3
        assert ((points >= 0) & (points <= 1)).all()
        found.append((int(category), drawn(points * (size_hw[1], size_hw[0]), size_hw, whole)))
    return found


def test_yolo_polygons_give_the_masks_again_with_their_holes_and_parts(output: Store, tmp_path: Path) -> None:
    summary = export_output(output, str(tmp_path / "yolo"), "yolo", Choice())
    labels = tmp_path / "yolo" / "labels" / "train"
    assert sorted(p.relative_to(labels).as_posix() for p in labels.rglob("*.txt")) == ["a_1.txt", "b.txt", "d.txt"]
    for whole in (np.trunc, np.round):
        (cat, ring), (dog, parts) = yolo_masks(labels / "a_1.txt", whole=whole)
        assert (cat, dog) == (0, 1)
        assert np.array_equal(ring, RING)
        assert (parts >= PARTS).all()
        assert (parts & ~PARTS).sum() <= 50  # the lines between its parts
    assert (labels / "b.txt").read_text() == ""
    assert np.array_equal(yolo_masks(labels / "d.txt")[0][1], FULL)
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert described == {"train": "images/train", "val": "images/train", "names": {0: "cat", 1: "d<o>g & co"}}
    same, lost, fetch = summary.notes
    assert "val is the same as train" in same
    least = (PARTS & parts).sum() / (PARTS | parts).sum()
    assert lost == (
        "1 of 3 masks is not quite the same drawn again, for lines join the parts of each to one polygon: "
        f"IoU {np.floor(least * 1e4) / 1e4:.4f} at least"
    )
    assert "3 images are not beside the labels" in fetch
    rows = list(csv.reader((tmp_path / "yolo" / "images_to_fetch.csv").open()))
    assert rows[:2] == [["file", "uri"], ["images/train/a_1.jpg", "/p/a/1.jpg"]]
    rows = list(csv.reader((tmp_path / "yolo" / "images.csv").open()))
    assert rows[:2] == [["file", "image_id", "uri"], ["images/train/a_1.jpg", "a/1.jpg", "/p/a/1.jpg"]]


def test_a_score_that_is_no_number_is_null_in_json(tmp_path: Path) -> None:
    panoptic = named("ovseg_panoptic", "cat")
    found = {"a.jpg": [mask(CAT, box(0, 0, 2, 2), np.nan), mask(panoptic[0], box(4, 4, 2, 2), np.nan)]}
    store, _ = write_output(tmp_path / "output", found, common=[CAT, *panoptic])
    for form, file, tasks in (
        ("coco", "instances.json", ("ovseg",)),
        ("panoptic", "panoptic.json", ("ovseg_panoptic",)),
        ("label-studio", "tasks.json", ("ovseg",)),
    ):
        export_output(store, str(tmp_path / form), form, Choice(tasks=tasks))
        text = (tmp_path / form / file).read_text()
        json.loads(text, parse_constant=pytest.fail)
        assert '"score": null' in text


def test_images_of_formats_that_no_reader_of_yolo_takes_are_left_out_and_counted(tmp_path: Path) -> None:
    ids = ("a.gif", "b.JPG", "c.jfif", "d", "e.v2", "f.PPM", "g.jxl", "h.gif", "i.tif")
    found = {name: [mask(CAT, box(0, 0, 3, 3))] for name in ids}
    store, _ = write_output(tmp_path / "output", found, common=[CAT], uris={"d": "/p/d.webp"})
    summary = export_output(store, str(tmp_path / "yolo"), "yolo", Choice(splits=Splits.parse("train=0.5,val=0.5")))
    assert "4 images are of formats that YOLO's readers do not take, left out: 2 .gif, 1 .PPM, 1 .jxl" in summary.notes
    assert not any("val is the same" in note for note in summary.notes)
    rows = list(csv.DictReader((tmp_path / "yolo" / "images.csv").open()))
    assert {row["image_id"]: Path(row["file"]).name for row in rows} == {
        "b.JPG": "b.JPG", "c.jfif": "c.jpg", "d": "d.webp", "e.v2": "e.jpg", "i.tif": "i.tif"
    }  # fmt: skip
    labels = {path.stem for path in (tmp_path / "yolo" / "labels").rglob("*.txt")}
    assert labels == {"b", "c", "d", "e", "i"}


@pytest.mark.parametrize("seed", range(12))
def test_an_outline_gives_a_mask_again_but_for_its_joints(seed: int) -> None:
    pixels = blobs(seed)
    assert iou(drawn(outline(pixels), pixels.shape), pixels) > 0.97


@pytest.mark.parametrize(
    "pixels",
    [box(3, 3, 1, 1), box(3, 3, 5, 1), box(0, 0, 1, 10), box(0, 0, 2, 2) | box(9, 9, 1, 1), ~box(4, 4, 1, 1)],
    ids=["a pixel", "a row", "a column at the edge", "a far pixel", "a pixel missing"],
)
def test_thin_masks_have_outlines(pixels: np.ndarray) -> None:
    points = outline(pixels)
    assert len(points) >= 3
    assert (drawn(points, pixels.shape) >= pixels).all()


def test_of_a_mask_in_very_many_pieces_the_largest_are_traced() -> None:
    pixels = np.random.default_rng(0).random((80, 400)) < 0.1
    pixels[20:60, 20:60] = True
    pixels[30:50, 30:50] = False
    found = drawn(outline(pixels), pixels.shape)
    assert found[20:60, 20:30].all()
    assert not found[34:46, 34:46].any()


def test_yolo_splits_have_folders_and_names(output: Store, tmp_path: Path) -> None:
    splits = Splits.parse("train=0.4,val=0.3,test=0.3")
    summary = export_output(output, str(tmp_path / "yolo"), "yolo", Choice(splits=splits))
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert {name: described[name] for name in splits.names} == {name: f"images/{name}" for name in splits.names}
    for name in splits.names:
        files = list((tmp_path / "yolo" / "labels" / name).rglob("*.txt"))
        assert len(files) == summary.num_images[name]


def with_photos(folder: Path) -> Store:
    """An output whose images are files."""
    (folder / "photos").mkdir()
    for name in ("1.png", "2.PNG"):
        (folder / "photos" / name).write_bytes(png(half_bright(60, 40)))
    found = {"1.png": [mask(CAT, RING)], "2.PNG": [mask(CAT, PARTS)]}
    where = {name: str(folder / "photos" / name) for name in found}
    sizes = dict.fromkeys(found, SIZE)
    return write_output(folder / "output", found, common=[CAT], sizes=sizes, uris=where)[0]


@pytest.mark.parametrize("copy", [False, True])
def test_yolo_images_lie_beside_their_labels_as_links_or_copies(tmp_path: Path, copy: bool) -> None:
    store = with_photos(tmp_path)
    summary = export_output(store, str(tmp_path / "yolo"), "yolo", Choice(copy_images=copy))
    assert len(summary.notes) == 2  # that val is train, and what lines between parts cost
    images = tmp_path / "yolo" / "images" / "train"
    assert sorted(path.name for path in images.iterdir()) == ["1.png", "2.PNG"]
    assert sorted(ref.image_id for ref in list_images(str(tmp_path))) == ["photos/1.png", "photos/2.PNG"]
    assert all(path.is_symlink() != copy and path.read_bytes() == png(half_bright(60, 40)) for path in images.iterdir())


def test_an_image_that_cannot_be_copied_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = with_photos(tmp_path)
    (tmp_path / "photos" / "2.PNG").unlink()
    (tmp_path / "photos" / "2.PNG").mkdir()  # one that is gone is left out instead
    with pytest.raises(StorageError, match=r"2.PNG cannot be copied"):
        export_output(store, str(tmp_path / "yolo"), "yolo", Choice(copy_images=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "photos"]


def test_yolo_without_opencv_names_the_extra(output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(SourceError, match=r"pip install 'xsam-label\[export\]'"):
        export_output(output, str(tmp_path / "yolo"), "yolo", Choice())
    assert not (tmp_path / "yolo").exists()


# COCO panoptic


def panoptic_output(folder: Path) -> tuple[Store, Any]:
    sky, cat = named("ovseg_panoptic", "sky", "cat")
    sky, cat = (type(p)(**{**_fields(p), "is_thing": p.text == "cat"}) for p in (sky, cat))
    found = {
        "a/1.jpg": [
            mask(cat, box(0, 0, 4, 4, SIZE), 0.9),
            mask(cat, box(6, 0, 4, 4, SIZE), 0.8),
            mask(sky, box(0, 20, 60, 20, SIZE), 0.7),
        ],
        "b.jpg": [mask(sky, FULL, 0.6)],
        "e.jpg": [],
    }
    return write_output(folder / "output", found, common=[sky, cat], sizes=dict.fromkeys(found, SIZE))


def _fields(prompt: Any) -> dict[str, Any]:
    return {name: getattr(prompt, name) for name in prompt.__slots__}


def test_panoptic_maps_hold_the_segments_and_score_1_against_their_own_run(tmp_path: Path) -> None:
    store, plan = panoptic_output(tmp_path)
    export_output(store, str(tmp_path / "panoptic"), "panoptic", Choice())
    document = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
    assert document["categories"] == [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    first = document["annotations"][0]
    assert [(s["id"], s["category_id"], s["isthing"], s["area"], s["bbox"]) for s in first["segments_info"]] == [
        (1, 1, 1, 16, [0, 0, 4, 4]),
        (2, 1, 1, 16, [6, 0, 4, 4]),
        (3, 2, 0, 1200, [0, 20, 60, 20]),
    ]
    picture = np.asarray(PILImage.open(tmp_path / "panoptic" / "panoptic" / first["file_name"])).astype(int)
    ids = picture @ (1, 256, 65536)
    assert np.array_equal(ids == 2, box(6, 0, 4, 4, SIZE))
    assert np.array_equal(ids == 3, box(0, 20, 60, 20, SIZE))
    truth = read_ground_truth(str(tmp_path / "panoptic" / "panoptic.json"))
    assert isinstance(truth, PanopticTruth)
    assert len(truth.images) == 3
    figures = evaluate_output(store, [plan], truth).results[0].figures
    assert figures["PQ"] == pytest.approx(1)


def test_many_segments_use_all_of_a_maps_colors(tmp_path: Path) -> None:
    (stuff,) = named("ovseg_semantic", "tile")
    tiles = [mask(stuff, box(x, y, 1, 1, (20, 20)), 1 - (20 * y + x) / 1000) for y in range(20) for x in range(20)]
    store, _ = write_output(tmp_path / "output", {"a.png": tiles}, common=[stuff], sizes={"a.png": (20, 20)})
    export_output(store, str(tmp_path / "panoptic"), "panoptic", Choice(tasks=("ovseg_semantic",)))
    picture = np.asarray(PILImage.open(tmp_path / "panoptic" / "panoptic" / "a.png")).astype(int)
    assert np.array_equal(picture @ (1, 256, 65536), np.arange(1, 401).reshape(20, 20))


def test_where_segments_overlap_the_better_score_has_the_pixel(tmp_path: Path) -> None:
    (sky,) = named("ovseg_panoptic", "sky")
    found = {
        "a.png": [mask(sky, box(0, 0, 6, 6), 0.5), mask(sky, box(0, 0, 3, 3), 0.9), mask(sky, box(1, 1, 1, 1), 0.2)]
    }
    store, _ = write_output(tmp_path / "output", found, common=[sky])
    summary = export_output(store, str(tmp_path / "panoptic"), "panoptic", Choice())
    assert summary.notes == ("2 masks lie under better ones, 1 of them wholly: the maps have what is seen of them",)
    (entry,) = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())["annotations"]
    assert [segment["area"] for segment in entry["segments_info"]] == [9, 27]


def test_masks_that_are_no_map_are_refused_as_panoptic(output: Store, tmp_path: Path) -> None:
    for tasks, message in (
        ((), "no masks of a panoptic task; it holds ovseg"),
        (("ovseg",), "one panoptic or semantic"),
    ):
        with pytest.raises(SourceError, match=message):
            export_output(output, str(tmp_path / "panoptic"), "panoptic", Choice(tasks=tasks))


# Label Studio


def brush_mask(stream: list[int], size_hw: tuple[int, int]) -> np.ndarray:
    """Decode Label Studio's brush bit by bit: uint8 (H, W, 4)."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        if read(1):
            length = read(sizes[read(2)]) + 1
            values += [read(word)] * length
        else:
            values += [read(word) for _ in range(read(sizes[read(2)]) + 1)]
    return np.array(values, np.uint8).reshape(*size_hw, 4)


@pytest.mark.parametrize("seed", range(4))
def test_a_brush_is_decoded_to_the_mask(seed: int) -> None:
    pixels = blobs(seed, (90, 130))
    canvas = brush_mask(brush_rle(pixels), pixels.shape)
    assert np.array_equal(canvas, np.repeat(pixels[..., None] * np.uint8(255), 4, axis=2))


def test_long_stretches_of_a_brush_are_cut(tmp_path: Path) -> None:
    pixels = np.zeros((300, 400), np.bool_)
    pixels[150:] = True
    assert np.array_equal(brush_mask(brush_rle(pixels), pixels.shape)[..., 3], pixels * np.uint8(255))


def test_a_brush_is_what_label_studio_itself_makes_of_the_mask() -> None:
    pixels = np.zeros((5, 7), np.bool_)
    pixels[1:4, 2:6] = True
    pixels[2, 3] = False
    # label_studio_sdk.converter.brush.mask2rle of label-studio-sdk 2.0.13
    theirs = [0, 0, 0, 140, 57, 27, 254, 35, 0, 191, 255, 108, 2, 63, 248, 192, 39, 255, 182, 1, 127, 255, 15, 128, 0]
    assert brush_rle(pixels) == theirs


def test_label_studio_tasks_hold_predictions_and_a_config_for_them(output: Store, tmp_path: Path) -> None:
    choice = Choice(image_url="/data/local-files/?d=photos/")
    export_output(output, str(tmp_path / "tasks"), "label-studio", choice)
    tasks = json.loads((tmp_path / "tasks" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks][:2] == [
        "/data/local-files/?d=photos/a/1.jpg",
        "/data/local-files/?d=photos/b.jpg",
    ]
    (prediction,) = tasks[0]["predictions"]
    assert (prediction["model_version"], prediction["score"]) == (RUN, 0.9)
    ring, parts = prediction["result"]
    assert (ring["original_width"], ring["original_height"], ring["score"]) == (60, 40, 0.9)
    assert np.array_equal(brush_mask(ring["value"]["rle"], SIZE)[..., 3] > 0, RING)
    assert np.array_equal(brush_mask(parts["value"]["rle"], SIZE)[..., 3] > 0, PARTS)
    config = ElementTree.parse(tmp_path / "tasks" / "label_config.xml").getroot()
    (brush,), (image,) = config.findall("BrushLabels"), config.findall("Image")
    assert (brush.get("name"), brush.get("toName")) == (ring["from_name"], ring["to_name"])
    assert (image.get("name"), image.get("value")) == (ring["to_name"], "$image")
    labels = {label.get("value") for label in brush}
    assert {name for region in prediction["result"] for name in region["value"]["brushlabels"]} <= labels
    assert tasks[1]["predictions"] == []


def test_a_file_of_tasks_may_stand_alone(output: Store, tmp_path: Path) -> None:
    export_output(output, str(tmp_path / "tasks.json"), "label-studio", Choice())
    assert len(json.loads((tmp_path / "tasks.json").read_text())) == 3


# CVAT


def test_cvat_masks_are_decoded_by_its_own_library(output: Store, tmp_path: Path) -> None:
    masks = pytest.importorskip("cvat_sdk.masks")
    export_output(output, str(tmp_path / "cvat"), "cvat", Choice())
    document = ElementTree.parse(tmp_path / "cvat" / "annotations.xml").getroot()
    images = {image.get("name"): image for image in document.findall("image")}
    assert list(images) == ["a/1.jpg", "b.jpg", "d.jpg"]
    assert document.findtext("meta/task/size") == "3"
    labels = [label.text for label in document.findall("meta/task/labels/label/name")]
    assert labels == ["cat", "d<o>g & co"]
    assert [label["name"] for label in json.loads((tmp_path / "cvat" / "labels.json").read_text())] == labels
    wanted = {"a/1.jpg": [("cat", RING), ("d<o>g & co", PARTS)], "b.jpg": [], "d.jpg": [("d<o>g & co", FULL)]}
    for name, expected in wanted.items():
        found = images[name].findall("mask")
        assert [element.get("label") for element in found] == [label for label, _ in expected]
        for element, (_, pixels) in zip(found, expected, strict=True):
            left, top, width, height = (int(element.get(key, "")) for key in ("left", "top", "width", "height"))
            points = [*map(int, element.get("rle", "").split(",")), left, top, left + width - 1, top + height - 1]
            assert np.array_equal(masks.decode_mask(points, image_width=60, image_height=40), pixels)
            assert points == masks.encode_mask(pixels)


def test_cvat_labels_are_short_and_writable_and_ids_are_carried(tmp_path: Path) -> None:
    long = "a person who " + "walks " * 12
    names = (long + "left", long + "right", "bell\x07", "x" * 64, "cat")
    prompts = named("ovseg", *names)
    found = {"a.jpg": [mask(prompt, RING) for prompt in prompts]}
    store, _ = write_output(tmp_path / "output", found, common=prompts, sizes={"a.jpg": SIZE})
    (note,) = export_output(store, str(tmp_path / "cvat"), "cvat", Choice()).notes
    assert note.startswith("3 names are no labels of CVAT (64 characters, those of XML)")
    spec = json.loads((tmp_path / "cvat" / "labels.json").read_text())
    labels = [label["name"] for label in spec]
    assert len(set(labels)) == 5
    assert {"x" * 64, "cat"} < set(labels)
    assert all(len(label) <= 64 for label in labels)
    document = ElementTree.parse(tmp_path / "cvat" / "annotations.xml").getroot()
    assert [label.text for label in document.findall("meta/task/labels/label/name")] == labels
    elements = {element.get("label"): element for element in document.iter("mask")}
    assert set(elements) == set(labels)
    with (tmp_path / "cvat" / "labels_shortened.csv").open(newline="") as file:
        back = {row["label"]: row["category_name"] for row in csv.DictReader(file)}
    assert set(back.values()) == {*names[:2], names[2]}
    rows = dict(open_database(store).execute("SELECT annotation_id, category_name FROM annotations").fetchall())
    for label, element in elements.items():
        attributes = {attribute.get("name"): attribute.text for attribute in element}
        assert set(attributes) == {attribute["name"] for attribute in spec[0]["attributes"]}
        assert rows[attributes["annotation_id"] or ""] == back.get(label or "", label)


def test_one_xml_file_may_stand_alone(output: Store, tmp_path: Path) -> None:
    export_output(output, str(tmp_path / "cvat.xml"), "cvat", Choice(where="score > 0.5"))
    document = ElementTree.parse(tmp_path / "cvat.xml").getroot()
    assert [element.findtext("attribute") for element in document.iter("mask")] == ["0.9000", "0.7000"]


def test_several_models_of_an_image_are_predictions_of_their_own(tmp_path: Path) -> None:
    for number, prompt in enumerate((CAT, DOG)):
        write_output(
            tmp_path / "output",
            {"a.jpg": [mask(prompt, RING)]},
            common=[prompt],
            sizes={"a.jpg": SIZE},
            run_id=f"run-{number}",
        )
    store = open_store(str(tmp_path / "output"))
    export_output(store, str(tmp_path / "tasks.json"), "label-studio", Choice())
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert [prediction["model_version"] for prediction in task["predictions"]] == ["run-0", "run-1"]


def test_a_model_is_told_by_its_name_and_not_by_its_hash_alone() -> None:
    plan = {"fingerprint": {"model": "0123456789abcdef" * 4}, "facts": {"config": {"model": {"path": "/m/x-sam/"}}}}
    assert _model("run-1", plan) == "x-sam 01234567"
    assert _model("run-1", {"fingerprint": {"model": "0123456789abcdef"}}) == "01234567"
    assert _model("run-1", {}) == "run-1"


def test_coco_polygons_give_the_masks_again_and_the_loss_is_measured(output: Store, tmp_path: Path) -> None:
    summary = export_output(output, str(tmp_path / "coco.json"), "coco", Choice(polygons=True))
    assert summary.notes == ("all 3 masks come back pixel by pixel when pycocotools draws their polygons",)
    read = COCO(str(tmp_path / "coco.json"))
    assert all(isinstance(entry["segmentation"], list) and entry["iscrowd"] == 0 for entry in read.anns.values())
    masks = [read.annToMask(entry).astype(bool) for entry in read.anns.values()]
    assert all(np.array_equal(*pair) for pair in zip(masks, (RING, PARTS, FULL), strict=True))
    with pytest.raises(SourceError, match="only coco has masks as polygons"):
        export_output(output, str(tmp_path / "cvat"), "cvat", Choice(polygons=True))


@pytest.mark.parametrize("seed", range(6))
def test_polygons_along_the_edges_of_pixels_are_exact_whatever_the_mask(seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels = [blobs(seed), random.random((40, 50)) < 0.3, random.random((1, 30)) < 0.5, blobs(seed, (7, 9))][seed % 4]
    polygons = [part.reshape(-1).tolist() for part in edges(pixels)]
    assert np.array_equal(rle.decode(from_polygons(polygons, pixels.shape)), pixels)


# Hugging Face datasets


def test_the_card_at_the_root_lets_hugging_face_datasets_load_both_tables(output: Store, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_output(tmp_path / "output", {"e.jpg": []}, common=[CAT], run_id="run-2")  # a shard without masks
    assert leave_card(output) == []
    load = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    rows = datasets.load_dataset(str(tmp_path / "output"), "annotations", **load)
    (row,) = [row for row in rows if row["score"] > 0.8]
    assert (row["image_id"], row["category_name"]) == ("a/1.jpg", "cat")
    assert np.array_equal(coco_mask.decode(row["segmentation"]).astype(bool), RING)
    images = datasets.load_dataset(str(tmp_path / "output"), "images", **load)
    assert sorted(zip(images["image_id"], images["status"], strict=True)) == [
        ("a/1.jpg", "ok"), ("b.jpg", "empty"), ("c.jpg", "quarantined"), ("d.jpg", "ok"), ("e.jpg", "empty")
    ]  # fmt: skip
    sizes = [pq.ParquetFile(path).metadata for path in (tmp_path / "output" / "annotations").rglob("*.parquet")]
    assert sorted(file.num_row_groups for file in sizes) == [0, 1, 1]
    # What the user has put there stays.
    (tmp_path / "output" / "README.md").write_text("mine")
    assert leave_card(output) == []
    assert (tmp_path / "output" / "README.md").read_text() == "mine"
    assert is_ours("README.md")
    assert stray_files(output) == []
