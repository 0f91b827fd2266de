"""A region of one image is asked of a collection: from the config to rows, in a plan that needs its image no more."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.predictor.predictor import XSamPredictor
from flows.config import ConfigError, RunConfig
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.retry import retry_configs
from pipelines.errors import SourceError
from pipelines.planning.exemplars.images import exemplar_images
from pipelines.planning.plan import require_plan
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from pipelines.table.leftovers import vacuum
from pipelines.table.verify import verify
from tests.flows.conftest import MakeConfig, photograph, write_photographs
from xsam_model.segmenter import XSamSegmenter

pytestmark = pytest.mark.timeout(180)

BOX: dict[str, Any] = {"label": "thing", "image": "000.png", "kind": "box", "coordinates": [5, 5, 20, 20]}
NAMES = ("000.png", "002.png", "more/001.JPG", "more/003.JPG")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos", 4)


@pytest.fixture
def with_exemplars(make_config: MakeConfig, source: Path) -> Callable[..., RunConfig]:
    def make(*exemplars: dict[str, Any], **tables: Any) -> RunConfig:
        model = {"min_score": 0.0}
        return make_config(
            **{"source": str(source), "categories": [], "exemplars": list(exemplars), "model": model, **tables}
        )

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The numbers of images of each pass of the encoders."""
    counts: list[tuple[int, ...]] = []
    real = XSamSegmenter.encode

    def counting(self: XSamSegmenter, images: Sequence[Any], **options: Any) -> Any:
        counts.append((len(images),))
        return real(self, images, **options)

    monkeypatch.setattr(XSamSegmenter, "encode", counting)
    return counts


def label(config: RunConfig) -> Any:
    return engine.run_directly(config, Silent())


def sql(config: RunConfig, query: str) -> list[tuple[Any, ...]]:
    return open_database(open_store(config.output.uri)).sql(query).fetchall()


def masks(config: RunConfig) -> list[tuple[Any, ...]]:
    columns = "image_id, prompt_id, task, prompt, category_name, score, segmentation.counts"
    return sql(config, f"SELECT {columns} FROM annotations ORDER BY ALL")


def test_a_region_of_one_image_is_asked_of_every_image(
    with_exemplars: Callable[..., RunConfig], encoded: list[tuple[int, ...]]
) -> None:
    config = with_exemplars(BOX, {**BOX, "image": "more/001.JPG"}, {**BOX, "label": "other"})
    summary = label(config)
    assert summary.ok
    # Two images of exemplars, each once for all regions of it and all shards; then two shards of two images.
    assert encoded == [(1,), (1,), (2,), (2,)]
    rows = masks(config)
    assert {row[0] for row in rows} == set(NAMES)
    assert {row[1:5] for row in rows} == {
        ("vgdseg:thing", "vgdseg", "thing", "thing"), ("vgdseg:other", "vgdseg", "other", "other"),
    }  # fmt: skip
    asked = sql(config, "SELECT DISTINCT list_sort(list_transform(per_prompt, lambda p: p.prompt_id)) FROM images")
    assert asked == [(["vgdseg:other", "vgdseg:thing"],)]
    assert verify(open_store(config.output.uri), summary.run_id).ok


def test_a_region_asked_as_an_exemplar_answers_as_it_does_as_a_prompt_of_its_image(
    with_exemplars: Callable[..., RunConfig], tmp_path: Path
) -> None:
    alone = {"batch_size": 1}  # in other batches sums are rounded otherwise
    lent = with_exemplars(BOX, label=alone)
    label(lent)
    (tmp_path / "prompts.csv").write_text('image_id,prompt_id,kind,coordinates\n000.png,own,box,"5 5 20 20"\n')
    own = with_exemplars(prompts=str(tmp_path / "prompts.csv"), output=str(tmp_path / "own"), label=alone)
    label(own)
    query = "SELECT score, segmentation.counts FROM annotations WHERE image_id = '000.png' ORDER BY ALL"
    assert sql(lent, query) == sql(own, query) != []


