"""A file or folder appears whole, in place of nothing else, and leaves nothing behind when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import StorageError
from pipelines.storage.local_files import publish, temporary_beside
from pipelines.storage.targets import Target, write_target


def test_a_file_is_written_under_its_name_alone(tmp_path: Path) -> None:
    write_target(Target(str(tmp_path / "new.json")), b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]
    assert (tmp_path / "new.json").read_bytes() == b"{}"


def test_what_has_the_name_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("theirs")
    with pytest.raises(StorageError, match="made by another meanwhile"):
        write_target(Target(str(target)), b"ours")
    assert target.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    write_target(Target(str(target), overwrite=True), b"new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_takes_the_place_of_nothing(tmp_path: Path) -> None:
    target = tmp_path / "plots"
    target.mkdir()
    with temporary_beside(target) as place:
        (place / "whole").mkdir()
        with pytest.raises(StorageError, match="made by another meanwhile"):
            publish(place / "whole", target)
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_is_left_of_what_could_not_be_finished(tmp_path: Path) -> None:
    def write_half() -> None:
        with temporary_beside(tmp_path / "table.parquet") as place:
            (place / "half").write_bytes(b"...")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"missing/new.json cannot be written"),
        temporary_beside(tmp_path / "missing" / "new.json"),
    ):
        pass
