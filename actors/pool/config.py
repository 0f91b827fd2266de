"""Settings of the replica pool. Imports neither torch nor ray, which keeps the command line quick to start."""

from __future__ import annotations

import math
import os
import sys
from typing import Literal, Self

from pydantic import model_validator

from pipelines.settings import Settings

RunnerKind = Literal["auto", "ray", "processes", "in_process"]


class PoolConfig(Settings):
    """Settings of the replica pool: its size, the resources of each replica, retries and timeouts."""

    runner: RunnerKind = "auto"
    """"ray" for actors on one machine or many, "processes" for processes of this machine without GPUs (Linux), which
    start sooner, "in_process" for one replica in this process. In the last only shards_in_flight_per_replica,
    max_attempts_per_shard, max_replica_start_failures, budget_s and drain_grace_s mean anything: a thread can be
    neither placed nor killed. "auto" is explained at chosen_runner.
    """
    replicas: int = 1
    """Loaded models."""
    num_gpus_per_replica: float = 0
    """GPUs each replica holds; a fraction shares one, above 1 only whole numbers."""
    num_cpus_per_replica: float = 1
    """CPU cores each replica holds, and the number of its torch threads, except in_process."""
    shards_in_flight_per_replica: int = 2
    """Shards one replica works on at once, so that fetching, decoding and writing of one overlap the model's work on
    another.
    """
    max_attempts_per_shard: int = 3
    """Failed attempts (an error, a dead replica, a timeout) after which a shard is given up; those that brought the
    image closer that ends replicas do not count. With 1 a shard also fails when a neighbor on its replica kills it;
    from the second attempt on it is alone.
    """
    max_replica_start_failures: int = 3
    """Consecutive failed starts after which no more replicas are started."""
    replica_start_timeout_s: float = 900
    """Seconds a replica may take from being asked for until its model is loaded; on a cluster that is busy or growing
    this includes waiting for room. While other replicas work it is then asked for anew.
    """
    shard_timeout_s: float | None = 6 * 3600
    """Seconds an attempt may take before its replica is taken for hung, killed and replaced; None for no limit."""
    budget_s: float | None = None
    """Wall-clock seconds from the first shard handed out after which no more are; None for no limit."""
    drain_grace_s: float = 30
    """Seconds that shards in flight are given to finish once the budget is spent or stop() was called."""
    recycle_after_shards: int | None = None
    """Attempts after which a replica is replaced by a fresh one; None for never."""
    ray_address: str | None = None
    """An existing cluster to join from one of its nodes ("auto" or "host:port"); "local" starts Ray on this machine for
    as long as the runner is open; None takes RAY_ADDRESS where it is set, else "local".
    """
    gpu_price_per_hour: float | None = None
    """Of one GPU, in any currency: ``status`` then tells what a run has cost so far."""
    wait_for_nodes: bool = False
    """True on a cluster that adds nodes on demand: replicas then wait up to replica_start_timeout_s for room. False
    refuses at once what the cluster's nodes cannot hold.
    """

    @property
    def chosen_runner(self) -> Literal["ray", "processes", "in_process"]:
        """The runner that "auto" stands for here: processes, unless something asks for Ray.

        That is an address, a Ray that this process has joined already, GPUs, which Ray hands out, nodes to wait for, or
        another system than Linux.
        """
        if self.runner != "auto":
            return self.runner
        ray = sys.modules.get("ray")
        has_joined = ray is not None and ray.is_initialized()
        named = self.ray_address or os.environ.get("RAY_ADDRESS")
        asks = has_joined or named or self.num_gpus_per_replica or self.wait_for_nodes
        return "ray" if asks or sys.platform != "linux" else "processes"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.runner == "processes" and (self.num_gpus_per_replica or sys.platform != "linux"):
            raise ValueError("runner is 'processes'; allowed with num_gpus_per_replica 0 on Linux: else take 'ray'")
        for name in (
            "replicas",
            "shards_in_flight_per_replica",
            "max_attempts_per_shard",
            "max_replica_start_failures",
            "recycle_after_shards",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; allowed: 1 or more")
        for name in ("replica_start_timeout_s", "shard_timeout_s", "budget_s"):
            value = getattr(self, name)
            # "not > 0" instead of "<= 0" also refuses NaN, which compares false with everything.
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; allowed: more than 0 seconds")
        for name in ("drain_grace_s", "num_gpus_per_replica", "num_cpus_per_replica", "gpu_price_per_hour"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name} is {value}; allowed: 0 or more")
        # A Ray Client (ray://) would tie the whole run to this process's connection; the driver runs in the cluster.
        if self.ray_address is not None and "://" in self.ray_address:
            raise ValueError(
                f"ray_address is {self.ray_address!r}; allowed: auto, local or host:port of the cluster's head, "
                "with this process running on one of the cluster's nodes"
            )
        if self.num_gpus_per_replica > 1 and self.num_gpus_per_replica % 1:
            raise ValueError(
                f"num_gpus_per_replica is {self.num_gpus_per_replica}; allowed: up to 1, or a whole number above"
            )
        return self
