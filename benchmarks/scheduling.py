"""How busy are replicas when shards take different times? The pool's own dispatcher, on a clock that jumps.

``python -m benchmarks.scheduling REPLICAS ROUNDS CV POLICY [images]`` plays one run and prints what it found as JSON.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Self

from actors.pool.config import PoolConfig
from actors.pool.replica_pool import ReplicaPool
from benchmarks.report import Figure, Report
from benchmarks.virtual_workers import VirtualWorkers
from flows.config import WaveConfig
from pipelines.layout import shard_name
from pipelines.planning.cut import MOST, Sizes, even_sizes, shrinking_sizes
from pipelines.types import ImageRef, Shard

NAME = "scheduling"
MEAN_S = 5.0
"""Seconds of a shard of MOST images on average: 500 images at 100 images a second."""
SHARDS_PER_WAVE_AND_REPLICA = 8
"""Two shards in flight, four rounds: what a wave was made of."""
ROUNDS_WITH_IMAGES = 10
"""Of the run that tells what the driver takes, with the lists of images that it holds for the shards in flight."""
RUNS = ((16, 160), (64, 160), (256, 160), (1000, 100))
"""Replicas, and how many times MOST images there are for each: twenty waves' worth, and 100,000 shards for 1,000."""


_SOME_IMAGE = ImageRef(image_id="a", uri="s3://bucket/a")


@dataclass(frozen=True)
class Played:
    """What one run came to.

    Attributes:
        busy: share of the time until the last shard was finished in which the replicas worked.
        shards: how many there were.
        hours: until the last was finished, on the clock that jumps.
        driver_cores: the driver's processor time, over those hours.
        peak_mb: largest memory of the process.
    """

    busy: float
    shards: int
    hours: float
    driver_cores: float
    peak_mb: float


class _Shards:
    """Shards as a plan is read: one after the other, and it is known how many are to come."""

    def __init__(self, sizes: Sizes, *, with_images: bool) -> None:
        self._with_images = with_images
        self._to_come = sum(count for count, _ in sizes)
        self._each = enumerate(images for count, images in sizes for _ in range(count))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Shard:
        number, size = next(self._each)
        self._to_come -= 1
        if not self._with_images:
            return Shard(shard_id=shard_name(number), images=(_SOME_IMAGE,) * size)
        ids = (f"photos/{number:07}/{image:04}.jpg" for image in range(size))
        images = tuple(ImageRef(image_id=name, uri=f"s3://bucket/{name}", num_bytes=100_000) for name in ids)
        return Shard(shard_id=shard_name(number), images=images)

    def __length_hint__(self) -> int:
        return self._to_come


def play(replicas: int, rounds: int, cv: float, policy: str, *, with_images: bool = False) -> Played:
    """Play one run.

    Args:
        replicas: how many.
        rounds: for each of them there are so many times MOST images.
        cv: standard deviation of what a shard takes over its mean; log-normal, and in proportion to its images.
        policy: "stream", as a run hands out shards; "waves", as it did before: each wave when the one before is done.
        with_images: whether each shard has image references of its own, as the driver holds them; idle time is the
            same without.
    """
    num_images = replicas * rounds * MOST
    sizes = shrinking_sizes(num_images, replicas) if policy == "stream" else even_sizes(num_images, MOST)
    sigma = math.sqrt(math.log(1 + cv**2))

    def duration(shard: Shard) -> float:
        drawn = random.Random(shard.shard_id).lognormvariate(-(sigma**2) / 2, sigma)
        return MEAN_S * drawn * len(shard.images) / MOST

    workers, pool = VirtualWorkers(duration), PoolConfig(replicas=replicas)
    shards = _Shards(sizes, with_images=with_images)
    num_shards = sum(count for count, _ in sizes)
    wave = max(math.ceil(num_shards / WaveConfig().max_waves), SHARDS_PER_WAVE_AND_REPLICA * replicas)
    begun = time.process_time()
    with workers.in_place(), ReplicaPool(workers, pool) as runner:
        handed: Iterable[Iterable[Shard]] = [shards] if policy == "stream" else _waves(shards, wave)
        finished = sum(1 for part in handed for _ in runner.map(part))
    assert finished == num_shards
    cores = (time.process_time() - begun) / workers.ended_s
    return Played(workers.busy_share(replicas), num_shards, workers.ended_s / 3600, cores, _peak_mb())


def _waves(shards: Iterator[Shard], size: int) -> Iterator[Iterator[Shard]]:
    while length_hint(shards):
        yield islice(shards, size)


def _peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _with_images(replicas: int, rounds: int, cv: float) -> Played:
    """Play a run in a process of its own, whose memory tells."""
    command = [sys.executable, "-m", "benchmarks.scheduling", *map(str, (replicas, rounds, cv)), "stream", "images"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Played(**json.loads(done.stdout))


def run(*, tiny: bool = False) -> Report:
    """Play all runs under both policies."""
    figures = list[Figure]()
    for replicas, rounds in ((2, 16),) if tiny else RUNS:
        for cv in (0.5, 1.0):
            new, old = (play(replicas, rounds, cv, policy) for policy in ("stream", "waves"))
            name = f"{replicas:,} replicas, CV {cv:g}"
            figures += [
                Figure(what=f"{name}: in waves, as before", value=old.busy, unit="of the time at work"),
                Figure(what=f"{name}: in one stream", value=new.busy, unit="of the time at work"),
                Figure(what=f"{name}: stream : waves", value=new.busy / old.busy, unit="x"),
            ]
    driver = _with_images(replicas, min(rounds, ROUNDS_WITH_IMAGES), 0.5)
    figures += [
        Figure(what=f"driver of {replicas:,} replicas: processor", value=driver.driver_cores, unit="cores"),
        Figure(what=f"driver of {replicas:,} replicas: peak memory", value=driver.peak_mb, unit="MB"),
        Figure(what=f"the same after {new.shards:,} shards, without images", value=new.peak_mb, unit="MB"),
    ]
    return Report(
        name=NAME,
        question="how busy are replicas when shards take different times?",
        method=(
            "The pool's dispatcher as it is, with actors that take drawn times on a clock that jumps: idle time is "
            "exact, whatever else the machine does. Times are log-normal and in proportion to a shard's images. In "
            "waves, as before: shards of 500 images, a wave begins when the last shard of the one before is done. In "
            "one stream: shards as they are planned for so many replicas, smaller towards the end. The driver's "
            "processor time is over the time that the run would take; Ray's own part in it is not in there."
        ),
        setup={
            "a shard of 500 images": f"{MEAN_S:g} s on average; CV is the standard deviation over that",
            "for each replica": "160 shards of 500 images, which are 20 waves; 100 with 1,000 replicas",
            "in flight": "2 shards on each replica, one after the other",
        },
        figures=tuple(figures),
        remarks=(
            "What is left with a CV of 1 and 1,000 replicas is single shards that take many times the mean, "
            "begun near the end; only smaller shards throughout would shorten them.",
            "The same through the whole flow, with Ray, Prefect and a model that sleeps: `python -m "
            "benchmarks.scheduling_flow`; not yet measured on a quiet machine.",
        ),
    )


if __name__ == "__main__":
    _, *what, policy_ = (word for word in sys.argv if word != "images")
    replicas_, rounds_, cv_ = what
    played = play(int(replicas_), int(rounds_), float(cv_), policy_, with_images="images" in sys.argv)
    print(json.dumps(asdict(played)))
