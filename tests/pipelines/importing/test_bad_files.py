"""Files that cannot be imported, or not wholly: one message, and nothing written; or the image is left out and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import PlanError, SourceError
from pipelines.export.formats.label_studio import brush_rle
from pipelines.importing.edited import EditedFile, EditedImage
from pipelines.importing.formats.coco import read_coco
from pipelines.importing.formats.cvat import read_cvat
from pipelines.importing.formats.label_studio import read_label_studio
from pipelines.importing.imports import ImportChoice, import_file
from pipelines.masks import rle
from pipelines.storage.store import Store, open_store
from tests.support.labeled import box, mask, named, write_output

(CAT,) = named("ovseg", "cat")
SIZE = (6, 8)
A, B = box(0, 0, 3, 3, SIZE), box(4, 2, 3, 3, SIZE)
FOUND = {name: [mask(CAT, A)] for name in "abc"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("o")
    return write_output(folder, {**FOUND, "q": None}, common=[CAT], sizes=dict.fromkeys(FOUND, SIZE))[0]


def coco(names: str = "abc", size_hw: tuple[int, int] = SIZE, **changes: Any) -> dict[str, Any]:
    """A COCO file that moves the masks of some images; ``changes`` are those of the annotation of the first."""
    images = [
        {"id": number, "file_name": name, "height": size_hw[0], "width": size_hw[1], "annotation_ids": []}
        for number, name in enumerate(names)
    ]
    drawn = rle.encode(B if size_hw == SIZE else np.ones(size_hw, np.bool_)).to_coco()
    entries = [{"id": n, "image_id": n, "category_id": 1, "segmentation": drawn} for n in range(len(names))]
    entries[0] |= changes
    return {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat"}]}


def written(folder: Path, document: Any) -> str:
    path = folder / "file.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def refused(store: Store, folder: Path, document: Any, form: str = "coco") -> str:
    """Return why a file is refused, and check that nothing was written."""
    before = store.find("")
    with pytest.raises((SourceError, PlanError)) as error:
        import_file(store, written(folder, document), ImportChoice(format_name=form))
    assert store.find("") == before
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1200
    return message


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("coco", "{", "not JSON"),
    "empty": ("coco", " ", "empty"),
    "no image": ("coco", {"images": [], "annotations": [], "categories": []}, "it holds no image. Nothing"),
    "half a character as a name": ("coco", coco(annotation_id="\ud83d"), r"within a character ('\ud83d')"),
    "half a character as a label": (
        "label-studio", [{"data": {"image_id": "\udc4d"}}], r"within a character ('\udc4d')"
    ),
    "no COCO": ("coco", {"images": []}, "it needs lists of images, annotations, categories"),
    "results of COCO": ("coco", [{"image_id": 1}], "no COCO instances file"),
    "another collection": ("coco", coco("xyz"), "has 'x', 'y', 'z'; an image_id here looks like 'a', 'b', 'c'"),
    "another output": ("coco", coco(annotation_id="0" * 20), "none of the 1 annotation_id in it is of"),
    "an annotation of no image": ("coco", coco(image_id=77), "its parts do not fit each other"),
    "two images of one name": ("coco", coco("aa"), "its parts do not fit each other"),
    "mostly other images": ("coco", coco("axy"), "2 of its 3 images cannot be used: x: is no image of the output"),
    "another size": ("coco", coco("a", (12, 16)), "a: is 16 x 12 pixels in the file, and 8 x 6 in the output"),
    "an image that was not labeled": ("coco", coco("q"), "was not labeled (quarantined)"),
    "an unknown format": ("yolo", coco(), "format 'yolo' is none of coco, cvat, label-studio"),
    "no XML": ("cvat", "<annotations>", "no file of CVAT for images 1.1"),
    "another XML": ("cvat", "<html/>", "it holds no image"),
    "a video": ("cvat", "<annotations><track id='0'/></annotations>", "tracks of a video"),
    "entities": ("cvat", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "has a document type"),
    "one image twice": (
        "cvat", "<annotations>" + 2 * "<image name='a' width='8' height='6'/>" + "</annotations>", "'a' twice"
    ),
    "JSON-MIN": ("label-studio", [{"image": "a", "label": []}], "choose JSON, not JSON-MIN"),
    "COCO as tasks": ("label-studio", coco(), "it is a list of tasks"),
    "nothing submitted": ("label-studio", [{"data": {"image_id": "a"}}], "none of its 1 tasks has a submitted"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_file_that_cannot_be_used_is_refused_in_one_message_and_nothing_is_written(
    name: str, store: Store, tmp_path: Path
) -> None:
    form, document, message = REFUSED[name]
    assert message in refused(store, tmp_path, document, form)


def test_an_output_without_a_run_is_refused(tmp_path: Path) -> None:
    assert "holds no run" in refused(open_store(str(tmp_path / "none")), tmp_path, coco())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": []}, "annotation 0 has no mask"),
        ({"segmentation": [[0, 0, 1, 1]]}, "a polygon is a list of at least three x, y"),
        ({"segmentation": [[0, 0, 1e9, 0, 0, 5]]}, "beyond any image"),
        ({"segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}, "no pixel of its image"),
        ({"segmentation": {"size": [6, 8], "counts": [40]}}, "RLE runs cover 40 pixels"),
        ({"segmentation": {"size": [6, 8], "counts": None}}, "RLE runs"),
        ({"segmentation": {"size": [5, 8], "counts": [40]}}, "its mask is 8 x 5 pixels, but its image 8 x 6 pixels"),
        ({"segmentation": {"counts": [48]}}, "has no 'size'"),
        ({"category_id": 5}, "category_id is no category of the file"),
    ],
)
def test_an_image_with_a_broken_mask_is_left_out_whole_and_told(changes: Any, message: str) -> None:
    """Of the rest nobody could say what was deleted."""
    first, *others = read_coco(json.dumps(coco(**changes)).encode(), "f").images
    assert message in first.problem
    assert not any(image.problem for image in others)


def test_the_other_images_of_a_file_are_imported(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "o", FOUND, common=[CAT], sizes=dict.fromkeys(FOUND, SIZE))
    imported = import_file(store, written(tmp_path, coco(segmentation=[[1, 2]])), ImportChoice(format_name="coco"))
    assert imported.num_images == 2
    assert [(row["row"], row["image"]) for row in imported.left_out] == [(1, "a")]
    assert imported.plan is not None
    assert imported.plan.facts["rejected_prompts"] == list(imported.left_out)


# --- what tools write ---


def test_labels_of_cvat_are_told_from_the_names_of_tasks_and_attributes() -> None:
    label = "<label><name>cat</name><attributes><attribute><name>score</name></attribute></attributes></label>"
    task = f"<meta><task><name>dog</name><labels>{label}</labels></task></meta>"
    text = f"<annotations>{task}<image name='a' width='8' height='6'/></annotations>"
    assert read_cvat(text.encode(), "f").names == {"cat"}  # of these it can be said that none is there


def test_characters_in_two_escapes_are_read() -> None:
    (image,) = read_coco(json.dumps(coco("\U0001f408")).encode(), "f").images
    assert image.image_id == "\U0001f408"


def cvat(*shapes: str) -> EditedImage:
    text = f"<annotations><image name='a' width='8' height='6'>{''.join(shapes)}</image></annotations>"
    return read_cvat(text.encode(), "f").images[0]


def test_polygons_of_cvat_are_masks(tmp_path: Path) -> None:
    image = cvat("<polygon label='cat' points='4,2;7,2;7,5;4,5'/>")
    assert np.array_equal(rle.decode(image.masks[0].segmentation), B)
    assert (image.shown, image.author, image.masks[0].annotation_id) == (None, None, None)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("<box label='cat' xtl='0' ytl='0' xbr='3' ybr='3'/>", "box number 1 is no mask: draw a mask or a polygon"),
        ("<mask label='cat' rle='0, 9' left='6' top='0' width='3' height='3'/>", "does not lie in its image"),
        ("<mask label='cat' rle='0, 8' left='0' top='0' width='3' height='3'/>", "do not cover its box of 3 x 3"),
        ("<mask label='cat' rle='0, -9, 18' left='0' top='0' width='3' height='3'/>", "do not cover its box"),
        ("<mask label='cat' rle='a' left='0' top='0' width='3' height='3'/>", "mask number 1"),
        (f"<mask label='cat' rle='{2**70}' left='0' top='0' width='3' height='3'/>", "mask number 1"),
        ("<mask label='cat' rle='9' left='0' top='0' width='3' height='3'/>", "no pixel of its image"),
        ("<mask rle='0, 9' left='0' top='0' width='3' height='3'/>", "mask number 1 has no 'label'"),
        ("<polygon label='cat' points='4,2;7'/>", "polygon number 1"),
    ],
)
def test_a_shape_of_cvat_that_is_no_mask_is_told(shape: str, message: str) -> None:
    assert message in cvat("<tag label='cat'/>", shape).problem


def label_studio(*regions: dict[str, Any], **more: Any) -> EditedFile:
    task = {"data": {"image_id": "a"}, "annotations": [{"result": list(regions), **more}]}
    return read_label_studio(json.dumps([task]).encode(), "f")


def brush(pixels: np.ndarray = B, **changes: Any) -> dict[str, Any]:
    region = {"type": "brushlabels", "original_height": 6, "original_width": 8, "id": "x"}
    return {**region, "value": {"rle": brush_rle(pixels), "brushlabels": ["cat"], **changes}}


def test_brushes_and_polygons_of_label_studio_are_masks() -> None:
    polygon = {"points": [[50, 100 / 3], [87.5, 100 / 3], [87.5, 250 / 3], [50, 250 / 3]], "polygonlabels": ["cat"]}
    of_label_studio = {**brush(), "type": "polygonlabels", "value": polygon}
    (image,) = label_studio(brush(), of_label_studio, {"type": "choices"}, completed_by=7).images
    assert [np.array_equal(rle.decode(one.segmentation), B) for one in image.masks] == [True, True]
    assert (image.problem, image.author, image.is_reviewed) == ("", "7", True)


def test_brushes_that_label_studio_draws_itself_are_read() -> None:
    """Its encoder writes stretches of unequal bytes as they are; its library sets opacity 1 of 255."""
    values = np.repeat(B.reshape(-1, 1), 4, axis=1).astype(np.uint8).reshape(-1)
    bits = f"{values.size:032b}{7:05b}{2:04b}{3:04b}{7:04b}{15:04b}"
    for start in range(0, values.size, 64):
        piece = values[start : start + 64]
        bits += f"010{piece.size - 1:08b}" + "".join(f"{value:08b}" for value in piece)
    bits += "0" * (-len(bits) % 8)
    stream = [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]
    (image,) = label_studio(brush(rle=stream)).images
    assert image.problem == ""
    assert np.array_equal(rle.decode(image.masks[0].segmentation), B)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (brush(rle=brush_rle(B)[:-4]), "cut short"),
        (brush(rle=brush_rle(np.ones((2, 2), np.bool_))), "its run lengths cover 16 bytes, its image 192"),
        (brush(rle=[]), "cut short"),
        (brush(rle=[300]), "region number 1"),
        (brush(rle="abc"), "region number 1"),
        (brush(rle=2**60), "its rle is no list of numbers"),
        (brush(brushlabels=[]), "region number 1 has no label"),
        (brush(brushlabels="cat"), "region number 1 has no label"),
        (brush(brushlabels=[None]), "region number 1 has no label"),
        (brush(np.zeros(SIZE, np.bool_)), "no pixel of its image"),
        ({**brush(), "image_rotation": 90}, "turned or of another size"),
        ({**brush(), "original_width": 10**9}, "an image of 1000000000 x 6 pixels"),
        ({**brush(), "type": "rectanglelabels"}, "is no mask but 'rectanglelabels'"),
        ({"value": {}}, "region number 1 has no 'type'"),
        ("text", "region number 1"),
    ],
)
def test_a_region_of_label_studio_that_is_no_mask_is_told(region: Any, message: str) -> None:
    (image,) = label_studio(region).images
    assert message in image.problem


def test_a_region_of_several_labels_is_a_mask_of_each() -> None:
    (image,) = label_studio(brush(brushlabels=["cat", "dog", "cat"])).images
    assert [mask.name for mask in image.masks] == ["cat", "dog"]


def test_skipped_and_unfinished_tasks_are_no_answers() -> None:
    tasks: list[Callable[[], Any]] = [
        lambda: label_studio(brush(), was_cancelled=True),
        lambda: read_label_studio(b'[{"data": {"image_id": "a"}, "annotations": [], "predictions": [{}]}]', "f"),
    ]
    for read in tasks:
        with pytest.raises(SourceError, match="has a submitted annotation"):
            read()
