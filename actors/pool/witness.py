"""Remembers which images each replica has under way, where the end of a replica does not reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.pool.replicas import in_one_line

_ANSWER_S = 30


class _Notes:
    """What the actor holds: by attempt the ids of the images under way."""

    def __init__(self) -> None:
        self._under_way: dict[str, tuple[str, ...]] = {}

    def note(self, attempt_id: str, image_ids: Sequence[str]) -> None:
        self._under_way[attempt_id] = tuple(image_ids)

    def take(self, attempt_id: str) -> tuple[str, ...]:
        return self._under_way.pop(attempt_id, ())


@dataclass(frozen=True, slots=True)
class Note:
    """Tells the witness what an attempt is about to touch: returns once it knows. Travels to the replica."""

    witness: Any
    attempt_id: str

    def __call__(self, image_ids: Sequence[str]) -> None:
        """Note the ids; an attempt whose witness is gone goes on without."""
        try:
            ray.get(self.witness.note.remote(self.attempt_id, list(image_ids)), timeout=_ANSWER_S)
        except RayError:
            print(f"attempt {self.attempt_id}: the driver's witness does not answer", flush=True)


class Witness:
    """A Ray actor beside the driver, started when it is first needed: only attempts that are under suspicion note."""

    def __init__(self) -> None:
        self._actor: Any = None

    def note_of(self, attempt_id: str) -> Note:
        """Return what an attempt tells the witness with."""
        if self._actor is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            self._actor = ray.remote(_Notes).options(num_cpus=0, scheduling_strategy=here).remote()
        return Note(self._actor, attempt_id)

    def under_way(self, attempt_id: str) -> tuple[str, ...]:
        """Return the ids of the images that an attempt had under way when it ended; none if it never told."""
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
