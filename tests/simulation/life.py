"""One life of an output: commands, faults and deaths from a seed; then all is well again, and everything is checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pytest

from flows.commands import launch
from flows.config import RunConfig
from flows.run import planning, updates
from flows.run.observer import Silent
from pipelines.importing import imports
from pipelines.labeling import shard
from pipelines.layout import split_compacted_file
from pipelines.planning import plan as manifest
from pipelines.planning.plan import read_plan
from pipelines.query import database
from pipelines.storage import store as storage
from pipelines.storage.store import Store
from pipelines.table import commits, verify
from pipelines.types import ImagePrediction
from tests.simulation import cached, checks, collection, commands, corrections, damage, earlier
from tests.simulation.filesystem import SimulatedFileSystem
from tests.simulation.network import ROOT, URI, Network, Objects
from tests.simulation.pool import SimulatedPool
from tests.simulation.scenario import TAKEN_NAMES, Order, Scenario, calm, draw_scenario, renamed, with_check
from tests.simulation.seams import SEAMS, replaced
from tests.simulation.world import World

TRIES = 3
"""How often the same command may be needed once all faults are over."""
_PATIENCE_S = 1000.0
_LONG_PATIENCE_S = 50_000.0


class Broken(AssertionError):
    """A promise that was not kept."""


@dataclass
class Life:
    """A life that is lived.

    Attributes:
        labeled: shards that were given to the model, so far.
        endings: of every command.
        gaps: commits that named a file that nobody may have removed.
        wounds: what the next run has to mend.
        missed: what readers were told to be missing, by run.
        flipped: objects of which a bit has flipped, and their bytes since then.
        num_named: how many of those `verify` was to find, and found.
        tries: how many times the last commands were needed.
        files: those that people have edited, by the number in their orders.
    """

    seed: int
    scenario: Scenario
    world: World
    network: Network
    labeled: int = 0
    drivers: int = 0
    endings: list[commands.Ended] = field(default_factory=list)
    tries: int = 0
    listing: collection.Listing = collection.NOTHING_LISTED
    gaps: list[str] = field(default_factory=list)
    wounds: list[str] = field(default_factory=list)
    missed: list[tuple[str, str]] = field(default_factory=list)
    flipped: dict[str, bytes] = field(default_factory=dict)
    num_named: int = 0
    files: dict[int, corrections.Edited] = field(default_factory=dict)
    waits: bool = True

    @property
    def store(self) -> Store:
        """The output, as nobody in the life sees it: at once, and as it is."""
        return Store(uri=URI, fs=SimulatedFileSystem(self.network), root=ROOT)

    def story(self) -> str:
        """Tell what happened, for whoever looks into a failure."""
        orders = "\n".join(f"  {order.at:10.2f} s  {_told(order)}" for order in self.scenario.orders)
        which, rates = f"seed {self.seed} {self.scenario.kind}".rstrip(), dict(self.scenario.rates)
        return f"{which}, faults {rates}, commands:\n{orders}\n{self.world.story(60)}"


_now: list[Life] = []


def live(seed: int, scenario: Scenario | None = None) -> Life:
    """Live a life to its end.

    Raises:
        Broken: with what is wrong, and the story of the life.
    """
    scenario = scenario or draw_scenario(seed)
    world = World(seed)
    network = Network(world, Objects(), scenario.rates)
    life = Life(seed, scenario, world, network)
    _now[:] = [life]
    cached.flipped.clear()
    SimulatedPool.is_calm = False
    SEAMS.begin(world)
    watch = checks.Watch(life)
    network.objects.on_change = watch.on_change
    try:
        for number, order in enumerate(scenario.orders):
            world.at(order.at, _begin(life, order, number))
        world.run()
        checks.check_meanwhile(life)
        damage.check_named(life)
        watch.restore_parts()
        network.rates, life.waits, SimulatedPool.is_calm = {}, False, True
        _finish(life)
    except Exception as error:
        what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        raise Broken(f"{what}\n{life.story()}") from error
    finally:
        world.close()
    return life


def _begin(life: Life, order: Order, number: int) -> Callable[[], None]:
    def do() -> None:
        world = life.world
        if order.verb == "update" and life.waits and not _is_planned(life):
            if world.now < order.at + _PATIENCE_S:
                world.at(10.0, do)  # who asks for what is new knows that there is something old
            return
        if order.verb == "import" and order.file not in life.files:
            if (edited := corrections.edit(life, order.file)) is None:
                if life.waits and world.now < order.at + _LONG_PATIENCE_S:
                    world.at(_PATIENCE_S, do)  # who corrects masks waits for some
                return
            life.files[order.file] = edited
        if order.verb == "damage":
            (damage.flip if order.flips else damage.damage)(life)
            return
        process, ended = commands.start(world, f"{order.verb}{number}", _command(life, order), order)
        life.endings.append(ended)
        life.drivers += order.config is not None or order.verb == "retry"
        process.clock_ahead_s = order.clock_ahead_s
        grace_s = order.config.pool.drain_grace_s if order.config else 30.0
        if order.sigterm is not None:
            world.at(order.sigterm, lambda: commands.terminate(process, grace_s))
        if order.kill is not None:
            world.at(order.kill, process.kill)
        if order.stop is not None:
            after, seconds = order.stop
            world.at(after, lambda: process.stop(seconds))
        if order.clock_jump is not None:
            after, ahead = order.clock_jump
            world.at(after, lambda: setattr(process, "clock_ahead_s", ahead))

    return do


def _is_planned(life: Life) -> bool:
    return any(path.endswith("/plan.json") for path in life.network.objects.held)


def _command(life: Life, order: Order) -> Callable[[], int]:
    if order.verb == "retry":
        check = {"output": {"check": True}} if order.has_check else {}
        budget = {} if order.budget_s is None else {"pool": {"budget_s": order.budget_s}}
        return lambda: commands.retry({**check, **budget})
    if order.verb == "vacuum":
        return lambda: commands.vacuum(order.older_than_s)
    if order.verb == "compact":
        return commands.compact
    if order.verb == "import":
        return lambda: corrections.run_import(order.file)
    if order.verb == "read":
        return lambda: commands.reading(lambda: checks.read_all(life))
    assert order.config is not None
    config: RunConfig = order.config

    def run() -> int:
        code = commands.run(config)
        process = life.world.current.process  # type: ignore[union-attr]
        if code == 0 and process.has_listed and order.verb == "run" and not order.is_earlier:
            checks.check_listed(life, order.listing)
        return code

    return run


def _finish(life: Life) -> None:
    """Run the same commands again: each has to end complete, and then to have nothing to do."""
    repeated = None
    for order in life.scenario.finals:
        last = calm(order)
        if last.config is not None and _is_refused_name(life, last.config):
            last = replace(last, config=renamed(last.config))
        repeated = last if last.config is not None else repeated
        life.listing = order.listing
        for _ in range(TRIES):
            life.tries += 1
            ended = _alone(life, last)
            if ended.code == 0:
                break
            for file in life.files:  # a damaged import is mended by its file alone
                _alone(life, Order("import", 0.0, file=file))
        else:
            raise Broken(f"{TRIES} more tries of {_told(last)} end with {ended.code}: {ended.why or problems(life)}")
    _import(life)
    checks.check_whole(life)
    if life.scenario.kind == "compacted":
        _compact(life)
    assert repeated is not None
    if repeated.has_check:
        _check_done(life, repeated)
    repeated = with_check(repeated, has_check=False)
    _check_done(life, repeated)
    name = life.endings[-1].name
    reads = (re.match("read _runs/([^/]+)/commits/", what) for _, who, what in life.world.trace if who == name)
    again = [read[0] for read in reads if read and read[1] not in checks.begun_repairs(life.store)]
    assert not again, f"a finished run is not known as such: {again}"


def _import(life: Life) -> None:
    """Import every edited file once more, until all are: one may wait for another to be whole."""
    left = sorted({order.file for order in life.scenario.orders if order.verb == "import"})
    for _ in range(TRIES):
        ended = {file: _alone(life, Order("import", 0.0, file=file)) for file in left}
        ended = {file: one for file, one in ended.items() if file in life.files}  # others had nothing to correct
        left = [file for file, one in ended.items() if one.code != 0 and not corrections.is_refused(one.why)]
        if not left:
            break
    else:
        raise Broken(f"{TRIES} more tries of an import end with {ended[left[0]].code}: {ended[left[0]].why}")
    # What a file says may be new only since another one was imported: then it has had no run yet.
    for file in [file for file, edited in life.files.items() if not corrections.has_run(life, edited)]:
        _alone(life, Order("import", 0.0, file=file))
    before = dict(life.network.objects.held)
    for file in life.files:
        _alone(life, Order("import", 0.0, file=file))
    assert life.network.objects.held == before, "a file writes something when it is imported again"
    if life.files:  # or each life would pay for a database
        corrections.check_current(life)


def _compact(life: Life) -> None:
    """Compact what is whole, and remove what that replaces."""
    for order in (Order("compact", 0.0), Order("vacuum", 0.0, older_than_s=0.0)):
        ended = _alone(life, order)
        assert ended.code == 0, f"{order.verb} ends with {ended.code}: {ended.why}"
        checks.check_compacted(life)
    left = {split[0] for name in life.store.find("compacted") if (split := split_compacted_file(name))}
    assert len(left) == 1, f"more than one compaction is left: {left}"


def _check_done(life: Life, repeated: Order) -> None:
    """Start a finished run once more."""
    before, labeled, writes = dict(life.network.objects.held), life.labeled, life.network.num_writes
    ended = _alone(life, repeated)
    assert ended.code == 0, f"a finished run ends with {ended.code} when it is started again: {ended.why}"
    assert life.labeled == labeled, "a finished run asks the model again"
    assert life.network.objects.held == before, "a finished run writes when it is started again"
    assert life.network.num_writes == writes, "a finished run writes when it is started again"


def _is_refused_name(life: Life, config: RunConfig) -> bool:
    """Whether a run's name is one that updates and retries take, and no earlier version has let it have it."""
    name = config.output.run_id
    if name not in TAKEN_NAMES:
        return False
    plan = read_plan(life.store, name)
    return plan is None or plan.retry_of is not None


