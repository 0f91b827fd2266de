"""What is no ground truth, and what is broken in one that is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SourceError
from pipelines.evaluation.coco_entries import read_mask
from pipelines.evaluation.ground_truth import InstanceTruth, PanopticTruth, PhraseTruth, read_ground_truth
from pipelines.masks import rle
from pipelines.types import Rle
from tests.support.labeled import box
from tests.support.truth_files import panoptic


def test_a_folder_is_no_truth(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r": a folder; give the file in it that is meant"):
        read_ground_truth(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not found"),
        ("{", "not JSON: .*; a ground truth is a COCO file or a list of phrases"),
        (
            '[{"image_id": 1, "category_id": 1, "score": 0.5}]',
            "without their images and categories: give the whole COCO",
        ),
        ("\x1f\x8b", "compressed, which is not read here; unpack it"),
        ('{"a": 1}', "not a ground truth of a known form"),
        ("3", "not a ground truth of a known form"),
        ("[]", "the list is empty"),
        ('{"annotations": []}', "has no 'images'"),
        ('{"annotations": [], "images": [], "categories": []}', "holds no annotations"),
        (
            '{"annotations": [{"id": 7, "image_id": 1}], "images": [], "categories": []}',
            r"none of its 1 annotation can be used: 1 .* image_id is no image of .*: annotation 7 \(image_id 1\)",
        ),
        (
            '{"annotations": [5], "images": [], "categories": []}',
            r"none of its 1 annotation .* not an object: annotation number 1 \(5\)",
        ),
        (
            '[{"file_name": "a", "segmentation": [[1, 1, 2, 2, 3, 1]], "phrase": "x"}]',
            r"none of its 1 entry .*entry 0 \(.*height and width",
        ),
        ('[{"file_name": "a", "segmentation": {"size": [2, 2], "counts": [4]}}]', "either phrase or prompt_id"),
        ('[{"file_name": "a", "segmentation": {"size": [2, 2], "counts": [3]}, "phrase": "x"}]', "entry 0 .*cover 3"),
        ('[{"file_name": "a", "task": "chat", "phrase": "x"}]', "task 'chat' is none of refseg"),
        ('[{"task": "refseg", "phrase": "x", "segmentation": {"size": [2, 2], "counts": [4]}}]', "no 'file_name'"),
    ],
)
def test_files_that_are_no_truth(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "truth.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=words) as refused:
        read_ground_truth(str(path))
    assert str(path) in str(refused.value)


def read_objects(path: Path, document: dict[str, Any], *, is_strict: bool = False) -> InstanceTruth:
    """Read a file, and the objects of all its images."""
    path.write_text(json.dumps(document))
    truth = read_ground_truth(str(path), is_strict=is_strict)
    assert isinstance(truth, InstanceTruth)
    for file_name in truth.images:
        truth.objects(file_name)
    return truth


def cats(
    *broken: dict[str, Any], images: list[Any] | None = None, categories: list[Any] | None = None
) -> dict[str, Any]:
    """A file of one good annotation of a 10 x 10 picture, and others."""
    good = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]], "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}, *(images or ())],
        "categories": [{"id": 1, "name": "cat"}, *(categories or ())],
        "annotations": [good, *({**good, "id": 7, **one} for one in broken)],
    }


BROKEN = {
    "a mask of no mask": ({"segmentation": []}, r"no mask: annotation 7 of a.png \(segmentation \[\]\)"),
    "a null mask": ({"segmentation": None}, r"no mask: annotation 7 of a.png \(segmentation None\)"),
    "an empty polygon": ({"segmentation": [[]]}, r"no mask: annotation 7 of a.png \(segmentation \[\[\]\]\)"),
    "runs without a pixel": (
        {"segmentation": {"size": [10, 10], "counts": [100]}},
        "a mask without a pixel of its image: annotation 7 of a.png",
    ),
    "a polygon outside": ({"segmentation": [[20, 20, 30, 20, 30, 30]]}, "a mask without a pixel of its image: "),
    "an orphan": ({"image_id": 4242}, r"image_id is no image of the file: annotation 7 \(image_id 4242\)"),
    "an image's id as text": ({"image_id": "1"}, r"image_id is no image of the file: annotation 7 \(image_id '1'\)"),
    "a truth value for an id": ({"image_id": True}, r"image_id is no image .* \(image_id True\)"),
    "a list for an id": ({"image_id": [1]}, r"image_id is no image .* \(image_id \[1\]\)"),
    "an unknown category": (
        {"category_id": 9},
        r"category_id is no category of the file: annotation 7 \(category_id 9",
    ),
    "a category's id as text": ({"category_id": "1"}, r"category_id is no category .* \(category_id '1'\)"),
    "two points": (
        {"segmentation": [[1, 1, 2, 2]]},
        r"cannot be read: annotation 7 of a.png \(a polygon is a list of at",
    ),
    "an odd number": ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, r"a polygon of 7 numbers is no list of x, y"),
    "a far vertex": ({"segmentation": [[1, 1, 4, 1, 200_000, 4]]}, r"has a vertex at 200000, beyond any image"),
    "a far negative vertex": ({"segmentation": [[1, 1, 4, -2e5, 4, 4]]}, r"has a vertex at -200000, beyond any image"),
    "all far away": ({"segmentation": [[2e5, 2e5, 2e5 + 1, 2e5, 2e5, 2e5 + 1]]}, "has a vertex at 200000"),
    "NaN": ({"segmentation": [[1, 1, 4, 1, float("nan"), 4]]}, "has a vertex at nan"),
    "words": ({"segmentation": "polygon"}, "a polygon is a list of at least three x, y"),
    "numbers as words": ({"segmentation": [["1", "1", "4", "1", "4", "4"]]}, "a polygon is a list of"),
    "no text of runs": ({"segmentation": {"size": [10, 10], "counts": "~"}}, "outside '0' to 'o'"),
    "another size": ({"segmentation": {"size": [5, 5], "counts": [0, 25]}}, "5 x 5 pixels, but its image 10 x 10"),
    "no size": ({"segmentation": {"counts": [0, 100]}}, r"cannot be read: annotation 7 of a.png \(has no 'size'\)"),
    "a strange crowd": ({"iscrowd": "maybe"}, r"iscrowd is neither 0 nor 1: annotation 7 of a.png \(iscrowd 'maybe'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_annotation_that_cannot_be_used_is_named_and_counted_and_the_others_stay(tmp_path: Path, name: str) -> None:
    broken, words = BROKEN[name]
    truth = read_objects(tmp_path / "t.json", cats(broken))
    (note,) = truth.left_out.notes()
    assert re.search(rf"^1 entry of the truth left out: .*{words}", note)
    assert len(truth.objects("a.png")) == 1
    with pytest.raises(SourceError, match=r"annotation 7( of a.png)?: .*without --strict it is left out"):
        read_objects(tmp_path / "t.json", cats(broken), is_strict=True)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"height": None}, r"height is no number of pixels: image 2 \(height None\)"),
        ({"width": 0}, r"width is no number of pixels: image 2 \(width 0\)"),
        ({"width": 10.5}, r"width is no number of pixels: image 2 \(width 10.5\)"),
        ({"file_name": None}, r"no file_name: image 2"),
        ({"file_name": "a.png"}, "several images have one id or one file_name: image 1 .*, image 2"),
        ({"id": None}, "an image without an id"),
    ],
)
def test_an_image_that_cannot_be_used_is_left_out_with_what_it_shows(
    tmp_path: Path, image: dict[str, Any], words: str
) -> None:
    good = {"id": 3, "file_name": "c.png", "height": 10.0, "width": 10}
    odd = {"id": 2, "file_name": "b.png", "height": 10, "width": 10, **image}
    document = cats({"image_id": 2}, {"image_id": 3}, images=[odd, good])
    truth = read_objects(tmp_path / "t.json", document)
    assert len(truth.objects("c.png")) == 1
    assert re.search(words, str(truth.left_out))
    assert "b.png" not in truth.images
    with pytest.raises(SourceError, match="without --strict"):
        read_ground_truth(str(tmp_path / "t.json"), is_strict=True)


def test_other_peoples_ways_to_write_a_good_annotation_are_read(tmp_path: Path) -> None:
    square, runs = [1, 1, 4, 1, 4, 4, 1, 4], {"size": [10, 10], "counts": [11, 3, 7, 3, 7, 3, 66]}
    ways = [
        {"segmentation": [square]},
        {"segmentation": [square, [5, 5, 6, 6]]},  # a part of two points encloses nothing
        {"segmentation": [square, []]},
        {"segmentation": runs},
        {"segmentation": [runs]},
        {"segmentation": [square], "iscrowd": None},
        {"segmentation": [square], "iscrowd": "0"},
        {"segmentation": [square], "iscrowd": False},
        {"segmentation": [square], "id": None},
    ]
    truth = read_objects(tmp_path / "t.json", cats(*ways))
    _, *others = truth.objects("a.png")
    assert truth.left_out.notes() == []
    assert len(others) == len(ways)
    assert {(one.segmentation, one.is_crowd) for one in others} == {(rle.from_runs((10, 10), runs["counts"]), False)}


def test_one_name_of_several_ids_is_told(tmp_path: Path) -> None:
    document = cats({"category_id": 2}, categories=[{"id": 2, "name": "cat"}, {"id": 3, "name": "dog"}])
    truth = read_objects(tmp_path / "t.json", document)
    assert [one.category for one in truth.objects("a.png")] == ["cat", "cat"]
    assert truth.left_out.notes() == ["1 name of the truth has several ids, compared as one: cat"]
    document["categories"].append({"id": 3, "name": "cow"})
    truth = read_objects(tmp_path / "t.json", document)
    assert "several categories have one id: category 3 (one is 'dog')" in str(truth.left_out)


def test_notes_stay_few_however_many_entries_are_broken(tmp_path: Path) -> None:
    broken = ({"id": 10 + n, "segmentation": [[1] * (7 + 2 * n)]} for n in range(30))
    (note,) = read_objects(tmp_path / "t.json", cats(*broken)).left_out.notes()
    assert note.startswith("30 entries of the truth left out: cannot be read: annotation 10 of a.png")


def test_a_phrase_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    entries = [
        {"file_name": "a", "segmentation": {"size": [2, 2], "counts": [4]}, "phrase": "x"},
        {"file_name": "a", "segmentation": {"size": [2, 3], "counts": [6]}, "phrase": "y"},
    ]
    (tmp_path / "t.json").write_text(json.dumps(entries))
    truth = read_ground_truth(str(tmp_path / "t.json"))
    assert re.search(r"entry 1 \(its mask is 3 x 2 pixels, another of a 2 x 2", str(truth.left_out))
    with pytest.raises(SourceError, match="entry 1: cannot be read"):
        read_ground_truth(str(tmp_path / "t.json"), is_strict=True)


def test_a_list_of_phrases_may_have_one_a_line(tmp_path: Path) -> None:
    entries = [
        {"file_name": name, "segmentation": {"size": [2, 2], "counts": [2, 2]}, "phrase": "x"} for name in ("a", "b")
    ]
    (tmp_path / "t.jsonl").write_text("".join(f"{json.dumps(entry)}\n\n" for entry in entries))
    truth = read_ground_truth(str(tmp_path / "t.jsonl"))
    assert isinstance(truth, PhraseTruth)
    assert [phrase.file_name for phrase in truth.phrases] == ["a", "b"]
    (tmp_path / "t.jsonl").rename(tmp_path / "t.json")
    with pytest.raises(SourceError, match=r"not JSON: Extra data.*one a line in a file named \.jsonl"):
        read_ground_truth(str(tmp_path / "t.json"))


def test_an_image_listed_twice_with_its_segments_is_told_unless_one_map_has_them_all(tmp_path: Path) -> None:
    maps = {name: [("cat", box(0, 0, 4, 4), False), ("sky", box(0, 6, 9, 3), False)] for name in "abc"}
    path = Path(panoptic(tmp_path / "t.json", maps, {"cat": True, "sky": False}))
    document = json.loads(path.read_text())
    one, two, three = document["annotations"]
    # Of a the segments of one map are listed in two parts, of b there are two maps, of c two segments with one id.
    parts = [{**one, "segments_info": [segment]} for segment in one["segments_info"]]
    three["segments_info"].append({**three["segments_info"][0], "category_id": 2})
    document["annotations"] = [*parts, parts[0], two, {**two, "file_name": "a.png"}, three]
    path.write_text(json.dumps(document))
    truth = read_ground_truth(str(path))
    assert isinstance(truth, PanopticTruth)
    assert {name: [s.category for s in truth.segments(name) or ()] for name in truth.images} == {
        "a": ["cat", "sky"],
        "c": ["sky"],
    }
    assert truth.left_out.notes() == [
        "1 entry of the truth left out: several maps of one image: image 'b' (b.png, a.png)",
        "1 entry of the truth left out: several segments of one map have one id: segment 66305 of c (one is 'cat')",
    ]
    with pytest.raises(SourceError, match=r"image 'b': several maps of one image .*without --strict"):
        read_ground_truth(str(path), is_strict=True)


def test_an_empty_mask_has_the_size_of_its_image() -> None:
    assert read_mask([], (2, 3)) == read_mask(None, (2, 3)) == Rle((2, 3), "6")
