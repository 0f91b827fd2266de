from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.errors import PlanError, SourceError
from pipelines.planning.draft import PlanConfig, plan_shards
from pipelines.sources.fetch import FetchError
from pipelines.sources.listing import list_images
from pipelines.types import ImageRef, Reason
from tests.support.containers import content, listed, tar_bytes, write_tar


def test_images_of_a_tar_are_named_by_their_keys_and_carry_what_describes_them(tmp_path: Path) -> None:
    members = {
        "0001.jpg": b"one",
        "0001.json": b'{"uid": "u1", "size": [3, 4]}',
        "0001.txt": "a dög\n".encode(),
        "0001.cls": b"7",
        "sub.dir/0002.txt": b"before its image",
        "sub.dir/0002.PNG": b"two",
        "0003.txt": b"no image",
    }
    refs = listed(write_tar(tmp_path / "a.tar", members))
    assert list(refs) == ["0001", "sub.dir/0002"]
    assert [content(ref) for ref in refs.values()] == [b"one", b"two"]
    assert [ref.num_bytes for ref in refs.values()] == [3, 3]
    assert json.loads(refs["0001"].source_columns or "") == {
        "cls": 7,
        "json": {"size": [3, 4], "uid": "u1"},
        "txt": "a dög\n",
    }
    assert json.loads(refs["sub.dir/0002"].source_columns or "") == {"txt": "before its image"}


def test_several_images_of_a_sample_keep_the_rest_of_their_names(tmp_path: Path) -> None:
    members = {"1.left.jpg": b"l", "1.right.jpg": b"r", "2.left.jpg": b"x"}
    refs = listed(write_tar(tmp_path / "a.tar", members))
    assert {name: content(ref) for name, ref in refs.items()} == {"1.left.jpg": b"l", "1.right.jpg": b"r", "2": b"x"}


def test_what_is_no_sample_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.txt", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            tar.addfile(member)
        for name in ("__meta.jpg__", "._1.jpg", "noext", "1.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"data"))
    assert list(listed(path)) == ["1"]


def test_descriptions_that_are_long_or_broken_never_stop_a_listing(tmp_path: Path) -> None:
    members = {
        "1.jpg": b"1",
        "1.txt": b"x" * (2**16 + 1),
        "1.json": b"{broken",
        "1.cls": b"\xff\xfe",
        "2.jpg": b"2",
        "2.json": b'"\\ud800"',
    }
    refs = listed(write_tar(tmp_path / "a.tar", members))
    assert json.loads(refs["1"].source_columns or "") == {"json": "{broken"}
    assert json.loads(refs["2"].source_columns or "") == {"json": '"\\ud800"'}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_format(tmp_path: Path, format: int) -> None:
    long = "/".join(["folder" * 5] * (4 if format == tarfile.USTAR_FORMAT else 40)) + "/ä"
    members = {f"{long}{number}.jpg": f"image {number}".encode() for number in range(3)}
    refs = listed(write_tar(tmp_path / "a.tar", members, format=format))
    assert {f"{name}.jpg": content(ref) for name, ref in refs.items()} == members


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0./\\"), min_size=1, max_size=120)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(_NAMES, st.binary(max_size=3000), min_size=1, max_size=12),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_fetched_bytes_are_exactly_the_members(tmp_path: Path, files: dict[str, bytes], format: int) -> None:
    members = {f"{name}.jpg": data for name, data in files.items() if not name.startswith("__")}
    if not members:
        return
    path = write_tar(tmp_path / "odd #offset=1&size=2.tar", members, format=format)
    assert {f"{name}.jpg": content(ref) for name, ref in listed(path).items()} == members


def test_folders_globs_and_numbers_name_several_tars(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"set/shard-{number:03d}.tar", {f"{number:03d}-{i}.jpg": b"x" for i in range(2)})
    every = [f"{number:03d}-{i}" for number in range(12) for i in range(2)]
    assert list(listed(tmp_path / "set")) == every
    assert list(listed(tmp_path / "set/*.tar")) == every
    assert list(listed(tmp_path / "set/shard-{000..011}.tar")) == every
    assert list(listed(tmp_path / "*/shard-{002,010}.tar")) == every[4:6] + every[20:22]
    with pytest.raises(SourceError, match=r"2 of the 14 files that it names are not there: shard-012.tar, shard-013"):
        listed(tmp_path / "set/shard-{000..013}.tar")
    with pytest.raises(SourceError, match="more than 100,000 names"):
        listed(tmp_path / "set/shard-{0..99999999999}.tar")


def test_keys_that_occur_in_two_tars_are_refused_unless_the_tar_is_part_of_the_id(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": b"x", "0.json": json.dumps({"uid": f"{name}0"}).encode()})
    with pytest.raises(PlanError, match=r"'0' stands for both .*a\.tar.*b\.tar.*ids must be unique"):
        plan_shards(list_images(str(tmp_path)), PlanConfig())
    assert list(listed(tmp_path, image_id_column="__path__")) == ["a/0", "b/0"]
    assert list(listed(tmp_path, image_id_column="uid")) == ["a0", "b0"]
    with pytest.raises(SourceError, match=r"sample '0' has no field 'nix' in its \.json.*__key__ or __path__"):
        listed(tmp_path, image_id_column="nix")


def test_an_image_counts_as_changed_when_its_tar_has_changed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"one", "2.jpg": b"two"})
    before = listed(path)
    assert listed(path) == before
    os.utime(path, ns=(1, 1))
    after = listed(path)
    assert all(before[name].etag != after[name].etag for name in before)
    assert len({ref.etag for ref in after.values()}) == 2


