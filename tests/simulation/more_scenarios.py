"""Lives of further kinds, drawn from streams of their own: a seed of the first kinds keeps the life that it has.

- checked: a life of any of the first kinds in which bits flip at rest, and some commands are given ``--check``.
- contended: several drivers plan and label one run at about the same time, while its source changes; many end early.
- corrected: a life of any of the first kinds, without earlier versions, in which people export, edit and import masks.
- compacted: a life of any of the first kinds in which the output is compacted again and again, beside all else.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from tests.simulation.collection import SOURCE, Listing
from tests.simulation.corrections import PEOPLES_NAME
from tests.simulation.network import URI
from tests.simulation.scenario import IMAGES, NIGHTLY, Order, Scenario, config_of, draw_scenario, override, with_check


def draw_checked(seed: int, rates: Mapping[str, float] | None = None) -> Scenario:
    """Draw a life in which bits flip; if any may, whoever ends it looks for them."""
    life, draw = draw_scenario(seed, rates=rates), random.Random(f"checked {seed}")

    def checked(order: Order, chance: float) -> Order:
        drives = order.config is not None or order.verb == "retry"
        return with_check(order) if drives and not order.is_earlier and draw.random() < chance else order

    longest = max(order.at for order in life.orders) + 30.0
    flips = [Order("damage", draw.uniform(0.0, longest), flips=True) for _ in range(draw.choice((0, 1, 1, 2, 4)))]
    orders = [checked(order, 0.5) for order in life.orders]
    finals = [checked(order, 1.0 if flips else 0.5) for order in life.finals]
    return replace(life, kind="checked", orders=[*orders, *flips], finals=finals)


def draw_compacted(seed: int, rates: Mapping[str, float] | None = None) -> Scenario:
    """Draw a life with compactions: some at about the same time, some that die, some beside a vacuum."""
    life, draw = draw_scenario(seed, rates=rates), random.Random(f"compacted {seed}")
    longest = max(order.at for order in life.orders) + 30.0
    orders = list(life.orders)
    for _ in range(draw.randint(1, 4)):
        order = Order("compact", draw.choice((draw.uniform(0.0, longest), 5.0 + draw.random())))
        kill, stop = 0.02 * 5000 ** draw.random(), (0.02 * 500 ** draw.random(), 2e5 * draw.random())
        orders.append(
            replace(order, kill=kill if draw.random() < 0.3 else None, stop=stop if draw.random() < 0.2 else None)
        )
    if draw.random() < 0.5:
        orders.append(Order("vacuum", draw.uniform(0.0, 2 * longest), older_than_s=draw.choice((86400.0, 60.0, 0.5))))
    return replace(life, kind="compacted", orders=orders)


def draw_corrected(seed: int, rates: Mapping[str, float] | None = None) -> Scenario:
    """Draw a life with imports: some of one file at once, some of several, some that die.

    Another run asks for a name that people have given to masks by then.
    """
    draw = random.Random(f"corrected {seed}")
    life = draw_scenario(seed, draw.choice(("run", "update", "retry")), rates)
    orders, finals = ([_named(order) for order in some] for some in (life.orders, life.finals))
    longest = max(order.at for order in orders) + 30.0
    first = orders[0]
    assert first.config is not None
    config = override(first.config, incremental=False, run_id="by-name", categories=(PEOPLES_NAME,))
    by_name = Order("run", longest + draw.uniform(0.0, 100.0), config, first.listing)
    orders.append(by_name)
    for file in range(draw.randint(1, 3)):
        for _ in range(draw.choice((1, 1, 2))):
            order = Order("import", draw.choice((draw.uniform(0.0, longest), 30.0 + draw.random())), file=file)
            kill, stop = 0.02 * 500 ** draw.random(), (0.02 * 500 ** draw.random(), 2e5 * draw.random())
            orders.append(
                replace(order, kill=kill if draw.random() < 0.3 else None, stop=stop if draw.random() < 0.2 else None)
            )
    return replace(life, kind="corrected", orders=orders, finals=[by_name, *finals])


def _named(order: Order) -> Order:
    """Give a run a name: one without is refused beside runs of another configuration; let it be of this version."""
    order = replace(order, is_earlier=False)
    if order.config is None or order.config.incremental or order.config.output.run_id is not None:
        return order
    return replace(order, config=override(order.config, run_id=NIGHTLY))


def draw_contended(seed: int, rates: Mapping[str, float] | None = None) -> Scenario:
    """Draw a life of one run that several drivers begin, some of them from a listing that is newer."""
    draw = random.Random(f"contended {seed}")
    first = Listing(tuple((name, 100 + number) for number, name in enumerate(IMAGES[: draw.randint(2, 6)])))
    second = _other_images(draw, first)
    base = config_of(
        source=SOURCE,
        output={"uri": URI, "run_id": draw.choice((None, NIGHTLY))},
        model={"path": "fake"},
        categories=("bright",),
        plan={"images_per_shard": draw.randint(1, 2)},
        pool={
            "runner": draw.choice(("in_process", "ray", "ray")),
            "replicas": draw.randint(1, 3),
            "shards_in_flight_per_replica": draw.randint(1, 2),
            "max_attempts_per_shard": draw.randint(1, 2),
            "drain_grace_s": draw.choice((0, 0, 5)),
            "budget_s": draw.choice((None, 1, 3, 10)),
        },
    )
    begin = Order("run", 0.0, base, first)
    orders = [begin]
    for _ in range(draw.randint(2, 5)):
        at, listing = draw.choice((0.3, 2.0, 20.0)) * draw.random(), draw.choice((first, second))
        stops = 0.1 * 200 ** draw.random() if draw.random() < 0.4 else None
        orders.append(replace(begin, at=at, listing=listing, sigterm=stops))
    update = Order("update", 0.0, override(base, incremental=True, run_id=None), second)
    drawn = {fault: draw.choice((0.05, 0.2, 0.4)) for fault in draw.sample(("slow", "late", "lost answer"), 2)}
    return Scenario(orders, [begin, update], drawn if rates is None else rates, kind="contended")


def _other_images(draw: random.Random, first: Listing) -> Listing:
    """Let one image become another, of the same size as often as not: number and bytes do not tell them apart."""
    images = list(first.images)
    place = draw.randrange(len(images))
    name = draw.choice([one for one in IMAGES if one not in dict(images)])
    images[place] = name, images[place][1] + draw.choice((0, 0, 1000))
    return Listing(tuple(sorted(images)))


DRAWS: Mapping[str, Callable[[int], Scenario]] = {
    "": draw_scenario,
    "checked": draw_checked,
    "contended": draw_contended,
    "compacted": draw_compacted,
    "corrected": draw_corrected,
}
"""By kind, as `python -m tests.simulation` takes it; without one, the first kinds."""
