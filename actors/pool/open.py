"""Which runner a config asks for: the one place that knows them all. None of them is loaded before it is chosen."""

from __future__ import annotations

from actors.pool.config import PoolConfig
from actors.pool.runner import LabelerFactory, ShardRunner


def open_runner(labeler_factory: LabelerFactory, config: PoolConfig) -> ShardRunner:
    """Return the runner that the config asks for, to be entered with ``with``.

    Args:
        labeler_factory: builds the labeler, model and all, in the process that will use it; must be picklable, e.g. a
            functools.partial of a module's function.
        config: where and how to run.
    """
    if config.runner == "in_process":
        from actors.pool.in_process import InProcessRunner

        return InProcessRunner(labeler_factory, config)
    from actors.pool.cluster import prepare_environment

    prepare_environment(config)
    from actors.pool.ray_pool import ReplicaPool

    return ReplicaPool(labeler_factory, config)
