from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SourceError
from pipelines.sources.listing import list_images
from tests.support.containers import content, listed

IMAGES = [
    {"id": 9, "file_name": "a 1.jpg", "width": 4, "height": 3, "date_captured": None},
    {"id": 2, "file_name": "sub/b.jpg", "score": 0.5},
]


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
def test_images_of_a_coco_file_are_named_by_file_name_and_carry_their_number(tmp_path: Path, order) -> None:
    parts = {"images": IMAGES, "annotations": [{"id": 1, "image_id": 9, "segmentation": [[1, 2.5]], "images": [3]}]}
    path = write(tmp_path / "instances.json", {name: parts[name] for name in order})
    (tmp_path / "a 1.jpg").write_bytes(b"one")
    first, second = list_images(str(path))
    assert (first.image_id, second.image_id) == ("a 1.jpg", "sub/b.jpg")
    assert (content(first), second.uri) == (b"one", str(tmp_path / "sub/b.jpg"))
    assert (first.source_columns, second.source_columns) == (
        '{"height": 3, "id": 9, "width": 4}',
        '{"id": 2, "score": 0.5}',
    )


def test_images_may_lie_in_another_folder_than_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "annotations/instances.json", {"images": IMAGES})
    root = str(tmp_path / "train")
    assert listed(path, image_root=root)["a 1.jpg"].uri == str(tmp_path / "train/a 1.jpg")
    assert listed(path, image_root="s3://b/train/")["sub/b.jpg"].uri == "s3://b/train/sub/b.jpg"
    (tmp_path / "list.txt").write_text("x.jpg\n/abs/y.jpg\n")
    assert [ref.uri for ref in list_images(str(tmp_path / "list.txt"), image_root=root)] == [
        str(tmp_path / "train/x.jpg"),
        "/abs/y.jpg",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{}", r'no images found: a COCO file is an object with a list "images"', id="no-images"),
        pytest.param('{"images": []}', "no images found", id="empty-list"),
        pytest.param('{"images": {"a": 1}}', "no images found", id="images-no-list"),
        pytest.param('[{"file_name": "a.jpg"}]', "no images found: a COCO file is an object", id="a-list"),
        pytest.param('{"images": [{"id": 1}]}', r"image 0 \(from 0\) has no file_name", id="no-file-name"),
        pytest.param('{"images": [{"file_name": "a"}, 3]}', r"image 1 \(from 0\) has no file_name", id="no-object"),
        pytest.param('{"images": [{"file_name": "a"}', "not a whole JSON document", id="cut-short"),
        pytest.param('{"images": [{"file_name": "a"}]', "not a whole JSON document", id="cut-short-behind"),
        pytest.param('{"file_name": "a"}\n{"file_name": "b"}\n', "name it .jsonl", id="json-lines"),
        pytest.param("", "not a whole JSON document", id="empty"),
        pytest.param("<html>", "not a whole JSON document", id="html"),
        pytest.param(
            '{"images": [{"file_name": "https://h/a.jpg?X-Amz-Signature=x"}]}',
            "image 0 .*a signature or token",
            id="sign",
        ),
    ],
)
def test_what_is_no_coco_file_says_so(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SourceError, match=rf"a\.json: .*{message}"):
        listed(tmp_path / "a.json")


def test_a_file_that_is_not_text_or_not_there_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not found"):
        listed(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"images": [{"file_name": "caf\xe9"}]}')
    with pytest.raises(SourceError, match="not a whole JSON document"):
        listed(tmp_path / "a.json")