def _alone(life: Life, order: Order) -> commands.Ended:
    _begin(life, order, 100 + len(life.endings))()
    life.world.run()
    if life.world.errors:
        raise Broken(life.world.errors[0])
    return life.endings[-1]


def problems(life: Life) -> str:
    """Return what the summaries say that is wrong."""
    store = life.store
    found = []
    for run_id in store.folders("_runs"):
        name = f"_runs/{run_id}/summary.json"
        if store.exists(name):
            found += store.read_json(name)["problems"]
    return "; ".join(found)[:600]


def _told(order: Order) -> str:
    config = order.config
    what = "" if config is None else f" run_id={config.output.run_id} {config.pool.runner}"
    fates = {
        name: value for name in ("sigterm", "kill", "stop", "clock_jump") if (value := getattr(order, name)) is not None
    }
    return f"{order.verb}{what}{' --check' * order.has_check}{' of a bit' * order.flips} {fates or ''}"


def _label_images(images: Any, job: Any, _predictor: Any, _clock: Any) -> list[ImagePrediction]:
    life = _now[0]
    life.labeled += 1
    life.world.sleep(0.1 * 100 ** life.world.random.random())
    is_retry = "-retry-" in job.run_id
    return [collection.prediction(ref, job.prompts, is_retry) for ref in images]


