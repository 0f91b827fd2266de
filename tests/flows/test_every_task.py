"""Prompts of every task in one run: what lands in the two tables, read back with SQL as a data team would."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pycocotools import mask as coco

from flows.config import merge, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.summary import RunSummary
from pipelines.errors import PlanError
from pipelines.layout import KINDS
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.flows.conftest import CATEGORIES, MakeConfig
from tests.support.drivers import REPOSITORY, committed, comparable, listing

pytestmark = pytest.mark.timeout(180)

PROMPTS = """image_id,prompt_id,task,kind,coordinates,text,explain,label
000.png,dot,intseg,point,"10 12",,,thing
000.png,frame,,box,"4 4 20 16",,,thing
000.png,left,,,,"the thing on the left, half hidden",,
000.png,why,reaseg,text,,What could fall?,true,thing
002.png,day,chat,,,Is it day?,,
002.png,long,refseg,,,"{long}",,
002.png,both,,box,"4 4 20 16",a thing,,
more/001.JPG,round,reaseg,,,something round,,
""".replace("{long}", "word " * 1000)
ASKED: dict[str, Any] = {
    "task": "ovseg_semantic",
    "phrases": ["the man on the left", "a dog, asleep"],
    "questions": ["What could break?"],
    "explain": True,
    "caption": True,
    "chat": ["Is it night?"],
    "model": {"max_new_tokens": 8, "max_masks_per_image": 10},
}
COMMON = {f"ovseg_semantic:{name}" for name in CATEGORIES} | {
    "refseg:the man on the left", "refseg:a dog, asleep", "reaseg:What could break?", "gcgseg:caption",
    "chat:Is it night?",
}  # fmt: skip

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def make(model: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Build a config of the run that asks everything; values given are laid over it."""
    folder = tmp_path_factory.mktemp("every-task")
    (folder / "prompts.csv").write_text(PROMPTS)
    values = {
        **ASKED,
        "source": str(photographs),
        "output": str(folder / "output"),
        "prompts": str(folder / "prompts.csv"),
        "categories": list(CATEGORIES),
        "plan": {"images_per_shard": 2},
        "label": {"batch_size": 2},
        "pool": {"runner": "in_process"},
    }

    def make(**tables: Any) -> Any:
        return parse_config(merge({**values, "model": {**ASKED["model"], "path": str(model)}}, tables))

    return make


@pytest.fixture(scope="module")
def summary(make: Make) -> RunSummary:
    return engine.run_directly(make(), Silent())


def sql(summary: RunSummary, query: str) -> list[tuple[Any, ...]]:
    """Ask DuckDB; {annotations} and {images} stand for the files."""
    globs = {kind: f"read_parquet('{summary.output}/{kind}/*/*.parquet')" for kind in KINDS}
    return duckdb.sql(query.format(**globs)).fetchall()


def test_all_that_was_asked_is_answered_by_task(summary: RunSummary) -> None:
    assert summary.ok
    assert verify(open_store(summary.output), summary.run_id).ok
    assert summary.ledger == {"listed": 10, "ok": 10, "empty": 0, "not_asked": 0, "quarantined": 0}
    assert dict(sql(summary, "SELECT task, count(DISTINCT image_id) FROM {annotations} GROUP BY 1")) == {
        "ovseg_semantic": 10, "refseg": 10, "intseg": 1, "vgdseg": 1, "reaseg": 1,
    }  # fmt: skip
    rows = sql(summary, "SELECT image_id, per_prompt FROM {images}")
    asked = {image: {entry["prompt_id"] for entry in entries if entry["n"] is not None} for image, entries in rows}
    own = {"000.png": {"dot", "frame", "left", "why"}, "002.png": {"day"}, "more/001.JPG": {"round"}}
    assert asked == {image: COMMON | own.get(image, set()) for image in asked}


def test_there_is_one_row_for_each_segment_and_their_masks_share_out_the_image(summary: RunSummary) -> None:
    covered: dict[str, Any] = {}
    query = "SELECT image_id, segmentation, mask_score, is_thing FROM {annotations} WHERE task = 'ovseg_semantic'"
    for image, segmentation, mask_score, is_thing in sql(summary, query):
        covered[image] = covered.get(image, 0) + coco.decode(segmentation)
        assert (mask_score, is_thing) == (None, None)
    assert len(covered) == 10
    assert all((count == 1).all() for count in covered.values())


def test_counts_for_each_prompt_are_those_of_the_rows(summary: RunSummary) -> None:
    (differing,) = sql(
        summary,
        """WITH claimed AS (SELECT image_id, unnest(per_prompt) AS p FROM {images}),
        found AS (SELECT image_id, prompt_id, count(*) AS n, max(score) AS best FROM {annotations} GROUP BY ALL)
        SELECT count(*) FILTER (coalesce(found.n, 0) <> claimed.p.n OR found.best IS DISTINCT FROM claimed.p.max_score)
        FROM claimed LEFT JOIN found ON found.image_id = claimed.image_id AND found.prompt_id = claimed.p.prompt_id
        WHERE claimed.p.n IS NOT NULL""",
    )
    assert differing == (0,)
    ids = sql(summary, "SELECT count(*), count(DISTINCT annotation_id) FROM {annotations}")
    ranks = sql(summary, "SELECT count(*) FROM (SELECT DISTINCT image_id, rank FROM {annotations})")
    assert ids == [(summary.num_annotations,) * 2]
    assert ranks == [(summary.num_annotations,)]


