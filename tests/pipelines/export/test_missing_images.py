"""An export that copies images goes on without those that are not there any more, and counts them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import StorageError
from pipelines.export.write import Choice, export_output
from tests.support.fakes import half_bright, png
from tests.support.labeled import box, mask, named, write_output

(CAT,) = named("ovseg", "cat")
FOUND = {name: [mask(CAT, box(0, 0, 2, 2))] for name in ("here.png", "below/gone.png")}


def test_images_that_are_gone_are_left_out_with_their_labels_and_counted(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(png(half_bright()))
    store, _ = write_output(tmp_path / "output", FOUND, common=[CAT], pictures=tmp_path)
    export = export_output(store, str(tmp_path / "yolo"), "yolo", Choice(copy_images=True))
    files = {path.name for path in (tmp_path / "yolo").rglob("*") if path.is_file()}
    assert files >= {"here.png", "here.txt", "data.yaml"}
    assert not [name for name in files if name.startswith("gone")]
    assert any("1 image is not there any more" in note for note in export.notes)
    assert (export.num_images, export.num_masks) == ({"": 1}, {"": 1})
    assert "gone.png" not in (tmp_path / "yolo" / "images.csv").read_text()


def test_links_are_made_to_images_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(png(half_bright()))
    elsewhere = str(tmp_path / "disk of another machine" / "far.png")
    gone = str(tmp_path / "gone.png")
    found = dict.fromkeys(("here.png", "gone.png", "far.png"), FOUND["here.png"])
    uris = {"here.png": str(tmp_path / "here.png"), "gone.png": gone, "far.png": elsewhere}
    store, _ = write_output(tmp_path / "output", found, common=[CAT], uris=uris)
    export = export_output(store, str(tmp_path / "yolo"), "yolo", Choice())
    files = {path.name for path in (tmp_path / "yolo").rglob("*")}
    assert files >= {"here.png", "here.txt", "far.txt", "images_to_fetch.csv"}
    assert not [name for name in files if name.startswith("gone")]
    assert any("1 image is not there any more: left out" in note for note in export.notes)
    for name in ("images.csv", "images_to_fetch.csv"):
        assert "gone.png" not in (tmp_path / "yolo" / name).read_text()
    assert elsewhere in (tmp_path / "yolo" / "images_to_fetch.csv").read_text()


def test_images_that_may_not_be_read_still_end_it(tmp_path: Path) -> None:
    store, _ = write_output(tmp_path / "output", FOUND, common=[CAT], uris={"here.png": "ftp://host/here.png"})
    with pytest.raises(StorageError, match=r"here\.png cannot be copied"):
        export_output(store, str(tmp_path / "yolo"), "yolo", Choice(copy_images=True))
