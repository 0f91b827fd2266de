"""Live one life again, or many: ``python -m tests.simulation [KIND] SEED`` or ``... [KIND] FIRST LAST``.

Of further kinds KIND is ``checked``, ``contended``, ``compacted`` or ``corrected`` (more_scenarios.py).
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict

from tests.simulation.life import Broken, live, simulation
from tests.simulation.more_scenarios import DRAWS


def main(first: int, last: int, kind: str = "") -> int:
    """Live the lives, print what broke them, and return an exit code."""
    wall, cpu, drivers, named = time.monotonic(), time.process_time(), 0, 0
    broken: dict[str, list[int]] = defaultdict(list)
    with simulation():
        for seed in range(first, last + 1):
            try:
                life = live(seed, DRAWS[kind](seed))
                drivers, named = drivers + life.drivers, named + life.num_named
            except Broken as error:
                broken[str(error).partition("\n")[0][:200]].append(seed)
                if first == last:
                    print(error)
    lives, wall, cpu = last - first + 1, time.monotonic() - wall, time.process_time() - cpu
    if first == last and not broken:
        print(life.story())
    for what, seeds in sorted(broken.items(), key=lambda item: item[1]):
        print(f"{len(seeds):5} of {lives}, the first {seeds[0]}: {what}")
    print(
        f"{lives} lives, {drivers} drivers, {named} flipped bits named, "
        f"{sum(map(len, broken.values()))} broken; {wall:.1f} s, {cpu:.1f} s of CPU: "
        f"{lives / wall:.1f} lives/s, {drivers / wall:.1f} drivers/s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    kinds = [word for word in sys.argv[1:] if word in DRAWS]
    seeds = [int(word) for word in sys.argv[1:] if word not in DRAWS]
    sys.exit(main(seeds[0], seeds[-1], *kinds))
