"""The main job as a user has it: images on S3, Ray replicas, a Prefect run on a server, a table on S3."""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pycocotools import mask as coco

from flows.config import parse_config
from flows.prefect_server.told import artifact_key
from flows.run import engine
from flows.run.observer import Silent
from pipelines.layout import KINDS
from pipelines.storage.store import Store, open_store
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.flows.conftest import CATEGORIES, MakeConfig
from tests.support.drivers import UNSTABLE, PrefectServer, committed, comparable, run_file
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)

PROMPTS = """image_id,prompt_id,kind,coordinates,label
000.png,dot,point,"10 12",thing
002.png,frame,box,"4 4 20 16",thing
more/001.JPG,loop,polygon,"2 2 20 4 12 30",part
"""


@dataclass(frozen=True)
class Labeled:
    """A run that has ended: its output, its summary, the server that saw it."""

    output: Store
    summary: dict[str, Any]
    server: PrefectServer

    def rows(self, kind: Any) -> list[dict[str, Any]]:
        return open_table(self.output, kind).to_table().to_pylist()


@pytest.fixture(scope="module")
def labeled(ray: str, prefect: PrefectServer, s3_environment: S3Server, model: Path, photographs: Path) -> Labeled:
    """Ten photographs and a table of visual prompts on S3, labeled by two replicas in two waves."""
    from flows.label_collection import label_collection

    prefix = f"s3://bkt/{secrets.token_hex(4)}"
    source = open_store(f"{prefix}/photos")
    for path in photographs.rglob("*.*"):
        source.write(str(path.relative_to(photographs)), path.read_bytes())
    open_store(f"{prefix}/prompts").write("prompts.csv", PROMPTS.encode())
    config = parse_config(
        {
            "source": f"{prefix}/photos",
            "output": f"{prefix}/table",
            "model": {"path": str(model), "max_masks_per_image": 10},
            "categories": CATEGORIES,
            "prompts": f"{prefix}/prompts/prompts.csv",
            "plan": {"images_per_shard": 1},
            "pool": {"replicas": 2, "shards_in_flight_per_replica": 1},
        }
    )
    return Labeled(open_store(f"{prefix}/table"), label_collection(config), prefect)


def test_every_image_has_one_row_and_the_ledger_adds_up(labeled: Labeled, photographs: Path) -> None:
    images = labeled.rows("images")
    assert sorted(row["image_id"] for row in images) == sorted(
        str(path.relative_to(photographs)) for path in photographs.rglob("*.*")
    )
    counts = Counter(row["status"] for row in images)
    ok, empty = counts["ok"], counts["empty"]
    assert labeled.summary["ledger"] == {"listed": 10, "ok": ok, "empty": empty, "not_asked": 0, "quarantined": 0}
    assert counts["ok"] + counts["empty"] == 10
    assert counts["ok"] > 0


def test_every_mask_decodes_to_its_image_and_agrees_with_its_box_and_area(labeled: Labeled) -> None:
    sizes = {row["image_id"]: [row["height"], row["width"]] for row in labeled.rows("images")}
    annotations = labeled.rows("annotations")
    assert len(annotations) == labeled.summary["num_annotations"] > 0
    for row in annotations:
        segmentation = row["segmentation"]
        assert segmentation["size"] == sizes[row["image_id"]]
        assert list(coco.decode(segmentation).shape) == segmentation["size"]
        assert [row[f"bbox_{side}"] for side in "xywh"] == coco.toBbox(segmentation).tolist()
        assert row["area"] == int(coco.area(segmentation)) > 0
        assert 0 < row["score"] <= 1


def test_a_turned_photograph_is_labeled_upright(labeled: Labeled) -> None:
    (turned,) = [row for row in labeled.rows("images") if row["image_id"] == "more/001.JPG"]
    assert (turned["exif_orientation"], turned["width"], turned["height"]) == (6, 48, 72)


def test_categories_are_asked_of_every_image_and_visual_prompts_of_their_own(labeled: Labeled) -> None:
    asked = {row["image_id"]: {entry["prompt_id"] for entry in row["per_prompt"]} for row in labeled.rows("images")}
    text = {f"ovseg:{name}" for name in CATEGORIES}
    own = {"000.png": {"dot"}, "002.png": {"frame"}, "more/001.JPG": {"loop"}}
    assert asked == {image: text | own.get(image, set()) for image in asked}
    assert labeled.summary["num_rejected_prompts"] == 0


def test_the_table_is_whole_to_the_last_hash(labeled: Labeled) -> None:
    report = verify(labeled.output, labeled.summary["run_id"], deep=True)
    assert report.ok
    assert report.leftovers == []


