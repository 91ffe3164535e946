"""A program that runs a Ray cluster: `python -m … [PORT]`. The nodes of the cluster are raylets on this machine. The
head of the cluster uses PORT. Without PORT, the head uses any free port.

Ray's library blocks the main thread and sets signal handlers, so the tests' process does not load it. Orders and
answers are lines of JSON:

- ``["add", {…}]``: the number of the new node
- ``["kill", N]``: null
- ``["head", null]``: the process id of the head's raylet
- ``["end head", null]``: null, after all processes of the head have been killed
- ``["left", null]``: the ids of the actors that have not ended, and of the placement groups that have not been removed

The cluster ends when standard input ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 2, "object_store_memory": 75 * 1024 * 1024, "include_dashboard": False}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Ray prints to standard output
    port = {"gcs_server_port": int(sys.argv[1])} if sys.argv[1:] else {}
    cluster = Cluster(initialize_head=True, head_node_args=NODE | port)
    nodes: list[Any] = []
    print(json.dumps(cluster.address), file=answers)
    for line in sys.stdin:
        name, value = json.loads(line)
        answer: object = None
        match name:
            case "add":
                nodes.append(cluster.add_node(**NODE, **value))
                answer = len(nodes) - 1
            case "kill":
                cluster.remove_node(nodes[value], allow_graceful=False)
            case "head":
                answer = cluster.head_node.all_processes["raylet"][0].process.pid
            case "end head":
                cluster.remove_node(cluster.head_node, allow_graceful=False)
            case "left":
                actors = cluster.global_state.actor_table(None).values()
                groups = cluster.global_state.placement_group_table().items()
                answer = [actor["ActorID"] for actor in actors if actor["State"] != "DEAD"]
                answer += [group for group, content in groups if content["state"] != "REMOVED"]
        print(json.dumps(answer), file=answers)
    cluster.shutdown()


if __name__ == "__main__":
    main()