def test_the_prompt_table_has_exemplars_among_its_rows(
    with_exemplars: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text(
        "image_id,prompt_id,kind,coordinates,exemplar\n"
        ',thing,box,"5 5 20 20",000.png\nmore/*,part,point,"9 9",000.png\n002.png,own,point,"9 9",\n'
    )
    config = with_exemplars(prompts=str(tmp_path / "prompts.csv"))
    assert label(config).ok
    asked = dict(
        sql(config, "SELECT image_id, list_sort(list_transform(per_prompt, lambda p: p.prompt_id)) FROM images")
    )
    assert asked == {
        "000.png": ["vgdseg:thing"],
        "002.png": ["own", "vgdseg:thing"],
        "more/001.JPG": ["vgdseg:part", "vgdseg:thing"],
        "more/003.JPG": ["vgdseg:part", "vgdseg:thing"],
    }
    assert {row[1] for row in masks(config)} == {"vgdseg:thing", "vgdseg:part", "own"}


def test_a_run_is_resumed_without_the_image_of_its_exemplar(
    with_exemplars: Callable[..., RunConfig], source: Path, tmp_path: Path
) -> None:
    shutil.copy(source / "000.png", tmp_path / "shown.png")
    shown = {**BOX, "image": str(tmp_path / "shown.png")}
    whole = with_exemplars(shown, output=str(tmp_path / "whole"))
    label(whole)

    config = with_exemplars(shown)
    with planning.planned_run(config):
        pass  # planned, and the driver is gone
    (tmp_path / "shown.png").unlink()
    assert label(config).ok
    assert masks(config) == masks(whole)
    # Finished, the same command finds nothing to do.
    assert label(config).ok


def test_another_exemplar_is_another_run(with_exemplars: Callable[..., RunConfig], source: Path) -> None:
    config = with_exemplars(BOX)
    first = label(config).run_id
    with pytest.raises(Exception, match="exemplars: planned"):
        label(with_exemplars({**BOX, "coordinates": [5, 5, 20, 21]}))
    # The same words of another image are what the plan has: it keeps the image.
    photograph(64, 40, 99).save(source / "000.png")
    assert label(config).run_id == first


def test_the_second_night_asks_what_is_new_and_a_changed_exemplar_of_all(
    with_exemplars: Callable[..., RunConfig], source: Path, tmp_path: Path
) -> None:
    photograph(64, 40, 50).save(tmp_path / "shown.png")
    shown = {**BOX, "image": str(tmp_path / "shown.png")}
    config = with_exemplars(shown, {**BOX, "label": "some", "images": "more/*"}, incremental=True)
    assert label(config).ledger["listed"] == 4
    photograph(64, 48, 77).save(source / "later.png")
    assert label(config).ledger["listed"] == 1
    assert label(config).run_id == "update-2"

    photograph(64, 40, 51).save(tmp_path / "shown.png")
    assert label(config).ledger["listed"] == 5
    asked = sql(
        config, "SELECT DISTINCT p.prompt_id FROM all_images, unnest(per_prompt) u(p) WHERE run_id = 'update-3'"
    )
    assert asked == [("vgdseg:thing",)]
    # Of a selection that grows, the images that were not asked yet.
    more = with_exemplars(shown, {**BOX, "label": "some", "images": "*.png"}, incremental=True)
    assert label(more).ledger["listed"] == 3


def test_a_retry_has_the_exemplars_of_its_run(
    with_exemplars: Callable[..., RunConfig], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(64, 40, 50).save(tmp_path / "shown.png")
    good = (source / "002.png").read_bytes()
    (source / "002.png").write_bytes(b"no image")
    config = with_exemplars({**BOX, "image": str(tmp_path / "shown.png")}, limits={"max_quarantined_share": 1.0})
    label(config)
    (tmp_path / "shown.png").unlink()
    (source / "002.png").write_bytes(good)
    (again,) = retry_configs(config.output.uri, None, [], {})
    assert label(again).ok
    assert {row[0] for row in masks(config)} == set(NAMES)


def test_the_plan_keeps_what_was_shown_and_vacuum_leaves_it(
    with_exemplars: Callable[..., RunConfig], source: Path
) -> None:
    config = with_exemplars(BOX)
    run_id = label(config).run_id
    store = open_store(config.output.uri)
    vacuum(store, run_id, older_than_s=0)
    plan = require_plan(store, run_id)
    assert list(exemplar_images(store, plan).values()) == [(source / "000.png").read_bytes()]
    assert plan.fingerprint["exemplars"]


@pytest.mark.parametrize(
    ("exemplar", "message"),
    [
        ({"image": "nothing.png"}, "no image for the exemplars nothing.png"),
        ({"image": "broken.png"}, "cannot be read"),
        ({"coordinates": [900, 900, 5, 5]}, "lies outside"),
        ({"images": "nowhere/*"}, "none of the 5 listed images has such an id"),
    ],
)
def test_an_exemplar_that_cannot_be_used_ends_it_before_anything_is_written(
    with_exemplars: Callable[..., RunConfig],
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    exemplar: dict[str, Any],
    message: str,
) -> None:
    (source / "broken.png").write_bytes(b"no image")
    monkeypatch.setattr(XSamPredictor, "__init__", lambda *_: pytest.fail("a model was loaded"))
    config = with_exemplars({**BOX, **exemplar})
    with pytest.raises(SourceError, match=message):
        label(config)
    assert not Path(config.output.uri).exists()


def test_what_a_plan_has_frozen_is_not_given_to_a_new_run(with_exemplars: Callable[..., RunConfig]) -> None:
    frozen = {**BOX, "uri": "/a.png", "sha256": "ab"}
    with pytest.raises(ConfigError, match="exemplars_frozen"):
        label(with_exemplars(BOX, exemplars_frozen=[frozen]))


def test_planning_asks_no_network_and_writes_nothing(
    with_exemplars: Callable[..., RunConfig], cli: Any, tmp_path: Path
) -> None:
    config = with_exemplars(BOX)
    values = {**config.to_dict(), "exemplars_frozen": []}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    ended = cli("plan", "--config", str(tmp_path / "run.yaml"))
    assert ended.code == 0, ended
    assert "1 label shown by exemplars" in ended.out
    assert not Path(config.output.uri).exists()


def test_of_a_forgotten_image_no_plan_keeps_what_it_showed(
    with_exemplars: Callable[..., RunConfig], source: Path, cli: Any
) -> None:
    mask = {"size": [40, 64], "counts": [100, 300, 2160]}
    drawn = {"label": "drawn", "image": "000.png", "kind": "mask", "segmentation": mask}
    config = with_exemplars(BOX, drawn, {**BOX, "image": "002.png"}, incremental=True)
    run_id = label(config).run_id
    shown = (source / "000.png").read_bytes()
    ended = cli("forget", config.output.uri, "--images-where", "image_id = '000.png'", "--yes")
    assert ended.code == 0, ended
    held = {path: path.read_bytes() for path in Path(config.output.uri).rglob("*") if path.is_file()}
    assert held
    for needle in (b"000.png", shown, require_digest(shown), b'"counts"'):
        assert not [path for path, data in held.items() if needle in data and "plan" in path.name], needle
    store = open_store(config.output.uri)
    assert list(exemplar_images(store, require_plan(store, run_id)).values()) == [(source / "002.png").read_bytes()]
    assert verify(store, run_id).ok
    # It shows nothing any more, by no name.
    for image in ("000.png", str(source / "000.png")):
        with pytest.raises(SourceError, match="forgotten on request"):
            label(with_exemplars({**BOX, "image": image}, incremental=True))
    # The others' answers stay, and the next night has nothing to do for what they show.
    photograph(64, 48, 77).save(source / "later.png")
    assert label(with_exemplars({**BOX, "image": "002.png"}, incremental=True)).ok


def require_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def test_exemplars_are_evaluated_against_outlines(
    with_exemplars: Callable[..., RunConfig], cli: Any, tmp_path: Path
) -> None:
    config = with_exemplars(BOX)
    label(config)
    truth = {
        "images": [{"id": 1, "file_name": "002.png", "width": 80, "height": 56}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0,
             "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
        ],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    ended = cli("evaluate", config.output.uri, "--ground-truth", str(tmp_path / "truth.json"))
    assert ended.code == 0, ended
    assert "exemplar" in ended.out
