"""What runs inside a Ray actor: one labeler, its model loaded once. Knows nothing of the pool that owns it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from actors.pool import LabelerFactory, ReplicaUnusableError, summarise_error
from pipelines.types import Shard, ShardReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """Where a ready replica runs, and what its labeler says of itself."""

    host: str
    pid: int
    labeler: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptError:
    """An error that the labeler raised, as text: the error itself may not survive the journey to the driver.

    Attributes:
        error: type and message, then the end of the traceback.
        replica_unusable: whether the replica has to be replaced.
    """

    error: str
    replica_unusable: bool


class Replica:
    """One loaded model. Becomes an actor in replica_pool.py.

    Args:
        labeler_factory: builds the labeler; runs here, in the actor's process.
    """

    def __init__(self, labeler_factory: LabelerFactory) -> None:
        self._labeler = labeler_factory()

    def ready(self) -> ReplicaFacts:
        """Return the replica's facts; that it answers at all says that its model is loaded."""
        return ReplicaFacts(host=socket.gethostname(), pid=os.getpid(), labeler=dict(self._labeler.describe()))

    def label(self, shard: Shard, attempt_id: str) -> ShardReceipt | AttemptError:
        """Label and commit one shard; an error of the labeler is returned, not raised."""
        try:
            return self._labeler.label(shard, attempt_id)
        except Exception as error:  # noqa: BLE001 - the border at which a shard's error becomes its outcome
            return AttemptError(error=summarise_error(error), replica_unusable=isinstance(error, ReplicaUnusableError))
