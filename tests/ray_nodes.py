"""A Ray cluster of several node processes on loopback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment of whoever starts or joins the cluster, set before Ray is imported.

On Linux, Ray takes 127.0.0.1 for the machine's address in the network, unless it is told that there is none.
"""
LOOPBACK = {"node_ip_address": "127.0.0.1", "include_dashboard": False}


@contextmanager
def ray_nodes(workers: int) -> Iterator[Any]:
    """Start a cluster with so many workers of one processor each, and end it when the caller is done."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LOOPBACK})
    try:
        for _ in range(workers):
            cluster.add_node(num_cpus=1, **LOOPBACK)
        yield cluster
    finally:
        cluster.shutdown()
