"""Seconds that a collective takes on a cluster.

Rings (Patarasuk and Yuan 2009, doi.org/10.1016/j.jpdc.2008.09.002) go through all ranks, as many side by side as a node has
adapters, so each rank sends at the slower of its link and its node's adapters taken together; small sums take a tree, whose
latency grows with the logarithm of the nodes.
"""

import math
from typing import NamedTuple

from config.hardware import Cluster

LINK_EFFICIENCY, NETWORK_EFFICIENCY = 0.81, 0.85
"""Shares of links' and networks' rates that NCCL's rings reach with large messages: 365 of 450 GB/s on 2 to 8 H200s."""
SWITCH_EFFICIENCY = 0.68
"""The same where switches add up: 1.00, 1.14, 1.19 and 1.29 times a ring's speed were measured on 4, 5, 6 and 8 H200s
(github.com/stas00/ml-engineering, network; github.com/NVIDIA/nccl-tests, issue 212)."""
LINK_LATENCY = 1.5e-6
"""Seconds of one hop inside a node."""
CALL_SECONDS = 15e-6
"""Of starting a collective on all ranks."""


class Group(NamedTuple):
    """Ranks that communicate, spread evenly over nodes."""

    ranks: int
    nodes: int


def make_group(cluster: Cluster, ranks: int, stride: int = 1) -> Group:
    """Of every `stride`-th rank."""
    return Group(ranks, min(-(-ranks * stride // cluster.gpus_per_node), ranks))


def collective_seconds(cluster: Cluster, operation: str, size: float, messages: float, group: Group) -> float:
    """`size` bytes in `messages` equal parts: what each rank has before an all-reduce, a reduce-scatter or an all-to-all,
    or after an all-gather."""
    if group.ranks == 1:
        return 0.0
    per_node, line = group.ranks / group.nodes, 1e9 * cluster.accelerator.link_gb
    link = line * LINK_EFFICIENCY
    network = 1e9 * cluster.network_gb * NETWORK_EFFICIENCY
    if operation == "all_to_all":
        outside = size * (group.ranks - per_node) / group.ranks
        seconds = max(outside / network if group.nodes > 1 else 0, (size / group.nodes) / link)
    else:
        rate = min(link, per_node * network) if group.nodes > 1 else link
        seconds = (2 if operation == "all_reduce" else 1) * size * (group.ranks - 1) / group.ranks / rate
        if operation == "all_reduce" and group.nodes == 1 and cluster.accelerator.switch_sums:
            # Each rank sends its numbers and receives the sums, instead of both twice.
            seconds = min(seconds, size * (1 + 1 / group.ranks) / (line * SWITCH_EFFICIENCY))
    return seconds + messages * (CALL_SECONDS + _latency(cluster, operation, group))


def _latency(cluster: Cluster, operation: str, group: Group) -> float:
    hop = 1e-6 * cluster.network.latency_us
    ring = (group.nodes - 1) * hop + (group.ranks - group.nodes) * LINK_LATENCY
    if operation == "all_reduce":
        tree = 2 * (math.ceil(math.log2(group.nodes)) * hop + math.ceil(group.ranks / group.nodes) * LINK_LATENCY)
        return min(2 * ring, tree)
    return hop * (group.nodes > 1) + LINK_LATENCY if operation == "all_to_all" else ring
