"""The images of exemplars are found by id, URI or path, fetched once, and refused by name where they cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import SourceError
from pipelines.images.decode import DecodeLimits
from pipelines.planning.exemplars import find
from pipelines.planning.exemplars.config import ExemplarConfig
from pipelines.planning.exemplars.find import Fetching, find_exemplars
from pipelines.sources.listing import list_batches
from tests.support.fakes import half_bright, png


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "photos" / name).write_bytes(png(half_bright(20)))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    return tmp_path / "photos"


def exemplar(image: str | Path, *coordinates: float, **more: Any) -> ExemplarConfig:
    box = coordinates or (1.0, 1.0, 5.0, 5.0)
    return ExemplarConfig(label="pallet", image=str(image), kind="box", coordinates=box, **more)


def found(photos: Path, *exemplars: ExemplarConfig, **fetching: Any) -> Any:
    return find_exemplars(exemplars, list_batches(str(photos)), Fetching(**fetching))


def test_an_image_is_named_by_its_id_or_where_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.png").write_bytes(png(half_bright(24)))
    monkeypatch.chdir(tmp_path)
    names = ("a.png", photos / "a.png", "other.png")
    frozen, images = found(photos, *map(exemplar, names))
    assert [one.uri for one in frozen] == [str(photos / "a.png")] * 2 + [str(tmp_path / "other.png")]
    assert [one.image for one in frozen] == list(map(str, names))
    assert {one.sha256 for one in frozen} == set(images)
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in images.items())
    assert len(images) == 2


def test_an_image_is_fetched_once_for_all_its_regions(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    real = find.fetch
    monkeypatch.setattr(find, "fetch", lambda ref, **options: fetched.append(ref.uri) or real(ref, **options))
    found(photos, exemplar("a.png"), exemplar("a.png", 2, 2, 4, 4), exemplar(photos / "a.png"))
    assert fetched == [str(photos / "a.png")]


def test_the_source_is_listed_only_as_far_as_needed() -> None:
    def listing() -> Iterator[pa.RecordBatch]:
        raise AssertionError("listed")
        yield

    with pytest.raises(SourceError, match="cannot be read"):
        find_exemplars([exemplar("/nowhere/a.png")], listing(), Fetching())


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            exemplar("c.png"),
            r"no image for the exemplars c.png: it is no image_id of the source, nor a file; .*'.*png'",
        ),
        (exemplar("broken.png"), r"the exemplar of 'pallet' in broken.png cannot be read \(not_an_image\)"),
        (exemplar("/nowhere/a.png"), r"the exemplar of 'pallet' in /nowhere/a.png cannot be read \(not_found\)"),
        (exemplar("a.png", 500, 500, 5, 5), "the exemplar of 'pallet' in a.png: box lies outside of its image"),
        (exemplar("https://example.org/a.png"), r"cannot be read \(not_allowed\)"),
    ],
)
def test_what_cannot_be_used_is_named(photos: Path, one: ExemplarConfig, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        found(photos, exemplar("a.png"), one)


def test_the_limits_of_images_hold_for_exemplars(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="too_many_pixels"):
        found(photos, exemplar("a.png"), decode=DecodeLimits(max_image_pixels=10))
    monkeypatch.setattr(find, "MAX_BYTES", 10)
    with pytest.raises(SourceError, match="more than 10 bytes"):
        found(photos, exemplar("a.png"))
