"""What happens in a life, drawn from its seed: which commands, when, what befalls them, and how bad the network is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal, get_args

from flows.config import RunConfig, parse_config
from tests.simulation.collection import NOTHING_LISTED, SOURCE, Listing
from tests.simulation.network import FAULTS, URI

IMAGES = ("a0", "b1", "a2", "m3", "n4", "a5", "m6", "a7")
_RATES = (0.01, 0.03, 0.1, 0.25)
_FAULTS = sorted({fault for faults in FAULTS.values() for fault in faults})
_NO_BUDGET_S = 1e9
NIGHTLY = "nightly"
TAKEN_NAMES = ("update-1", "update-2", "update-3", "nightly-retry-1")
"""Names that people give their runs, and that updates and retries take for their own."""

Kind = Literal["run", "update", "retry", "names"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Verb = Literal["run", "update", "retry", "vacuum", "compact", "read", "damage", "import"]


@dataclass(frozen=True)
class Order:
    """One command of a life.

    Attributes:
        at: when it is given, seconds.
        config: of a run; None for others.
        listing: the source, as it is then.
        sigterm, kill: how many seconds later it gets a SIGTERM, or a SIGKILL; None for never.
        older_than_s: of vacuum.
        is_earlier: whether it is the last released version's.
        stop: when, and for how long, its process does not go on (SIGSTOP).
        has_check: whether it has ``--check``: of a run its config says the same.
        flips: of damage, whether it is a bit that flips.
        budget_s: of a retry, instead of that of the run that it belongs to.
        file: of an import, which of the files that people edit.
        clock_ahead_s, clock_jump: of its machine: how much, and when it jumps by how much.
    """

    verb: Verb
    at: float
    config: RunConfig | None = None
    listing: Listing = NOTHING_LISTED
    sigterm: float | None = None
    kill: float | None = None
    stop: tuple[float, float] | None = None
    older_than_s: float = 86400.0
    is_earlier: bool = False
    clock_ahead_s: float = 0.0
    clock_jump: tuple[float, float] | None = None
    has_check: bool = False
    flips: bool = False
    budget_s: float | None = None
    file: int = 0


@dataclass
class Scenario:
    """A life as it is planned.

    Attributes:
        orders: what is started while faults happen.
        finals: what is started one after the other when they are over: each has to end complete.
        rates: of the network's faults, see Network.
        is_strict: whether the last released version is held to the promises too.
        kind: of further lives, see more_scenarios; empty for the first.
    """

    orders: list[Order]
    finals: list[Order]
    rates: Mapping[str, float] = field(default_factory=dict)
    is_strict: bool = False
    kind: str = ""

    def as_released(self) -> Scenario:
        """Return the same life with nothing but the last released version in it."""
        orders = [replace(order, is_earlier=True) for order in self.orders if order.verb != "damage"]
        finals = [replace(order, is_earlier=True) for order in self.finals]
        return replace(self, orders=orders, finals=finals, is_strict=True)


@cache
def _config(text: str) -> RunConfig:
    values: dict[str, Any] = eval(text)
    return parse_config(values)


def config_of(**values: Any) -> RunConfig:
    return _config(repr(values))


def draw_scenario(seed: int, kind: Kind | None = None, rates: Mapping[str, float] | None = None) -> Scenario:
    """Draw a life.

    Args:
        seed: of what is drawn.
        kind: of which commands; drawn by default.
        rates: of the network's faults; drawn by default.
    """
    draw = random.Random(f"scenario {seed}")
    kind = kind or draw.choices(KINDS, (45, 30, 15, 10))[0]
    first = Listing(tuple((name, 100 + number) for number, name in enumerate(IMAGES[: draw.randint(1, 6)])))
    base = _base(draw, kind)
    begin = Order("run", 0.0, base, first)
    more: list[Order] = [begin] * draw.choice((0, 0, 1, 1, 2, 3))
    finals = [begin]
    named = kind == "names" and base.output.run_id in TAKEN_NAMES
    if kind == "update" or (named and draw.random() < 0.5):
        second = _later(draw, first)
        names = base.categories + (("dark",) if draw.random() < 0.4 else ())
        update = Order("update", 0.0, override(base, incremental=True, run_id=None, categories=names), second)
        more += [update] * draw.randint(1, 3)
        finals = [begin, update] if named else [update]
    elif kind == "retry" or named:
        if named:  # the run of that name is another one, beside that which is tried again
            other = Order("run", 0.0, override(base, run_id=NIGHTLY, categories=("other",)), first)
            more, finals = [*more, other], [other, begin]
        again = Order("retry", 0.0, None, first)
        more += [again] * draw.randint(1, 2)
        finals = [*finals, again]
    vacuum = Order("vacuum", 0.0, older_than_s=draw.choice((86400.0, 86400.0, 3600.0)))
    more += [vacuum] * draw.choice((0, 0, 1, 2)) + [Order("read", 0.0)] * draw.choice((0, 1, 2))
    more += [Order("damage", 0.0)] * draw.choice((0, 0, 0, 0, 0, 0, 1, 2))
    spread = 10.0 ** draw.uniform(-0.5, 5.3)
    orders = [begin, *(_dated(draw, order, spread) for order in more)]
    orders = _of_versions(draw, orders, spread)
    return Scenario([_fated(draw, order) for order in orders], finals, _rates(draw) if rates is None else rates)


def _of_versions(draw: random.Random, orders: list[Order], spread: float) -> list[Order]:
    """Let some lives begin with the last released version: until one moment, or beside this one."""
    roll, upgrade = draw.random(), draw.uniform(0.0, spread)
    if roll < 0.75:
        return orders
    if roll < 0.9:
        return [replace(order, is_earlier=order.at <= upgrade) if order.config else order for order in orders]
    return [replace(order, is_earlier=draw.random() < 0.5) if order.config else order for order in orders]


def _base(draw: random.Random, kind: Kind) -> RunConfig:
    run_id: str | None = draw.choice((None, NIGHTLY))
    if kind == "names":
        run_id = draw.choice(TAKEN_NAMES)
    return config_of(
        incremental=kind == "update" and run_id is None,
        source=SOURCE,
        output={"uri": URI, "run_id": run_id},
        model={"path": "fake"},
        categories=("bright", "light")[: draw.randint(1, 2)],
        plan={"images_per_shard": draw.randint(1, 3)},
        pool={
            "runner": draw.choice(("in_process", "ray")),
            "replicas": draw.randint(1, 3),
            "shards_in_flight_per_replica": draw.randint(1, 2),
            "max_attempts_per_shard": draw.randint(1, 3),
            "drain_grace_s": draw.choice((0, 5, 30)),
            "budget_s": draw.choice((None, None, None, 3, 30, 120)),
        },
    )


def override(base: RunConfig, *, run_id: str | None, **values: Any) -> RunConfig:
    held = base.to_dict()
    held["output"] = {**held["output"], "run_id": run_id}
    return config_of(**{**held, **values})


def calm(order: Order) -> Order:
    """Return a command for when all is well again: at once, and without a budget."""
    if order.verb == "retry":  # a None would leave that of the run that it belongs to
        return replace(order, at=0.0, budget_s=_NO_BUDGET_S)
    if order.config is None:
        return replace(order, at=0.0)
    held = order.config.to_dict()
    return replace(order, at=0.0, config=config_of(**{**held, "pool": {**held["pool"], "budget_s": None}}))


def with_check(order: Order, has_check: bool = True) -> Order:
    """Return a command with ``--check``, or without."""
    if order.config is None:
        return replace(order, has_check=has_check)
    held = order.config.to_dict()
    config = config_of(**{**held, "output": {**held["output"], "check": has_check}})
    return replace(order, has_check=has_check, config=config)


def renamed(config: RunConfig) -> RunConfig:
    """Return the config of who was refused a name."""
    return override(config, run_id="mine")


def _later(draw: random.Random, first: Listing) -> Listing:
    """Let images change, come and go."""
    images = [(name, size + 1000 * (draw.random() < 0.3)) for name, size in first.images]
    if len(images) > 1 and draw.random() < 0.2:
        images.pop()
    known = {name for name, _ in first.images}
    fresh = [name for name in IMAGES if name not in known][: draw.randint(0, 2)]
    return Listing((*images, *((name, 50) for name in fresh)))


def _dated(draw: random.Random, order: Order, spread: float) -> Order:
    at = draw.uniform(0.0, 3.0) if draw.random() < 0.4 else draw.uniform(0.0, spread)
    return replace(order, at=at)


def _fated(draw: random.Random, order: Order) -> Order:
    """Draw what befalls a command's process."""

    def soon(chance: float, longest: float = 100.0) -> float | None:
        return 0.02 * (longest / 0.02) ** draw.random() if draw.random() < chance else None

    drives = order.verb in ("run", "update", "retry")
    stop_at, jump_at = soon(0.15), soon(0.1)
    return replace(
        order,
        sigterm=soon(0.25 * drives),
        kill=soon(0.15),
        stop=None if stop_at is None else (stop_at, 0.5 * 5e5 ** draw.random()),
        clock_ahead_s=draw.choice((0.0, 0.0, 0.0, 7200.0, -100_000.0)),
        clock_jump=None if jump_at is None else (jump_at, draw.uniform(-200_000.0, 200_000.0)),
    )


def _rates(draw: random.Random) -> dict[str, float]:
    """Draw a few faults, each with a rate of its own; none in a quarter of the lives."""
    if draw.random() < 0.25:
        return {}
    return {fault: draw.choice(_RATES) / 2 for fault in draw.sample(_FAULTS, draw.randint(1, 5))}
