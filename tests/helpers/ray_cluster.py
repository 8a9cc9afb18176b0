"""A Ray cluster of two nodes on this machine: `python -m tests.helpers.ray_cluster`.

Prints its address. A line on standard input kills the second node, the end of the input stops all.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 128 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(num_cpus=2, object_store_memory=128 << 20)
    print(f"address {cluster.address}", flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second, allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