def test_summary_json_says_how_the_run_ended(labeled: Labeled) -> None:
    held = run_file(labeled.output.uri, "summary.json")
    assert held == labeled.summary
    assert (held["shards"], held["committed"], held["labelled_now"], held["problems"]) == (10, 10, 10, [])
    assert held["facts"]["versions"]["xsam-label"]
    assert len(held["facts"]["predictor"]["weights_sha256"]) == 64


def test_prefect_shows_the_run_its_waves_and_its_artifacts(labeled: Labeled) -> None:
    (flow_run,) = [
        run
        for run in labeled.server.ask("flow_runs/filter", {})
        if run["parameters"]["config"]["output"]["uri"] == labeled.output.uri
    ]
    assert flow_run["state_type"] == "COMPLETED"
    masks = labeled.summary["num_annotations"]
    assert flow_run["state"]["message"].endswith(f"; {masks:,} masks")
    tasks = {run["name"]: run["state_type"] for run in labeled.server.ended_task_runs(flow_run["id"], 4)}
    waves = {name: state for name, state in tasks.items() if name.startswith("wave")}
    assert waves == {"wave 1/2": "COMPLETED", "wave 2/2": "COMPLETED"}
    assert len(tasks) == 4  # with plan and verify
    chosen = {"flow_runs": {"id": {"any_": [flow_run["id"]]}}}
    key = artifact_key(labeled.output.uri, "")
    artifacts = {a["key"].removeprefix(key): a for a in labeled.server.ask("artifacts/filter", chosen)}
    assert {a["type"] for a in artifacts.values()} == {"progress", "table", "markdown"}
    assert float(artifacts["shards"]["data"]) == 100
    assert "Complete" in artifacts["summary"]["data"]


def test_sql_and_data_frames_read_the_output_by_glob(make_config: MakeConfig, tmp_path: Path) -> None:
    import polars

    summary = engine.run_directly(make_config(), Silent())
    output = tmp_path / "output"
    store = open_store(str(output))
    for kind in ("annotations", "images"):
        pattern = f"{output}/{kind}/**/*.parquet"
        ours = open_table(store, kind).to_table()
        sql = duckdb.sql(f"SELECT * FROM read_parquet('{pattern}')").arrow()
        sql = sql if hasattr(sql, "num_rows") else sql.read_all()
        assert comparable(sql.cast(ours.schema), kind) == comparable(ours, kind)
        frame = polars.read_parquet(pattern)
        assert (frame.height, frame.columns) == (ours.num_rows, ours.column_names)
    by_category = duckdb.sql(
        f"SELECT category_name, count(*) FROM read_parquet('{output}/annotations/**/*.parquet') GROUP BY 1"
    ).fetchall()
    assert sum(count for _, count in by_category) == summary.num_annotations
    assert set(dict(by_category)) <= set(CATEGORIES)


def test_a_flow_called_again_goes_on_with_its_run_though_no_listing_shows_it(
    make_config: MakeConfig, prefect: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.label_collection import label_collection

    config, store = make_config(plan={"limit": 2}), open_store(str(tmp_path / "output"))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "folders", lambda _store, _prefix: [])
        first = label_collection(config)
        again = label_collection(config)
    assert (again["run_id"], again["labelled_now"], again["problems"]) == (first["run_id"], 0, [])
    assert store.folders("_runs") == [first["run_id"]]
    report = verify(store, first["run_id"])
    assert (report.problems, report.leftovers) == ([], [])


@pytest.mark.parametrize(
    ("runner", "images_per_shard"), [("in_process", 1), ("in_process", 4), ("in_process", 100), ("ray", 4)]
)
def test_where_and_in_which_pieces_it_runs_changes_no_row(
    request: pytest.FixtureRequest,
    make_config: MakeConfig,
    tmp_path: Path,
    reference: Path,
    runner: str,
    images_per_shard: int,
) -> None:
    if runner == "ray":
        request.getfixturevalue("ray")
    config = make_config(pool={"runner": runner}, plan={"images_per_shard": images_per_shard}, label={"batch_size": 1})
    assert engine.run_directly(config, Silent()).ok
    for kind in KINDS:
        without = (*UNSTABLE, "shard_id")
        assert committed(str(tmp_path / "output"), kind, without=without) == committed(
            str(reference), kind, without=without
        )


@pytest.fixture(scope="module")
def reference(model: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same collection labeled in shards of three."""
    output = tmp_path_factory.mktemp("reference") / "output"
    values = {
        "source": str(photographs),
        "output": str(output),
        "model": {"path": str(model), "max_masks_per_image": 10},
        "categories": ["car", "tree", "traffic light"],
        "plan": {"images_per_shard": 3},
        "label": {"batch_size": 1},
        "pool": {"runner": "in_process"},
    }
    engine.run_directly(parse_config(values), Silent())
    return output
