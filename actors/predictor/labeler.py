"""RunLabeler, which a replica holds: labels shards with a loaded predictor and commits them to an opened output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from actors.predictor.config import PredictorConfig
from actors.predictor.garbage_collection import garbage_collection_paused
from pipelines.labeling.exemplars import read_exemplars
from pipelines.labeling.shard import LabelJob, label_shard
from pipelines.storage.store import open_store
from pipelines.table.commits import read_commit
from pipelines.types import CrashHistory, Predictor, Shard, ShardReceipt


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLabelerFactory:
    """Builds a RunLabeler in the process that calls it.

    Small and picklable, and free of credentials: every machine has its own.

    Attributes:
        predictor: settings of the model to load.
        job: what the run asks.
        output_uri: where the table is written.
        output_options: storage options of the output.
        shards_in_flight: number of shards labeled at once.
        preload: modules that a process imports once for all replicas that are forked from it.
    """

    preload: ClassVar[tuple[str, ...]] = ("actors.predictor.predictor",)

    predictor: PredictorConfig
    job: LabelJob
    output_uri: str
    output_options: Mapping[str, Any] = field(default_factory=dict)
    shards_in_flight: int = 1

    def __call__(self) -> RunLabeler:
        """Load the model, check the run's prompts against it, have it see their exemplars, and open the output.

        Raises:
            DamagedError: the plan has not the images of the exemplars as it says.
            PlanError: an exemplar was forgotten.
        """
        # Imported here, not at the top: the driver pickles this factory without loading torch.
        with garbage_collection_paused():
            from actors.predictor.predictor import XSamPredictor

        predictor, job = XSamPredictor(self.predictor), self.job
        predictor.check(job.prompts)
        if any(prompt.exemplars for prompt in job.prompts):
            predictor.study(job.prompts, read_exemplars(open_store(self.output_uri, self.output_options), job))
        if job.config.batch_size is None:
            found = predictor.find_batch_size(job.prompts, shards=self.shards_in_flight)
            job = replace(job, config=job.config.replace(batch_size=found))
        return RunLabeler(predictor, job, self.output_uri, self.output_options)


class RunLabeler:
    """A ShardLabeler on a predictor. May label two shards at once, calling the predictor from both threads."""

    def __init__(
        self, predictor: Predictor, job: LabelJob, output_uri: str, output_options: Mapping[str, Any] | None = None
    ) -> None:
        self._predictor = predictor
        self._job = job
        self._store = open_store(output_uri, output_options)

    def label(self, shard: Shard, attempt: str, crashes: CrashHistory | None = None) -> ShardReceipt:
        """Label and commit a shard under the given attempt id, unless another attempt has committed it meanwhile."""
        try:
            held = read_commit(self._store, self._job.run_id, shard.shard_id, shard.repair)
        except FileNotFoundError:
            return label_shard(
                shard, job=self._job, store=self._store, predictor=self._predictor, attempt=attempt, crashes=crashes
            )
        return held.receipt(committed_here=False)

    def describe(self) -> Mapping[str, str]:
        """Return the predictor's facts for provenance."""
        return self._predictor.describe()
