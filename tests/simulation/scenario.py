"""What happens in a life, drawn from its seed: which commands, when, what befalls them, and how bad the network is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

from flows.config import RunConfig, parse_config
from tests.simulation.collection import SOURCE, Listing
from tests.simulation.network import FAULTS, URI

_IMAGES = ("a0", "b1", "a2", "m3", "n4", "a5", "m6", "a7")
_RATES = (0.01, 0.03, 0.1, 0.25)
_KINDS = sorted({fault for faults in FAULTS.values() for fault in faults})
NIGHTLY = "nightly"

Verb = Literal["run", "update", "retry", "vacuum", "read", "damage"]


@dataclass(frozen=True)
class Order:
    """One command of a life.

    Attributes:
        at: when it is given, seconds.
        config: of a run; None for others.
        listing: the source, as it is then.
        sigterm, kill: how many seconds later it gets a SIGTERM, or a SIGKILL; None for never.
        older_than_s: of vacuum.
        stop: when, and for how long, its process does not go on (SIGSTOP).
        clock_ahead_s, clock_jump: of its machine: how much, and when it jumps by how much.
    """

    verb: Verb
    at: float
    config: RunConfig | None = None
    listing: Listing = Listing(())
    sigterm: float | None = None
    kill: float | None = None
    stop: tuple[float, float] | None = None
    older_than_s: float = 86400.0
    clock_ahead_s: float = 0.0
    clock_jump: tuple[float, float] | None = None


@dataclass
class Scenario:
    """A life as it is planned.

    Attributes:
        orders: what is started while faults happen.
        finals: what is started one after the other when they are over: each has to end complete.
        rates: of the network's faults, see Network.
    """

    orders: list[Order]
    finals: list[Order]
    rates: Mapping[str, float] = field(default_factory=dict)


@cache
def _config(text: str) -> RunConfig:
    values: dict[str, Any] = eval(text)
    return parse_config(values)


def config_of(**values: Any) -> RunConfig:
    return _config(repr(values))


def draw_scenario(seed: int) -> Scenario:
    """Draw a life."""
    draw = random.Random(f"scenario {seed}")
    kind = draw.choices(("run", "update", "retry", "names"), (45, 30, 15, 10))[0]
    first = Listing(tuple((name, 100 + number) for number, name in enumerate(_IMAGES[: draw.randint(1, 6)])))
    base = _base(draw, kind)
    orders, finals = [Order("run", 0.0, base, first)], [Order("run", 0.0, base, first)]
    more: list[Order] = [orders[0]] * draw.choice((0, 0, 1, 1, 2, 3))
    if kind in ("update", "names"):
        second = _later(draw, first)
        names = base.categories + (("dark",) if draw.random() < 0.4 else ())
        update = Order("update", 0.0, _override(base, incremental=True, run_id=None, categories=names), second)
        more += [update] * draw.randint(1, 3)
        finals = [orders[0], update] if kind == "names" else [update]
    if kind == "retry":
        again = Order("retry", 0.0, None, first)
        more += [again] * draw.randint(1, 2)
        finals += [again]
    vacuum = Order("vacuum", 0.0, older_than_s=draw.choice((86400.0, 86400.0, 3600.0)))
    more += [vacuum] * draw.choice((0, 0, 1, 2)) + [Order("read", 0.0)] * draw.choice((0, 1, 2))
    more += [Order("damage", 0.0)] * draw.choice((0, 0, 0, 0, 0, 0, 1, 2))
    spread = 10.0 ** draw.uniform(-0.5, 5.3)
    orders += [_dated(draw, order, spread) for order in more]
    return Scenario([_fated(draw, order) for order in orders], finals, _rates(draw))


def _base(draw: random.Random, kind: str) -> RunConfig:
    run_id: str | None = draw.choice((None, NIGHTLY))
    if kind == "names":
        run_id = draw.choice(("update-2", "update-3", "update-1"))
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


def _override(base: RunConfig, *, run_id: str | None, **values: Any) -> RunConfig:
    held = base.to_dict()
    held["output"] = {**held["output"], "run_id": run_id}
    return config_of(**{**held, **values})


def calm(config: RunConfig) -> RunConfig:
    """Return a config for when all is well again: no budget."""
    held = config.to_dict()
    return config_of(**{**held, "pool": {**held["pool"], "budget_s": None}})


def _later(draw: random.Random, first: Listing) -> Listing:
    """Let images change, come and go."""
    images = [(name, size + 1000 * (draw.random() < 0.3)) for name, size in first.images]
    if len(images) > 1 and draw.random() < 0.2:
        images.pop()
    known = {name for name, _ in first.images}
    fresh = [name for name in _IMAGES if name not in known][: draw.randint(0, 2)]
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
    return {fault: draw.choice(_RATES) / 2 for fault in draw.sample(_KINDS, draw.randint(1, 5))}
