"""The file of a plan that keeps the images of its exemplars."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import DamagedError
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.exemplars.images import exemplar_file, exemplar_images, read_exemplar_file
from pipelines.planning.plan import Plan, write_plan
from pipelines.sources.image_batches import to_batches
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef

IMAGES = {hashlib.sha256(data).hexdigest(): data for data in (b"one", b"two" * 1000, b"\x00\xff")}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "output"))


def planned(store: Store, data: bytes | None) -> Plan:
    refs = [ImageRef(image_id="a.png", uri="/a.png")]
    with draft_plan(to_batches(refs), PlanConfig()) as draft:
        return write_plan(
            store, "run-1", replace(draft, exemplars=data), fingerprint={}, facts={}, driver_id="0a1b2c3d"
        )


def test_images_come_back_and_the_file_is_the_same_for_the_same_images() -> None:
    assert read_exemplar_file(exemplar_file(IMAGES)) == IMAGES
    assert exemplar_file(dict(reversed(IMAGES.items()))) == exemplar_file(IMAGES)


def test_a_plan_names_the_file_beside_its_parts(store: Store) -> None:
    plan = planned(store, exemplar_file(IMAGES))
    assert plan.exemplars in plan.files
    assert exemplar_images(store, plan) == IMAGES


def test_a_plan_without_exemplars_has_no_file(store: Store) -> None:
    plan = planned(store, None)
    assert plan.exemplars is None
    assert plan.files == plan.parts
    assert exemplar_images(store, plan) == {}


def test_another_image_than_the_plan_says_is_refused(store: Store) -> None:
    plan = planned(store, exemplar_file({**IMAGES, "ab" * 32: b"other"}))
    with pytest.raises(DamagedError, match="has another image"):
        exemplar_images(store, plan)


def test_a_file_that_is_gone_or_changed_is_refused(store: Store) -> None:
    plan = planned(store, exemplar_file(IMAGES))
    assert plan.exemplars is not None
    name = f"_runs/run-1/{plan.exemplars.name}"
    store.write(name, store.read(name) + b" ")
    with pytest.raises(DamagedError, match="SHA-256"):
        exemplar_images(store, plan)
    store.delete(name)
    with pytest.raises(DamagedError, match="missing"):
        exemplar_images(store, plan)
