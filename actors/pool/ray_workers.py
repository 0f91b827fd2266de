"""Workers that are Ray actors, on one machine or many. Ray restarts none of them and repeats no call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.pool.cluster import connect
from actors.pool.config import PoolConfig
from actors.pool.head_watch import HeadWatch
from actors.pool.replica import Replica
from actors.pool.runner import LabelerFactory
from actors.pool.witness import Witness
from actors.pool.workers import Answer, WorkerEndedError, in_one_line
from pipelines.types import CrashHistory, Shard


class RayWorker:
    """A Ray actor with one replica.

    Args:
        factory: builds the labeler in the actor's process; must be picklable.
        config: resources of the actor, and how many shards it labels at once.
    """

    def __init__(self, factory: LabelerFactory, config: PoolConfig) -> None:
        actor_class = ray.remote(Replica).options(
            num_cpus=config.num_cpus_per_replica,
            num_gpus=config.num_gpus_per_replica,
            max_concurrency=config.shards_in_flight_per_replica + 1,  # one thread waits in `stay`
            # The driver retries instead of Ray: a lost node is noticed only after some 15 s, by which time Ray's own
            # retries are used up, and a new attempt needs a new attempt id.
            max_restarts=0,
            max_task_retries=0,
        )
        self._actor = actor_class.remote(factory)
        self.ready = _answer(self._actor.ready.remote())
        self.ended = _answer(self._actor.stay.remote())

    def label(self, shard: Shard, attempt_id: str, crashes: CrashHistory | None) -> Future[Answer]:
        """Begin an attempt; see Worker."""
        return _answer(self._actor.label.remote(shard, attempt_id, crashes))

    def kill(self) -> None:
        """Kill the actor; see Worker."""
        if ray.is_initialized():
            ray.kill(self._actor, no_restart=True)


class RayWorkers:
    """Workers on a Ray cluster; see Workers.

    Args:
        factory: builds the labeler in the actor's process; must be picklable.
        config: the cluster, and the resources of each replica.
    """

    def __init__(self, factory: LabelerFactory, config: PoolConfig) -> None:
        self._factory = factory
        self._config = config
        self._owns_ray = False
        self._head: HeadWatch | None = None
        self._witness = Witness()

    @property
    def lost(self) -> str:
        """Why the cluster is taken for gone; empty while it is there."""
        return self._head.lost if self._head is not None else ""

    def open(self) -> None:
        """Connect to Ray; see Workers."""
        self._owns_ray = connect(self._config)
        self._head = HeadWatch()

    def start(self) -> RayWorker:
        """Ask Ray for another actor."""
        return RayWorker(self._factory, self._config)

    def report_of(self, attempt_id: str) -> Callable[[Sequence[str]], None]:
        """Return what tells the witness; see Workers."""
        return self._witness.report_of(attempt_id)

    def in_progress(self, attempt_id: str) -> tuple[str, ...]:
        """Ask the witness; see Workers."""
        return self._witness.in_progress(attempt_id)

    def free(self) -> str:
        """Say which resources of the cluster nothing holds."""
        free = ray.available_resources()
        return ", ".join(f"{free[name]:g} {name}s" for name in ("CPU", "GPU") if name in free) or "nothing"

    def close(self) -> None:
        """Shut Ray down if these workers started it."""
        if self._head is not None:
            self._head.close()
        # A head that is gone would never answer the request to kill the witness.
        if not self.lost and ray.is_initialized():
            self._witness.close()
        if self._owns_ray:
            self._owns_ray = False
            ray.shutdown()


def _answer(ref: Any) -> Future[Answer]:
    """Return what has the answer to a call once Ray has it, with the errors that Worker promises."""
    answer: Future[Answer] = Future()

    def settle(done: Future[Answer]) -> None:
        try:
            answer.set_result(done.result())
        except RayTaskError as error:
            # The labeler's own errors return as LabelerError, so this one arose in passing arguments or the result.
            answer.set_exception(error)
        except RayError as error:
            answer.set_exception(WorkerEndedError(in_one_line(error)))

    ref.future().add_done_callback(settle)
    return answer
