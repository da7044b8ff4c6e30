"""A Ray cluster of several nodes on this machine, as a process of its own: `python local_cluster.py NODES`.

Prints its address, then obeys lines on its input: `add` (a node with one CPU), `kill I` (node I, at once; `oldest` = of
those that live the first), `notice I S` (tell Ray that node I will be taken away in S seconds, as a cloud does), and
answers `done`. It ends with its input.
"""

import subprocess
import sys
import tempfile

from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 0,
        "include_dashboard": False,
        "object_store_memory": 100 * 2**20,
        "temp_dir": tempfile.mkdtemp(prefix="r", dir="/tmp"),  # short: a socket's path has at most 107 bytes
    },
)
nodes = []


def add() -> None:
    nodes.append(cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20))


try:
    for _ in range(int(sys.argv[1])):
        add()
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "add":
            add()
        elif command == "kill":
            alive = [node for node in nodes if node in cluster.worker_nodes]
            cluster.remove_node(alive[0] if numbers == ["oldest"] else nodes[int(numbers[0])], allow_graceful=False)
        elif command == "notice":
            order = ["--node-id", nodes[int(numbers[0])].node_id, "--deadline-remaining-seconds", numbers[1]]
            order += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            ray = [sys.executable, "-m", "ray.scripts.scripts"]
            subprocess.run([*ray, "drain-node", "--address", cluster.address, *order], check=True, stdout=sys.stderr)
        print("done", flush=True)
finally:
    cluster.shutdown()
