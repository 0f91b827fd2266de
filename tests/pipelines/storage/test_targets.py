"""Where results go: disk and object store alike, whole or not at all, and nothing that is not a result is replaced."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.errors import StorageError
from pipelines.storage.targets import open_target


@pytest.fixture(params=["disk", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "disk" else f"memory://{uuid.uuid4().hex}"


def contents(root: str) -> dict[str, str]:
    fs, path = fsspec.core.url_to_fs(root)
    return {name.removeprefix(path).lstrip("/"): fs.cat_file(name).decode() for name in fs.find(path)}


def write(uri: str, files: dict[str, str] | str, **options: Any) -> None:
    target = open_target(uri, **options)
    with target.place() as place:
        whole = place / "whole"
        if isinstance(files, str):
            whole.write_text(files)
        else:
            for name, text in files.items():
                (whole / name).parent.mkdir(parents=True, exist_ok=True)
                (whole / name).write_text(text)
        target.publish(whole)


def test_files_and_folders_are_written_with_the_folders_that_are_missing(root: str) -> None:
    write(f"{root}/a/b/c.json", "{}")
    write(f"{root}/a/folder", {"index.json": "1", "deep/er/x.txt": "2"})
    assert contents(root) == {"a/b/c.json": "{}", "a/folder/index.json": "1", "a/folder/deep/er/x.txt": "2"}


def test_what_is_there_is_replaced_on_request_alone(root: str) -> None:
    write(f"{root}/c.json", "old")
    write(f"{root}/folder", {"index.json": "old", "labels/stale.txt": "old"})
    before = contents(root)
    for name, new in (("c.json", "new"), ("folder", {"index.json": "new"})):
        with pytest.raises(StorageError, match="exists already; name a new one, remove it, or add --overwrite"):
            write(f"{root}/{name}", new, replaces=["index*.json", "labels"])
        assert contents(root) == before
    write(f"{root}/c.json", "new", overwrite=True)
    write(f"{root}/folder", {"index.json": "new"}, overwrite=True, replaces=["index*.json", "labels"])
    assert contents(root) == {"c.json": "new", "folder/index.json": "new"}


def test_a_folder_that_holds_something_else_is_never_replaced(root: str) -> None:
    write(f"{root}/home", {"index.json": "old", "thesis.tex": "mine"})
    before = contents(root)
    with pytest.raises(StorageError, match=r"home holds thesis.tex, which is no part of such a result"):
        write(f"{root}/home", {"index.json": "new"}, overwrite=True, replaces=["index.json"])
    # What --overwrite would refuse is not offered.
    with pytest.raises(StorageError, match=r"exists already, and holds thesis.tex.*; name a new one$"):
        write(f"{root}/home", {"index.json": "new"}, replaces=["index.json"])
    write(f"{root}/out", {"_runs/plan.json": "{}", "images/a.parquet": ""})
    before = contents(root)
    for overwrite in (False, True):
        with pytest.raises(
            StorageError, match=r"out is an output of runs, which nothing replaces; name another place$"
        ):
            write(f"{root}/out", {"index.json": "new"}, overwrite=overwrite, replaces=["*"])
    assert contents(root) == before


def test_an_error_leaves_neither_the_result_nor_the_folders_made_for_it(root: str) -> None:
    target = open_target(f"{root}/a/b/c.json")
    with pytest.raises(ZeroDivisionError), target.place() as place:
        (place / "whole").write_text(str(1 / 0))
    assert contents(root) == {}
    assert not (Path(root) / "a").exists()


def test_what_was_made_meanwhile_is_left_as_it_is(root: str) -> None:
    target = open_target(f"{root}/c.json")
    with target.place() as place:
        (place / "whole").write_text("ours")
        write(f"{root}/c.json", "theirs")
        with pytest.raises(StorageError, match="made by another meanwhile"):
            target.publish(place / "whole")
    assert contents(root) == {"c.json": "theirs"}


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://datasets/a/b", "nothing can be written to hf://"),
        ("https://host/a", "only images that a list or table names are fetched"),
        ("gibberish://x", "not supported"),
        ("s3://bkt/a//b.json", "an empty folder name"),
        ("memory://out/annotations/x.json", "inside the table's own folder memory://out/annotations"),
        ("memory://out/_runs", "inside the table's own folder"),
    ],
)
def test_what_is_no_place_to_write_is_refused(uri: str, words: str) -> None:
    with pytest.raises(StorageError, match=words):
        open_target(uri, output="memory://out/")


def test_a_file_in_place_of_a_parent_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(StorageError, match=r"a is no folder and cannot be made one"):
        write(str(tmp_path / "a" / "c.json"), "{}")
    assert (tmp_path / "a").read_text() == "mine"
