"""What has to hold: at every moment, for every reader, when the faults are over, and at the end of a life.

docs/reliability.md defines the invariants I1 to I8.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.exceptions import FSTimeoutError

from pipelines.compaction.compacted import Compacted, newest_compacted, verify_compacted
from pipelines.errors import StorageError
from pipelines.layout import KINDS, due_commit_of, split_data_name
from pipelines.planning.category_ids import CategoryIds
from pipelines.planning.fingerprint import IMPORT
from pipelines.planning.plan import Plan, plan_documents, planned_runs, read_plan
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import find_commit, last_repair
from pipelines.table.file_checks import hash_problem
from pipelines.table.reader import open_table
from pipelines.table.schema import annotations_table, images_table
from pipelines.table.verify import verify
from pipelines.types import Prompt, Shard
from tests.simulation import cached
from tests.simulation.collection import Listing, prediction
from tests.simulation.network import ROOT, URI, Stored

if TYPE_CHECKING:
    from tests.simulation.life import Life


class Watch:
    """Sees every change of the store: is there ever a commit that holds, and names a file that is gone?

    Three things may bring that about, and the next run has to mend it: a file that a vacuum took for abandoned, rightly
    as old as it asks for; what the last released version removes; and damage from outside.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self._holding: dict[str, int] = {}
        self._named: dict[str, str] = {}
        self._named_since: dict[str, float] = {}
        self._excused: dict[str, str] = {}
        self._taken: dict[str, Stored] = {}

    def on_change(self, verb: str, path: str, put_at: float) -> None:
        objects = self._life.network.objects
        if verb == "create" and "/commits/" in path:
            self._committed(path)
        elif verb == "delete":
            actor = self._life.world.actor
            if "/plan-" in path and actor is not None and actor.is_earlier and not self._life.scenario.is_strict:
                self._taken[path] = objects.gone[path][0]
            excuse = self._excuse(path, put_at)
            if excuse:
                self._excused[path] = excuse
            if path in self._named:
                self._gap(self._named[path], path)
        elif verb == "write" and path in self._named and path in objects.held:
            self._excused.pop(path, None)

    def restore_parts(self) -> None:
        """Put back the parts of plans that the last released version has removed, as this one asks for: from a copy."""
        store, held = self._life.store, self._life.network.objects.held
        named = {f"{ROOT}/_runs/{plan.run_id}/{part.name}" for plan in _plans(store) for part in plan.parts}
        for path in sorted(named & self._taken.keys() - held.keys()):
            held[path] = self._taken[path]
            self._life.world.note(f"RESTORED: {path}")

    def _committed(self, path: str) -> None:
        """Note which commit of a shard holds now, and look for its files."""
        objects = self._life.network.objects
        shard, _, suffix = path.rpartition(".")
        repair = int(suffix.removeprefix("repair-")) if suffix != "json" else 0
        if repair < self._holding.get(shard, -1):
            return
        self._holding[shard] = repair
        self._named = {name: commit for name, commit in self._named.items() if not commit.startswith(f"{shard}.")}
        document = json.loads(objects.held[path].data)
        for kind in KINDS:
            name = f"{ROOT}/{document[kind]['name']}"
            self._named[name], self._named_since[name] = path, self._life.world.now
            if name not in objects.held:
                self._gap(path, name)

    def _excuse(self, path: str, put_at: float) -> str:
        world = self._life.world
        if world.actor is None:
            return "damaged from outside"
        if world.actor.is_earlier and not self._life.scenario.is_strict:
            return "removed by an earlier version"
        order = getattr(world.actor, "order", None)
        if order is None or order.verb != "vacuum" or world.now - put_at < order.older_than_s:
            return ""
        # Unless it was committed before the vacuum began: then it might have known.
        if path not in self._named or self._named_since[path] >= world.actor.started_at:
            return "removed as abandoned"
        return ""

    def _gap(self, commit: str, name: str) -> None:
        life, excuse = self._life, self._excused.get(name)
        (life.wounds if excuse else life.gaps).append(f"{commit} names {name}, which is gone")
        life.world.note(f"GAP: {commit} names {name}, which is gone ({excuse or 'and nobody may have removed it'})")


def check_listed(life: Life, listing: Listing) -> None:
    """Who has listed the source, and ends complete, has labeled what it has listed: called in its process."""
    task, life.world.current = life.world.current, None  # the truth is looked up at once
    try:
        store, wanted = life.store, set(listing.images)
        plans = _plans(store)
        found = [
            {(ref.image_id, ref.num_bytes) for shard in one.shards(store) for ref in shard.images} for one in plans
        ]
    finally:
        life.world.current = task
    if wanted not in found:
        life.world.errors.append(f"a run has listed {sorted(wanted)} and ends complete, but planned are {found}")


