"""Remembers which images each attempt is processing, in a Ray actor on the driver's node that outlives replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool.workers import in_one_line

# The witness does nothing but read and write a dictionary: an answer that takes longer will not come.
_ANSWER_S = 30


class _ImagesInProgress:
    """The actor: ids of the images in progress, by attempt."""

    def __init__(self) -> None:
        self._image_ids: dict[str, tuple[str, ...]] = {}

    def report(self, attempt_id: str, image_ids: Sequence[str]) -> None:
        self._image_ids[attempt_id] = tuple(image_ids)

    def take(self, attempt_id: str) -> tuple[str, ...]:
        return self._image_ids.pop(attempt_id, ())


@dataclass(frozen=True, slots=True)
class ReportInProgress:
    """Tells the witness, from within a replica, which images an attempt is about to process."""

    witness: Any
    attempt_id: str

    def __call__(self, image_ids: Sequence[str]) -> None:
        """Report the ids and wait until the witness has them; without a witness the attempt goes on."""
        # Waiting is the point: an image that ends the process at once must have been reported before.
        try:
            ray.get(self.witness.report.remote(self.attempt_id, list(image_ids)), timeout=_ANSWER_S)
        except RayError:
            print(f"attempt {self.attempt_id}: the driver's witness does not answer", flush=True)


class Witness:
    """The driver's handle on the witness actor, which is started by the first attempt that follows a crash."""

    def __init__(self) -> None:
        self._actor: Any = None

    def report_of(self, attempt_id: str) -> ReportInProgress:
        """Return the callable with which an attempt reports its images, starting the actor if necessary."""
        if self._actor is None:
            # Pinned to the driver's node: a node that is lost with its replicas must not take the witness along.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._actor = ray.remote(_ImagesInProgress).options(num_cpus=0, scheduling_strategy=here).remote()
        return ReportInProgress(self._actor, attempt_id)

    def in_progress(self, attempt_id: str) -> tuple[str, ...]:
        """Return the ids of the images in progress when an attempt ended; none if it never reported any."""
        if self._actor is None:
            return ()
        try:
            return tuple(ray.get(self._actor.take.remote(attempt_id), timeout=_ANSWER_S))
        except RayError as error:
            print(f"the witness of attempt {attempt_id} does not answer: {in_one_line(error)}", flush=True)
            self.close()
            return ()

    def close(self) -> None:
        """Kill the actor."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
