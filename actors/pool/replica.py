"""What runs inside a Ray actor: one labeler, its model loaded once. Knows nothing of the pool that owns it."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from actors.pool.runner import LabelerFactory, summarize_error
from pipelines.types import CrashHistory, ReplicaUnusable, Shard, ShardLabeler, ShardReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """Where a ready replica runs, and what its labeler says of itself."""

    host: str
    pid: int
    labeler: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerError:
    """An error of the labeler, as text: the error itself may not survive the journey to the driver.

    Attributes:
        error: type and message, then the end of the traceback.
        replica_unusable: whether the replica has to be replaced.
    """

    error: str
    replica_unusable: bool


class Replica:
    """One loaded model. Becomes an actor in replica_set.py.

    Args:
        labeler_factory: builds the labeler; runs here, in the actor's process.
    """

    def __init__(self, labeler_factory: LabelerFactory) -> None:
        try:
            self._labeler: ShardLabeler | LabelerError = labeler_factory()
        except Exception as error:  # noqa: BLE001 - the driver tells it better than Ray does
            self._labeler = LabelerError(error=summarize_error(error), replica_unusable=True)

    def ready(self) -> ReplicaFacts | LabelerError:
        """Return the replica's facts once its model is loaded, or why it could not be."""
        if isinstance(self._labeler, LabelerError):
            return self._labeler
        return ReplicaFacts(host=socket.gethostname(), pid=os.getpid(), labeler=dict(self._labeler.describe()))

    def stay(self) -> None:
        """Never return: the reference to this call fails as soon as the process has ended, at work or idle."""
        threading.Event().wait()

    def label(self, shard: Shard, attempt_id: str, crashes: CrashHistory | None) -> ShardReceipt | LabelerError:
        """Label and commit one shard; an error of the labeler is returned, not raised."""
        if isinstance(self._labeler, LabelerError):
            return self._labeler
        try:
            return self._labeler.label(shard, attempt_id, crashes)
        except (Exception, ReplicaUnusable) as error:  # noqa: BLE001 - here a shard's error becomes its outcome
            return LabelerError(error=summarize_error(error), replica_unusable=isinstance(error, ReplicaUnusable))
