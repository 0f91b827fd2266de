"""Choose the images that are to be forgotten, and count what an output holds of them. Nothing is written."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PlanError
from pipelines.forgetting.shards import read_table
from pipelines.planning.erasures import Forgotten, read_forgotten
from pipelines.planning.plan import Plan, check_no_plan_lost, plan_documents, require_plan
from pipelines.planning.plan_files import PlannedImage, read_planned
from pipelines.query.database import open_database
from pipelines.query.files import query_errors
from pipelines.query.select_text import read_condition, without_values
from pipelines.query.user_select import condition_errors
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import committed_shards, read_commits
from pipelines.table.shard_commit import ShardCommit
from pipelines.types import Status

OPTION = "--images-where"
_MAX_UNKNOWN = 10_000
_READERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an output holds of the images that are to be forgotten.

    Attributes:
        image_ids: of the images, sorted.
        uris: under which they were read.
        masks: of these images, in all runs.
        shards: for each run that holds them, the number of its shards that do.
        unknown: ids that were asked for and that the output does not have.
        known: number of ids that were asked for and are forgotten already.
        condition: how they were chosen, without the values that it names.
    """

    image_ids: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    masks: int = 0
    shards: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    known: int = 0
    condition: str = ""


def choose(store: Store, *, images_where: str = "", image_ids: Collection[str] = ()) -> Found:
    """Find the images that fit a condition, and those of the ids given.

    Args:
        store: the output.
        images_where: SQL condition over the view ``images`` of query.open_database.
        image_ids: of further images.

    Raises:
        PlanError: the output has no run, or one that is not finished.
        SourceError: the condition is none.
        StorageError: the output cannot be read.
    """
    check_at_rest(store)
    own_files = read_condition(OPTION, images_where) if images_where else ()
    with query_errors(store), open_database(store, own_files=own_files) as database:
        database.register("wanted_ids", pa.table({"image_id": pa.array(sorted(set(image_ids)), pa.string())}))
        with condition_errors(OPTION):
            database.execute(
                f"""
                CREATE TEMP TABLE chosen AS SELECT image_id FROM images WHERE ({images_where or "false"}
                ) UNION SELECT image_id FROM all_images SEMI JOIN wanted_ids USING (image_id)
                WHERE status <> '{Status.FORGOTTEN}'
                """
            )
        rows = "all_images SEMI JOIN chosen USING (image_id)"
        missing = "SELECT image_id FROM wanted_ids ANTI JOIN chosen USING (image_id) ORDER BY 1"
        absent, forgotten = _column(database, missing), read_forgotten(store)
        unknown = [image_id for image_id in absent if image_id not in forgotten]
        all_masks = "SELECT count(*) FROM all_annotations SEMI JOIN chosen USING (image_id)"
        ((masks,),) = database.execute(all_masks).fetchall()
        shards = f"SELECT run_id, count(DISTINCT shard_id) FROM {rows} GROUP BY run_id ORDER BY run_id"
        by_condition = [without_values(images_where)] if images_where else []
        by_ids = [f"a list of {counted(len(set(image_ids)), 'id')}"] if image_ids else []
        return Found(
            image_ids=tuple(_column(database, "SELECT image_id FROM chosen ORDER BY 1")),
            uris=tuple(_column(database, f"SELECT DISTINCT uri FROM {rows} ORDER BY 1")),
            masks=masks,
            shards=dict(database.execute(shards).fetchall()),
            unknown=tuple(unknown[:_MAX_UNKNOWN]),
            known=len(absent) - len(unknown),
            condition=" or ".join(by_condition + by_ids),
        )


def check_at_rest(store: Store) -> None:
    """Refuse an output of which a run is not finished: its attempts may write of any image at any time.

    Raises:
        PlanError: a run is not finished, or was planned by another version; or there is none.
        DamagedError: the plan of a run with commits is missing.
    """
    check_no_plan_lost(store)
    run_ids = list(plan_documents(store, by_name=True))
    if not run_ids:
        raise PlanError(f"{store.uri} holds no run: check the spelling")
    for run_id in run_ids:
        plan, committed = require_plan(store, run_id), len(committed_shards(store, run_id))
        if committed < plan.num_shards:
            raise PlanError(
                f"{store.uri}: run {run_id} is not finished ({committed:,} of "
                f"{counted(plan.num_shards, 'shard')}), and may be "
                "at work; wait for it, or finish it by its own command, and forget then. Nothing was changed"
            )


def labels_of(store: Store, image_ids: Collection[str]) -> set[str]:
    """Return the names of prompts of single images that were asked of some images and of no others, in any run."""
    chosen, own, others = set(image_ids), set[str](), set[str]()
    for document in plan_documents(store, by_name=True).values():
        plan = require_plan(store, document["run_id"])
        others |= {prompt["text"] for prompt in plan.facts.get("prompts", ())}
        for planned in _with_prompts(store, plan):
            names = (prompt.category_name for prompt in planned.prompts)
            (own if planned.image_id in chosen else others).update(names)
    return own - others


def _with_prompts(store: Store, plan: Plan) -> Iterator[PlannedImage]:
    """Yield the images of those files of a plan of which any image may have prompts of its own."""
    for part in plan.parts:
        with plan.open_part(store, part) as data:
            if "prompts" in pq.read_schema(io.BytesIO(data)).names:
                yield from read_planned(data)


def shards_with(store: Store, run_id: str, forgotten: Forgotten) -> set[str]:
    """Return the shards of a run that hold forgotten images, or what is left of them.

    Raises:
        DamagedError: a file is damaged, and may hide one.
    """

    def holds(commit: ShardCommit) -> bool:
        ids = read_table(store, commit.images, ["image_id"])["image_id"].to_pylist()
        return any(image_id in forgotten or forgotten.is_tombstone(image_id) for image_id in ids)

    commits = list(read_commits(store, run_id))
    with query_errors(store), ThreadPoolExecutor(_READERS) as readers:
        return {commit.shard_id for commit, is_one in zip(commits, readers.map(holds, commits), strict=True) if is_one}


def _column(database: duckdb.DuckDBPyConnection, query: str) -> list[str]:
    return [row[0] for row in database.execute(query).fetchall()]
