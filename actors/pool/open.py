"""Opens the shard runner that a config asks for, and imports no other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actors.pool.config import PoolConfig
from actors.pool.processes.cores import num_cores
from actors.pool.runner import LabelerFactory, ShardRunner


def open_runner(labeler_factory: LabelerFactory, config: PoolConfig) -> ShardRunner:
    """Return the runner that the config asks for; enter it with ``with``.

    Args:
        labeler_factory: builds the labeler, with its model, in the process that will use it; must be picklable, e.g. a
            functools.partial of a module-level function.
        config: where and how to run.
    """
    if config.chosen_runner == "in_process":
        from actors.pool.in_process import InProcessRunner

        # torch would compute on as many threads as the machine has cores, which a container's quota then slows down.
        if (cores := num_cores()) < (os.cpu_count() or 1):
            os.environ.setdefault("OMP_NUM_THREADS", str(int(cores)))
        return InProcessRunner(labeler_factory, config)
    from actors.pool.replica_pool import ReplicaPool

    if config.chosen_runner == "processes":
        from actors.pool.processes.workers import ProcessWorkers

        return ReplicaPool(ProcessWorkers(labeler_factory, config), config)
    from actors.pool.cluster import prepare_environment

    # Before the next import, which imports ray: some of its variables count only then.
    prepare_environment(config)
    from actors.pool.ray_workers import RayWorkers

    return ReplicaPool(RayWorkers(labeler_factory, config), config)


@contextmanager
def importing_ahead(config: PoolConfig, preload: Sequence[str]) -> Iterator[None]:
    """Import what replicas need beside what is done in this block, for a runner that is opened within it.

    Where replicas are no processes of this machine, nothing is done.

    Args:
        config: of that runner.
        preload: names of modules: the attribute ``preload`` of its labeler's factory.
    """
    if config.chosen_runner != "processes":
        yield
        return
    from actors.pool.processes.workers import template_ahead

    with template_ahead(config, preload):
        yield
