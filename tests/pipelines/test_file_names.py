from __future__ import annotations

import io
import sys
from importlib.machinery import ModuleSpec

import pytest
from PIL import Image

from pipelines import file_names
from pipelines.file_names import LeftOut, is_clutter, readable_extensions, register_decoders


@pytest.mark.parametrize(
    "name",
    [
        "._a.jpg",
        "x/._a.jpg",
        ".ipynb_checkpoints/a-checkpoint.jpg",
        "x/.thumbnails/a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "__MACOSX/x/._a.jpg",
        "x/__MACOSX/a.jpg",
        "#recycle/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        ".@__thumb/a.jpg",
        "./.hidden/a.jpg",
    ],
)
def test_what_is_hidden_or_of_a_system_is_clutter(name: str) -> None:
    assert is_clutter(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "./a.jpg", "../a.jpg", "x/../a.jpg", "x.y/a.jpg", "_MG_0001.jpg", "eaDir/a.jpg", "a/#1.jpg"]
)
def test_names_that_only_resemble_clutter_are_not(name: str) -> None:
    assert not is_clutter(name)


def test_formats_that_are_not_read_are_named_and_the_rest_counted() -> None:
    left_out = LeftOut()
    for name in ["a.dcm", "b.DCM", "c.jp2", "d.txt", "noext", "x/.e.jpg", ".DS_Store", "y.nii.gz"]:
        left_out.add(name)
    assert left_out.formats == {".dcm": 2, ".jp2": 1, ".nii.gz": 1}
    assert (left_out.hidden, left_out.others) == (1, 3)
    assert "2 .dcm, 1 .jp2, 1 .nii.gz left out" in left_out.say()[0]
    assert LeftOut.from_dict(left_out.to_dict()) == left_out
    assert LeftOut.from_dict({**left_out.to_dict(), "of_a_later_version": 1}) == left_out


def test_more_formats_are_read_where_their_decoders_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, ModuleSpec] = {}
    monkeypatch.setattr(file_names, "find_spec", found.get)
    readable_extensions.cache_clear()
    try:
        assert ".heic" not in readable_extensions()
        found["pillow_heif"] = ModuleSpec("pillow_heif", None)
        readable_extensions.cache_clear()
        assert ".heic" in readable_extensions()
        assert ".jxl" not in readable_extensions()
    finally:
        readable_extensions.cache_clear()


def test_registered_decoders_open_their_formats() -> None:
    formats = register_decoders()
    assert ("HEIF" in formats) == (".heic" in readable_extensions())
    assert formats, "Pillow's wheels read AVIF"
    for name in formats:
        data = io.BytesIO()
        Image.new("RGB", (64, 32), (255, 0, 0)).save(data, name)
        with Image.open(data, formats=[name]) as opened:
            red = opened.convert("RGB").getpixel((10, 10))
        assert red[0] > 200 > 60 > red[1]
    assert "pillow_heif" in sys.modules or "HEIF" not in formats