def read_all(life: Life) -> None:
    """Read every run through its commits, as a person does while anything goes on: whole shards only, each once."""
    store = open_store(URI)
    for run_id in planned_runs(store):
        for kind in KINDS:
            try:
                rows = open_table(store, kind, run_id).to_table()
            except pa.ArrowInvalid as error:
                if not life.wounds and "cut short" not in life.network.happened:
                    life.world.errors.append(f"a reader reads half a file: {error}")
                raise StorageError(str(error)) from error
            except (OSError, FSTimeoutError) as error:
                if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
                    life.missed.append((run_id, str(error)))
                raise StorageError(str(error)) from error
            if kind == "images":
                _check_whole_shards(life, run_id, rows)

    held = newest_compacted(store)
    if held is not None:
        _read_compacted(life, store, held)


def _read_compacted(life: Life, store: Store, held: Compacted) -> None:
    """Read what an object names as a program does that goes by the path: it is there until a newer one is."""
    try:
        found = [(file, store.read(file.name)) for file in held.files["images"]]
    except FileNotFoundError as error:
        task, life.world.current = life.world.current, None
        try:
            is_replaced = (newest_compacted(life.store) or held).number > held.number
        finally:
            life.world.current = task
        if not is_replaced and not life.wounds:
            life.world.errors.append(f"a file of the newest compaction is gone: {error}")
        return
    if problems := [problem for file, data in found if (problem := hash_problem(data, file))]:
        raise StorageError(problems[0])  # a read that was cut short; whether it is whole is looked up at the end
    images = pa.concat_tables([cached.read(data) for _, data in found])
    for run_id, one in held.runs.items():
        of_run = images.filter(pc.equal(images["run_id"], run_id)).sort_by(
            [("shard_id", "ascending"), ("image_id", "ascending")]
        )
        _check_whole_shards(life, run_id, of_run)
        if (shards := len(set(of_run["shard_id"].to_pylist()))) != one.shards:
            life.world.errors.append(f"a compaction has {shards} shards of {run_id}, and says {one.shards}")


def check_compacted(life: Life) -> None:
    """A compaction that nothing has come after holds the rows of the table, each once."""
    store = life.store
    held = newest_compacted(store)
    assert held is not None, "there is no compaction"
    assert verify_compacted(store) == ([], []), verify_compacted(store)
    for kind in KINDS:
        found = pa.concat_tables([cached.read(store.read(file.name)) for file in held.files[kind]])
        expected = open_table(store, kind).to_table()
        order = [(name, "ascending") for name in ("run_id", "image_id", *(["rank"] if kind == "annotations" else []))]
        assert _plain(found.sort_by(order)).equals(_plain(expected.sort_by(order))), f"{kind} differ from the table"


def _plain(rows: pa.Table) -> pa.Table:
    return rows.replace_schema_metadata()


def _check_whole_shards(life: Life, run_id: str, rows: pa.Table) -> None:
    """I3."""
    found = defaultdict(list)
    for shard_id, image_id in zip(rows["shard_id"].to_pylist(), rows["image_id"].to_pylist(), strict=True):
        found[shard_id].append(image_id)
    task, life.world.current = life.world.current, None  # the truth is looked up at once
    try:
        plan = _plan(life.store, run_id)
        planned = {shard.shard_id: [ref.image_id for ref in shard.images] for shard in plan.shards(life.store, found)}
    finally:
        life.world.current = task
    wrong = {shard: ids for shard, ids in found.items() if planned.get(shard) != ids}
    if wrong:
        life.world.errors.append(f"a reader sees shards that are not whole, or twice: {wrong}")


def check_meanwhile(life: Life) -> None:
    """What has to hold before anybody mends anything."""
    assert not life.world.errors, life.world.errors[0]
    assert not life.gaps, life.gaps[0]
    assert not life.missed or life.wounds, f"a reader misses a file, and nothing was to be mended: {life.missed[0]}"


def _plan(store: Store, run_id: str) -> Plan:
    plan = read_plan(store, run_id)
    assert plan is not None
    return plan


def _plans(store: Store) -> list[Plan]:
    return [_plan(store, run_id) for run_id in plan_documents(store)]


