"""The replica, which is what runs inside a worker: one labeler with its loaded model. Knows nothing of the pool."""

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
    """Where a ready replica runs, and its labeler's facts for provenance."""

    host: str
    pid: int
    labeler: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelerError:
    """An error of the labeler as text, because the exception itself may fail to unpickle on the driver.

    Attributes:
        error: type and message, then the end of the traceback.
        replica_unusable: whether the replica must be replaced.
    """

    error: str
    replica_unusable: bool


class Replica:
    """One loaded model, in a process of its own.

    Args:
        labeler_factory: builds the labeler; called in that process.
    """

    def __init__(self, labeler_factory: LabelerFactory) -> None:
        # Kept for ready() instead of raised: a process whose replica cannot be built has to be replaced anyway, and the
        # driver can then name the cause. Also of what is no Exception: ReplicaUnusable, or a library's sys.exit.
        self._labeler: ShardLabeler | LabelerError
        try:
            self._labeler = labeler_factory()
            self._facts = ReplicaFacts(
                host=socket.gethostname(), pid=os.getpid(), labeler=dict(self._labeler.describe())
            )
        except BaseException as error:  # noqa: BLE001
            self._labeler = LabelerError(error=summarize_error(error), replica_unusable=True)

    def ready(self) -> ReplicaFacts | LabelerError:
        """Return the replica's facts once its model is loaded, or why it could not be."""
        return self._labeler if isinstance(self._labeler, LabelerError) else self._facts

    def stay(self) -> None:
        """Never return. The reference to this call fails as soon as the process ends, whether it was busy or idle."""
        threading.Event().wait()

    def label(self, shard: Shard, attempt_id: str, crashes: CrashHistory | None) -> ShardReceipt | LabelerError:
        """Label and commit one shard; an error of the labeler is returned instead of raised."""
        if isinstance(self._labeler, LabelerError):
            return self._labeler
        try:
            # ReplicaUnusable is not an Exception, and so must be named beside it.
            return self._labeler.label(shard, attempt_id, crashes)
        except (Exception, ReplicaUnusable) as error:  # noqa: BLE001 - here a shard's error becomes its outcome
            return LabelerError(error=summarize_error(error), replica_unusable=isinstance(error, ReplicaUnusable))