@pytest.mark.parametrize("new", [{"9.jpg": b"one", "2.jpg": b"two"}, {"1.jpg": b"onetwo"}, {}])
def test_a_tar_that_was_written_anew_gives_no_image_under_a_wrong_id(tmp_path: Path, new: dict[str, bytes]) -> None:
    path = write_tar(tmp_path / "a.tar", {"1.jpg": b"one"})
    ref = listed(path)["1"]
    write_tar(path, new)
    with pytest.raises(FetchError, match="has changed since it was listed") as caught:
        content(ref)
    assert caught.value.reason == Reason.FETCH_FAILED
    path.unlink()
    with pytest.raises(FetchError) as caught:
        content(ref)
    assert caught.value.reason == Reason.NOT_FOUND


WHOLE = tar_bytes({f"{number}.jpg": bytes(700) for number in range(5)})
MEMBERS_END = 5 * (512 + 1024)


@pytest.mark.parametrize("size", [100, 512, 700, 1100, 1536, 2 * 1536, 2 * 1536 + 200, MEMBERS_END, MEMBERS_END + 100])
def test_a_tar_that_is_cut_short_anywhere_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(WHOLE[:size])
    with pytest.raises(SourceError, match=r"a\.tar: (cut short|not a readable tar)"):
        listed(path)


def test_a_tar_that_is_broken_in_the_middle_is_refused_not_silently_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(WHOLE[: 2 * 1536] + b"\xaa" * 512 + WHOLE[2 * 1536 + 512 :])
    with pytest.raises(SourceError, match=r"a\.tar: broken at byte 3,072"):
        listed(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_compressed_tar_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(WHOLE))
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(SourceError, match=r"compressed with \w+, so that .* unpack it to a plain \.tar"):
            listed(source)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_image_that_is_a_link_is_refused_never_left_out(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("2.jpg")
        member.type, member.linkname = kind, "1.jpg"
        tar.addfile(member)
    with pytest.raises(SourceError, match=r"'2\.jpg' is a link .* --dereference"):
        listed(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "not a readable tar: empty file", id="empty"),
        pytest.param(b"<html>" * 500, "not a readable tar", id="html"),
        pytest.param(tar_bytes({"a.txt": b"x"}), r"no images found inside it", id="no-images"),
        pytest.param(tar_bytes({}), r"no images found inside it", id="no-members"),
    ],
)
def test_a_tar_without_images_says_so(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=rf"a\.tar: {message}"):
        listed(tmp_path / "a.tar")


def test_a_folder_of_image_files_and_tars_with_images_is_refused_with_how_to_say_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    write_tar(tmp_path / "notes.tar", {"readme.txt": b"no image"})
    assert list(listed(tmp_path)) == ["a.jpg"]
    write_tar(tmp_path / "b.tar", {"1.jpg": b"x"})
    (tmp_path / "notes.tar").unlink()
    with pytest.raises(SourceError, match=r"holds image files, and 1 \.tar file .*\*\*/\*\.tar"):
        listed(tmp_path)
    assert list(listed(f"{tmp_path}/**/*.tar")) == ["1"]
    assert list(listed(f"{tmp_path}/**/*.{{jpg,png}}")) == ["a.jpg"]


def test_a_listed_place_may_stand_in_a_list_and_a_real_name_that_looks_like_one_can_be_said(tmp_path: Path) -> None:
    ref = listed(write_tar(tmp_path / "a.tar", {"1.jpg": b"one"}))["1"]
    odd = tmp_path / "raw#offset=1&size=2"
    odd.write_bytes(b"0123456789")
    (tmp_path / "list.txt").write_text(f"{ref.uri}\n{odd}\n{odd}#whole\n")
    first, _, whole = list_images(str(tmp_path / "list.txt"))
    assert (content(first), content(whole)) == (b"one", b"0123456789")
    assert content(ImageRef(image_id="x", uri=f"{odd}#whole")) == b"0123456789"
    assert content(ImageRef(image_id="x", uri=f"{odd}#offset=3&size=4")) == b"3456"


def test_memory_does_not_grow_with_a_tars_members(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write_tar(tmp_path / f"{count}.tar", {f"{number:05d}.jpg": b"x" for number in range(count)})
        refs = list_images(str(path))
        next(refs)
        tracemalloc.start()
        try:
            for _ in refs:
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2000) < 2 * peak(100) + 100_000
