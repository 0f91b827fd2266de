from __future__ import annotations

import io

import pytest
from PIL import Image

from pipelines import image_formats
from pipelines.image_formats import (
    LeftOut,
    is_clutter,
    optional_decoder,
    readable_extensions,
    registered_formats,
)


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
    names = [
        "a.dcm",
        "b.DCM",
        "c.jp2",
        "d.txt",
        "no.ext/IMG1",
        "x/.e.jpg",
        ".DS_Store",
        "y.nii.gz",
        "f.jpg_large",
        "g.png~",
    ]
    for name in names:
        left_out.add(name)
    assert left_out.formats == {".dcm": 2, ".jp2": 1, ".nii.gz": 1, ".jpg_large": 1, ".png~": 1}
    assert (left_out.hidden, left_out.nameless, left_out.others, left_out.num_others) == (1, 1, 2, 9)
    assert "2 .dcm, 1 .jp2, 1 .nii.gz, 1 .jpg_large, 1 .png~ left out" in left_out.say()[0]
    assert "1 file without an extension left out" in " ".join(left_out.say())
    assert LeftOut.from_dict(left_out.to_dict()) == left_out
    assert LeftOut.from_dict({**left_out.to_dict(), "of_a_later_version": 1}) == left_out


def test_more_formats_are_read_where_their_decoders_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = (readable_extensions, registered_formats)
    try:
        for is_installed in (True, False):
            monkeypatch.setattr(image_formats, "find_spec", lambda _name, found=is_installed: found or None)
            for one in cached:
                one.cache_clear()
            left_out = LeftOut()
            left_out.add("a.HEIC")
            left_out.add("a.jxl")
            assert (".heic" in readable_extensions()) == is_installed == ("HEIF" in registered_formats())
            assert (".jxl" in readable_extensions()) == is_installed
            assert left_out.formats == ({} if is_installed else {".heic": 1, ".jxl": 1})
            assert ("xsam-label[pictures]' reads HEIC and JPEG XL" in "".join(left_out.say())) != is_installed
    finally:
        for one in cached:
            one.cache_clear()


@pytest.mark.parametrize("name", sorted(registered_formats()))
def test_files_of_further_formats_are_told_by_their_first_bytes(name: str) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 32), (255, 0, 0)).save(data, name)
    plugin = optional_decoder(data.getvalue())
    with plugin(io.BytesIO(data.getvalue())) as opened:
        assert (opened.format, opened.size) == (name, (64, 32))
        red = opened.convert("RGB").getpixel((10, 10))
    assert red[0] > 200 > 60 > red[1]


def test_other_files_have_no_further_decoder() -> None:
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")
    for start in (data.getvalue(), b"", b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", b"\xff\xff\xff\xffftyp"):
        assert optional_decoder(start) is None