def _list_batches(*_: Any, **__: Any) -> Any:
    task = SEAMS.world.current
    assert task is not None
    task.process.has_listed = True
    return task.process.order.listing.batches()


def _open_filesystem(uri: str, _options: Any = None, **_: Any) -> tuple[Any, str]:
    assert uri.startswith(URI), uri
    return SimulatedFileSystem(_now[0].network), ROOT + uri.removeprefix(URI)


class _Quiet(Silent):
    """An observer of launch."""

    def __init__(self, _console: Any) -> None:
        """Show nothing."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""


@contextmanager
def simulation() -> Iterator[None]:
    """Let the product's modules live in simulated worlds inside this block."""
    threads = pa.cpu_count(), pa.io_thread_count()
    with replaced() as patch:
        _replace(patch)
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        try:
            with corrections.folder_for_copies():
                yield
        finally:
            pa.set_cpu_count(threads[0])
            pa.set_io_thread_count(threads[1])


def _replace(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage, "open_filesystem", _open_filesystem)
    patch.setattr(shard, "label_images", _label_images)
    patch.setattr(planning, "list_batches", _list_batches)
    patch.setattr(planning, "draft_plan", collection.draft_plan)
    patch.setattr(planning, "open_run_runner", commands.open_run_runner)
    patch.setattr(planning, "check_model", lambda _config, own: own)
    patch.setattr(planning, "run_fingerprint", cached.run_fingerprint)
    patch.setattr(updates, "GATHERED_AFTER", 1)  # few lives have ten updates
    patch.setattr(launch, "ConsoleObserver", _Quiet)
    patch.setattr(launch, "ListingProgress", lambda *_: lambda _count: None)
    patch.setattr(launch, "show_summary", lambda *_: None)
    for (module, name), before in earlier.CHANGES.items():
        now = getattr(module, name)
        patch.setattr(module, name, now)
        SEAMS.own(module, name, lambda process, now=now, before=before: before if process.is_earlier else now)
    patch.setattr(imports, "read_bytes", lambda uri: _now[0].files[int(uri)].data)
    patch.setattr(database, "make_readable", corrections.make_readable)
    cached.replace(patch, table=commits, manifest=manifest, integrity=verify)
