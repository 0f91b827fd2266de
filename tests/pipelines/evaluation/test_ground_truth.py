"""What is no ground truth, and what is broken in one that is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import SourceError
from pipelines.evaluation.ground_truth import InstanceTruth, read_ground_truth, read_mask
from pipelines.types import Rle
from tests.support.truth_files import instances


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not found"),
        ("{", "not JSON"),
        ('{"a": 1}', "not a ground truth of a known form"),
        ("3", "not a ground truth of a known form"),
        ("[]", "the list is empty"),
        ('{"annotations": []}', "has no 'images'"),
        ('{"annotations": [], "images": [], "categories": []}', "holds no annotations"),
        ('{"annotations": [{"id": 7, "image_id": 1}], "images": [], "categories": []}', "annotation 7 has no 1"),
        ('{"annotations": [5], "images": [], "categories": []}', "annotations are no objects"),
        ('[{"file_name": "a", "segmentation": [[1, 1, 2, 2, 3, 1]], "phrase": "x"}]', "entry 0: .*height and width"),
        ('[{"file_name": "a", "segmentation": {"size": [2, 2], "counts": [4]}}]', "either phrase or prompt_id"),
        ('[{"file_name": "a", "segmentation": {"size": [2, 2], "counts": [3]}, "phrase": "x"}]', "entry 0.*cover 3"),
        ('[{"file_name": "a", "task": "chat", "phrase": "x"}]', "task 'chat' is none of refseg"),
        ('[{"task": "refseg", "phrase": "x", "segmentation": {"size": [2, 2], "counts": [4]}}]', "no 'file_name'"),
        (
            '[{"file_name": "a", "segmentation": {"size": [2, 2], "counts": [4]}, "phrase": "x"},'
            '{"file_name": "a", "segmentation": {"size": [2, 3], "counts": [6]}, "phrase": "y"}]',
            "entry 1: its mask is 3 x 2 pixels, another of a 2 x 2",
        ),
    ],
)
def test_files_that_are_no_truth(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "truth.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SourceError, match=words) as refused:
        read_ground_truth(str(path))
    assert str(path) in str(refused.value)


def test_a_broken_mask_names_its_annotation(tmp_path: Path) -> None:
    for segmentation, words in (
        ({"size": [10, 10], "counts": "~"}, "outside '0' to 'o'"),
        ({"size": [5, 5], "counts": [25]}, "5 x 5 pixels, but its image 10 x 10"),
        ([[1, 1, 2, 2]], "at least three x, y"),
        ("polygon", "at least three x, y"),
    ):
        truth = read_ground_truth(instances(tmp_path / "t.json", {"a.png": [("cat", segmentation)]}))
        assert isinstance(truth, InstanceTruth)
        with pytest.raises(SourceError, match=f"annotation 1 of a.png: .*{words}"):
            truth.objects("a.png")


def test_an_empty_mask_has_the_size_of_its_image() -> None:
    assert read_mask([], (2, 3)) == read_mask(None, (2, 3)) == Rle((2, 3), "6")
