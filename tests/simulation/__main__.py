"""Live one life again, or many: ``python -m tests.simulation SEED`` or ``python -m tests.simulation FIRST LAST``."""

from __future__ import annotations

import sys
import time
from collections import defaultdict

from tests.simulation.life import Broken, live, simulation


def main(first: int, last: int) -> int:
    """Live the lives, print what broke them, and return an exit code."""
    wall, cpu, drivers = time.monotonic(), time.process_time(), 0
    broken: dict[str, list[int]] = defaultdict(list)
    with simulation():
        for seed in range(first, last + 1):
            try:
                life = live(seed)
                drivers += life.drivers
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
        f"{lives} lives, {drivers} drivers, {sum(map(len, broken.values()))} broken; {wall:.1f} s, {cpu:.1f} s of CPU: "
        f"{lives / wall:.1f} lives/s, {drivers / wall:.1f} drivers/s"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    seeds = [int(word) for word in sys.argv[1:]]
    sys.exit(main(seeds[0], seeds[-1]))