def test_words_are_there_for_every_image(summary: RunSummary) -> None:
    words = sql(
        summary,
        "SELECT c.task, count(*), min(length(c.text)) FROM (SELECT unnest(captions) c FROM {images}) GROUP BY 1",
    )
    assert {task: count for task, count, _ in words} == {"gcgseg": 10, "chat": 11, "reaseg": 11}
    assert min(shortest for _, _, shortest in words) > 0


def test_rows_that_cannot_be_asked_are_told_by_number_and_reason(summary: RunSummary) -> None:
    told = {row["row"]: (row["prompt_id"], row["reason"]) for row in summary.rejected_prompts}
    assert sorted(told) == [7, 8]
    assert told[7][0] == "long"
    assert "more than the" in told[7][1]
    assert told[8] == ("both", "has both a text and the region of a box; give each a row of its own")


def test_a_plan_tells_of_them_before_anything_is_labeled(make: Make) -> None:
    with planning.draft_run(make(output="memory://not-planned")) as draft:
        assert draft.plan is not None
        refs = [ref for shard in draft.plan.shards() for ref in shard.images]
    assert [rejected.row for rejected in draft.rejected] == [8, 7]
    asked = {ref.image_id: [prompt.prompt_id for prompt in ref.prompts] for ref in refs if ref.prompts}
    assert asked == {"000.png": ["dot", "frame", "left", "why"], "002.png": ["day"], "more/001.JPG": ["round"]}


def test_sql_and_data_frames_read_every_column(summary: RunSummary) -> None:
    import polars

    store = open_store(summary.output)
    for kind in KINDS:
        ours, pattern = open_table(store, kind).to_table(), f"{summary.output}/{kind}/**/*.parquet"
        found = duckdb.sql(f"SELECT * FROM read_parquet('{pattern}')").arrow()
        found = found if hasattr(found, "num_rows") else found.read_all()
        assert comparable(found.cast(ours.schema), kind) == comparable(ours, kind)
        frame = polars.read_parquet(pattern)
        assert (frame.height, frame.columns) == (ours.num_rows, ours.column_names)
        assert frame.sort("image_id").to_arrow().num_rows == ours.num_rows
    captions = polars.read_parquet(f"{summary.output}/images/**/*.parquet").explode("captions")["captions"]
    assert captions.struct.field("text").null_count() == 0


def test_the_queries_of_the_tables_page_are_answered(summary: RunSummary) -> None:
    (text,) = re.findall(r"```sql\n(.*?)```", (REPOSITORY / "docs/table.md").read_text(), re.DOTALL)
    queries = [query for query in text.replace("demo-out", summary.output).split(";") if query.strip()]
    assert len(queries) == 3
    answers = [duckdb.sql(query) for query in queries]
    assert answers[1].fetchall() == [("ok", None, 10)]
    assert answers[2].columns == ["image_id", "text", "phrase", "start", "end", "score", "segmentation"]


@pytest.mark.parametrize("task", ["genseg_panoptic", "genseg"])
def test_other_results_of_the_same_categories(make_config: MakeConfig, task: str) -> None:
    stuff = ["tree"] if task == "genseg_panoptic" else []
    summary = engine.run_directly(make_config(task=task, stuff=stuff, plan={"limit": 4}), Silent())
    assert summary.ok
    found = sql(summary, "SELECT task, category_name, is_thing FROM {annotations}")
    expected = {name: None if task == "genseg" else name != "tree" for name in CATEGORIES}
    assert {(task, name, expected[name]) for _, name, _ in found} == set(found)


@pytest.mark.parametrize("runner", ["ray", "processes"])
def test_replicas_give_the_same_rows(
    runner: str, request: pytest.FixtureRequest, make: Make, summary: RunSummary, tmp_path: Path
) -> None:
    if runner == "ray":
        request.getfixturevalue("ray")
    config = make(output=str(tmp_path / "other"), pool={"runner": runner})
    assert engine.run_directly(config, Silent()).ok
    for kind in KINDS:
        assert committed(config.output.uri, kind, without=("attempt", "decode_ms", "model_ms")) == committed(
            summary.output, kind
        )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"phrases": ["the man on the right", "a dog, asleep"]}, "phrases: planned"),
        ({"questions": ["What could break?", "Why?"]}, "questions: planned"),
        ({"explain": False}, "explain: planned true, now false"),
        ({"caption": False}, "caption: planned true, now false"),
        ({"chat": []}, "chat: planned"),
        ({"task": "ovseg_panoptic", "stuff": ["tree"]}, "stuff: planned [], now [\"tree\"]"),
        ({"prompts": "other.csv"}, "prompts: planned"),
        ({"model": {"max_new_tokens": 9}}, "model.max_new_tokens: planned 8, now 9"),
    ],
)  # fmt: skip
def test_a_run_is_not_resumed_with_other_questions(
    make: Make, summary: RunSummary, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    (tmp_path / "other.csv").write_text(PROMPTS.replace("on the left", "on the right"))
    if "prompts" in change:
        change = {"prompts": str(tmp_path / change["prompts"])}
    before = listing(Path(summary.output))
    with pytest.raises(PlanError) as refused, planning.planned_run(make(**change)):
        pass
    assert field in str(refused.value)
    assert listing(Path(summary.output)) == before
