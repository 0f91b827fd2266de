"""Files named after images: whatever an image id is, they stay in their folder, and each image has its own."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import unicodedata
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.export.formats.file_names import FileNames
from pipelines.export.write import Choice, export_output
from tests.support.labeled import box, mask, named, write_output

(CAT,) = named("ovseg", "cat")
(SKY,) = named("ovseg_panoptic", "sky")
ODD = (
    *("../../outside.jpg", "/etc/outside.jpg", "C:\\outside.jpg", "a/../../../b.jpg", "..", ".", "", "~root", "a//b"),
    *("line\nbreak\ttab", "\x1b]0;title\x07", "\u202egnp.exe", "nul\0nul", ".hidden", "-rf", "images/labels/x.jpg"),
    *("x" * 2000, "/".join("y" * 100 for _ in range(30)), "ü" * 300, "' OR 1=1 --", "ünï—☃.jpg", "<&\">.jpg"),
    *("same.jpg", "same.png", "same", "dir.txt/inside.jpg", "dir.jpg", "a b.jpg", "trailing. ", "{braces}%s.jpg"),
)  # fmt: skip
IDS = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=40), st.text("./\\ab\0 ~", max_size=12), st.sampled_from(ODD)
    ),
    unique=True,
    max_size=12,
)


@settings(deadline=None, max_examples=100)
@given(image_ids=IDS, is_flat=st.booleans())
@example(image_ids=list(ODD), is_flat=False)
@example(image_ids=list(ODD), is_flat=True)
@pytest.mark.slow
def test_every_image_gets_a_file_of_its_own_inside_the_folder(image_ids: list[str], is_flat: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        names = FileNames(folder, ".txt", reserved=("images",), is_flat=is_flat)
        paths = [names.new_file(name) for name in image_ids]
        assert len({unicodedata.normalize("NFC", str(path)).casefold() for path in paths}) == len(image_ids)
        for path in paths:
            assert path.is_file()
            assert path.suffix == ".txt"
            parts = path.relative_to(folder).parts
            assert len(parts) == 1 or not is_flat
            assert ".." not in parts
            assert path.resolve().is_relative_to(folder.resolve())
            assert "images" not in parts[:-1]
            assert all(unicodedata.category(char)[0] != "C" for part in parts for char in part)
            assert all(not part.startswith((".", "-")) and len(part.encode()) <= 200 for part in parts)
        written = {path for path in Path(temporary).rglob("*") if path.is_file()}
        assert written == set(paths)


def test_names_that_are_harmless_are_kept(tmp_path: Path) -> None:
    names = FileNames(tmp_path, ".png")
    for name in ("cats/2026-11-26/IMG_0001.jpg", "ünï—☃.jpg", "a b.tar.jpg", "no suffix"):
        stem = name.rpartition(".")[0] or name
        assert names.new_file(name) == tmp_path / f"{stem}.png"


def test_names_do_not_depend_on_the_machine(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        files = FileNames(folder, ".txt")
        names.append([files.new_file(name).relative_to(folder) for name in ODD])
    assert names[0] == names[1]
    digest = hashlib.sha256(b"same.png").hexdigest()[:16]
    assert names[0][ODD.index("same.png")] == Path(f"same-{digest}.txt")


def test_names_can_be_copied_to_windows_and_macos(tmp_path: Path) -> None:
    files = FileNames(tmp_path, ".txt", is_flat=True)
    ids = ("CON.jpg", "aux.jpg", "nul.v2.jpg", "COM1", "com\u00b9.jpg", "console.jpg", "prn/aux/x.jpg")
    assert [files.new_file(name).name for name in ids] == [
        "_CON.txt", "_aux.txt", "_nul.v2.txt", "_COM1.txt", "_com\u00b9.txt", "console.txt", "prn_aux_x.txt"
    ]  # fmt: skip
    twins = (
        "Photo.jpg",
        "photo.jpg",
        "caf\u00e9.jpg",
        "cafe\u0301.jpg",
        "a/b.jpg",
        "a_b.jpg",
        "STRASSE.jpg",
        "straße.jpg",
    )
    names = [files.new_file(name).name for name in twins]
    assert [name for name in names[::2] if "-" in name] == []
    assert all("-" in name for name in names[1::2])
    nested = FileNames(tmp_path, ".png")
    assert nested.new_file("aux/con/a.jpg") == tmp_path / "_aux" / "_con" / "a.png"


@pytest.mark.parametrize("format_name", ["coco", "yolo", "panoptic", "label-studio", "cvat"])
def test_odd_image_ids_lead_no_export_out_of_its_folder(tmp_path: Path, format_name: str) -> None:
    prompt = SKY if format_name == "panoptic" else CAT
    odd = [name for name in ODD if name]
    found = {name: [mask(prompt, box(0, 0, 3, 3))] for name in odd}
    uris = dict.fromkeys(odd, "s3://photos/a.jpg")  # none that a folder of this machine lacks
    store, _ = write_output(tmp_path / "in" / "deep" / "output", found, common=[prompt], uris=uris)
    place = tmp_path / "in" / "deep"
    before = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    export_output(store, str(place / "export"), format_name, Choice())
    written = {path for path in tmp_path.rglob("*") if not path.is_dir()} - before
    assert all(path.is_relative_to(place / "export") for path in written)
    assert all(unicodedata.category(char)[0] != "C" for path in written for char in str(path))
    if format_name in ("yolo", "panoptic"):
        suffix = {"yolo": ".txt", "panoptic": ".png"}[format_name]
        assert sum(path.suffix == suffix for path in written) == len(odd)
    if format_name == "panoptic":
        document = json.loads((place / "export" / "panoptic.json").read_text())
        names = [entry["file_name"] for entry in document["annotations"]]
        assert all((place / "export" / "panoptic" / name).is_file() for name in names)
    if format_name == "coco":
        document = json.loads((place / "export" / "instances.json").read_text())
        assert sorted(image["file_name"] for image in document["images"]) == sorted(odd)
    if format_name == "cvat":
        images = ElementTree.parse(place / "export" / "annotations.xml").getroot().findall("image")
        kept = [name for name in odd if not re.search("[\0-\x1f]", name)]
        assert {image.get("name") for image in images} >= set(kept)
        assert len(images) == len(odd)
