"""The Ray cluster of the chaos test: starts nodes on this machine, loses and adds them as standard input orders.

python -m tests.reliability.chaos_nodes CPUS_PER_NODE; prints a JSON line for each order. A process of its own, since
ray.cluster_utils leaves traces in the process that uses it, and so that all of the cluster is in one session.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster

from tests.support.ray_workers import forked_workers

_NODE = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20, "include_log_monitor": False}
# A lost node is noticed after 2 s, where Ray otherwise takes 15; one that is only slow to answer has the usual 10 s.
_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
}


def start() -> Cluster:
    """Start a head without CPUs, where drivers live."""
    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False, no_monitor=True, _system_config=_HEALTH_CHECKS, **_NODE)
    return cluster


def obey(cluster: Cluster, order: str, cpus_per_node: int) -> dict[str, object]:
    """Do what the order says and return the answer to it."""
    if order == "add":
        cluster.add_node(num_cpus=cpus_per_node, **_NODE)
    elif order == "lose":
        cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.unique_id), allow_graceful=False)
    elif order == "count":
        total, free = cluster.global_state.cluster_resources(), cluster.global_state.available_resources()
        return {"done": order, "cpus": total.get("CPU", 0), "free_cpus": free.get("CPU", 0)}
    return {"done": order}


def main() -> None:
    """Obey until there is nobody to give orders."""
    with forked_workers():
        cluster, cpus_per_node = start(), int(sys.argv[1])
        print(json.dumps({"address": cluster.address}), flush=True)
        for line in sys.stdin:
            print(json.dumps(obey(cluster, line.strip(), cpus_per_node)), flush=True)
        cluster.shutdown()


if __name__ == "__main__":
    main()
