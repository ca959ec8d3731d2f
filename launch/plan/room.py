"""The devices that a plan is for: those the command names, or this machine's."""

import argparse
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit

from config import ConfigError
from config.device import cpu_info
from config.hardware import Accelerator, Cluster, by_device_name, find_accelerator, find_network
from launch.plan.option import Room

GPUS_PER_NODE = 8
HOST_GB_PER_GPU = 128
"""Host memory for each GPU of a node where none is given: 1 TB a node of eight, as large clouds rent them."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CORES_OF_TABLE = 2
"""The accelerator table's CPU has two cores."""


def add_room_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpus", type=int, help="devices in all (default: those of this machine)")
    parser.add_argument(
        "--gpu", help="their kind, as in config/hardware.yaml: h100-80, a100-40, …; cpu: ranks on this machine"
    )
    parser.add_argument("--gpus-per-node", type=int, help=f"default: {GPUS_PER_NODE}, or --gpus if fewer")
    parser.add_argument("--network", default="infiniband-400", help="between nodes (default: infiniband-400)")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory of one device, in place of the table's")
    parser.add_argument("--host-memory", type=float, metavar="GB", help="of one node, for offload")
    parser.add_argument("--watts", type=float, help="of one device, in place of the table's")
    parser.add_argument("--dollars-per-hour", type=float, help="for one device, in place of the table's")


def room_from(options: argparse.Namespace) -> Room:
    """Raises ConfigError for an unknown device or network, and for numbers that make no cluster."""
    if options.gpu and not options.gpus:
        raise ConfigError(f"--gpu {options.gpu} without --gpus: say how many of them, as --gpus 8")
    here = [] if options.gpu else gpus_here()
    if options.gpus and not options.gpu and not here:
        raise ConfigError(f"--gpus {options.gpus}: this machine has none, so say which: --gpu h100-80, or --gpu cpu")
    elsewhere = bool(options.gpu) and options.gpu != "cpu"
    count = options.gpus or len(here) or 1
    per_node = options.gpus_per_node or min(count, len(here) or (GPUS_PER_NODE if elsewhere else count))
    if count > per_node and count % per_node:
        below = count // per_node * per_node
        raise ConfigError(
            f"--gpus {count} is not a multiple of --gpus-per-node {per_node}: a run takes whole nodes; set --gpus to "
            f"{below} or {below + per_node}"
        )
    per_node = min(count, per_node)
    device = find_accelerator(options.gpu) if elsewhere else here[0] if here else cpu_here(per_node)
    given = {"memory_gb": options.memory, "watts": options.watts, "dollars_per_hour": options.dollars_per_hour}
    device = replace(device, **{name: value for name, value in given.items() if value is not None})
    host_gb = options.host_memory or (HOST_GB_PER_GPU * per_node if elsewhere else host_memory_bytes() / 1e9)
    return Room(Cluster(device, count, per_node, find_network(options.network)), host_gb)


def bench(room: Room) -> Room:
    """This machine's share of the devices, on which trials run. Raises ConfigError if it has none of them."""
    cluster, here = room.cluster, gpus_here()
    if cluster.accelerator.kind == "cpu":
        count = cluster.gpus_per_node
    else:
        same = [device for device in here if device.name == cluster.accelerator.name]
        count = min(len(same), cluster.gpus_per_node)
        if not same:
            has = ", ".join(sorted({device.name for device in here})) or "no GPU"
            raise ConfigError(
                f"--tune measures this machine, which has {has}, and the plan is for {cluster.accelerator.name}: run it on "
                "one of those nodes"
            )
    return replace(room, cluster=replace(cluster, gpus=count, gpus_per_node=count))


def gpus_here() -> list[Accelerator]:
    """This machine's GPUs; none without a driver. Raises ConfigError for one that the table does not have."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    names = found.stdout.splitlines() if found.returncode == 0 else []
    known = [by_device_name(name) for name in names]
    for name, device in zip(names, known, strict=True):
        if device is None:
            raise ConfigError(f"config/hardware.yaml does not know this machine's {name}: add a row, or give --gpu")
    return [device for device in known if device]


def cpu_here(ranks: int) -> Accelerator:
    """One rank's share of this machine's cores and memory, by the table's rates per core."""
    info, table = cpu_info(), find_accelerator("cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores / CORES_OF_TABLE / ranks
    fp32 = table.fp32_tflops * share
    return replace(
        table,
        name=info.name,
        memory_gb=round(host_memory_bytes() / 1e9 / ranks, 1),
        bf16_tflops=table.bf16_tflops * share if info.fast_bf16 else fp32,
        fp32_tflops=fp32,
        memory_bandwidth_gb=table.memory_bandwidth_gb / ranks,
        watts=table.watts * share,
        dollars_per_hour=table.dollars_per_hour * share,
        fast_bf16=info.fast_bf16,
    )


def host_memory_bytes() -> int:
    """Of this machine, or what this process may have of it: `ulimit -v`, `ulimit -d` and a container's limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limits += [n for kind in (RLIMIT_AS, RLIMIT_DATA) if (n := getrlimit(kind)[0]) != RLIM_INFINITY]
    if CGROUP_LIMIT.exists() and (text := CGROUP_LIMIT.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)