def check_whole(life: Life) -> None:
    """I1, I2, I4, I5, I8, and that nothing is left out or asked twice."""
    store = life.store
    asked: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    sizes: dict[tuple[str, int], int | None] = {}
    has_retry = any(order.verb == "retry" for order in life.scenario.finals)
    for run_id in plan_documents(store):
        plan = _plan(store, run_id)
        if plan.retry_of is not None and not has_retry:
            continue
        report = verify(store, run_id)
        assert report.problems == [], f"{run_id}: {report.problems}"
        left = [name for name in report.leftovers if not _is_begun_repair(store, name)]
        if left and _is_last(life, plan) and not plan.fingerprint.get(IMPORT):
            raise AssertionError(f"{run_id} is complete, and these files are left: {left}")
        if plan.fingerprint.get(IMPORT):
            continue  # corrections.py holds them against what people did
        _check_rows(store, plan)
        if plan.retry_of is None:
            _count(life, plan, asked, sizes)
    _check_covered(life, asked, sizes)


def _is_begun_repair(store: Store, name: str) -> bool:
    """Whether a file is of a repair that nobody has committed yet: its shard may have been whole, and read in part."""
    split = split_data_name(name)
    assert split is not None, name
    return due_commit_of(name) > (last_repair(store, name.split("/")[1], split[0]) or 0)


def begun_repairs(store: Store) -> set[str]:
    """Return the runs in which one lies: until `vacuum` takes it none of their listings are as their summary says."""
    names = (name for kind in KINDS for name in store.find(kind))
    return {name.split("/")[1] for name in names if split_data_name(name) and _is_begun_repair(store, name)}


def _is_last(life: Life, plan: Plan) -> bool:
    """Whether the last commands were about this run: of others, whose commands have ended, zombies may leave files."""
    last = life.scenario.finals[-1]
    return last.config is not None and not last.config.incremental


def _check_rows(store: Store, plan: Plan) -> None:
    """I5: the rows are those of a run that nothing happened to."""
    prompts = _prompts(plan)
    for shard in plan.shards(store):
        commit = find_commit(store, plan.run_id, shard.shard_id)
        assert commit is not None
        expected = _expected(plan.run_id, shard, prompts)
        for kind, file in zip(KINDS, commit.files(), strict=True):
            found = _rows(store.read(file.name))
            assert found.equals(expected[kind]), f"{file.name} does not hold the rows of an unbroken run"


@cache
def _rows(data: bytes) -> pa.Table:
    return cached.read(data).drop_columns(["attempt"]).replace_schema_metadata()


@cache
def _expected(run_id: str, shard: Shard, prompts: tuple[Prompt, ...]) -> dict[str, pa.Table]:
    found = [prediction(ref, prompts, "-retry-" in run_id) for ref in shard.images]
    ids = {"run_id": run_id, "shard_id": shard.shard_id, "attempt": ""}
    made = {"annotations": annotations_table(found, **ids), "images": images_table(found, **ids)}
    return {kind: rows.drop_columns(["attempt"]).replace_schema_metadata() for kind, rows in made.items()}


def _prompts(plan: Plan) -> tuple[Prompt, ...]:
    from tests.simulation.scenario import config_of

    return CategoryIds.of_plan(plan.facts).numbered(config_of(**plan.facts["config"]).common_prompts())


def _count(life: Life, plan: Plan, asked: Any, sizes: Any) -> None:
    prompts = _prompts(plan)
    for shard in plan.shards(life.store):
        for ref in shard.images:
            asked[ref.image_id, ref.version].update(prompt.prompt_id for prompt in ref.asked(prompts))
            sizes[ref.image_id, ref.version] = ref.num_bytes


def _check_covered(life: Life, asked: Any, sizes: Any) -> None:
    """Every image of the last listing was asked every prompt, as it is now, and none twice."""
    last = life.scenario.finals[-1]
    config = last.config or life.scenario.finals[0].config
    assert config is not None
    wanted = {prompt.prompt_id for prompt in config.common_prompts()}
    newest: dict[str, int] = {}
    for image_id, version in asked:
        newest[image_id] = max(newest.get(image_id, 0), version)
    for image_id, size in life.listing.images:
        assert image_id in newest, f"{image_id} is listed, and no run has planned it"
        key = image_id, newest[image_id]
        assert sizes[key] == size, f"{image_id} has changed since it was planned"
        missing = wanted - set(asked[key])
        assert not missing, f"{image_id} was never asked {missing}"
    if any(order.is_earlier and order.verb == "update" for order in life.scenario.orders):
        return  # of two updates at once the last released version let the later one ask again
    if "stale" in life.scenario.rates and any(order.is_earlier for order in life.scenario.orders):
        return  # its runs are not registered, so that a listing that is behind hides them
    twice = {key: prompts for key, prompts in asked.items() if max(prompts.values()) > 1}
    assert not twice, f"asked twice: {twice}"
