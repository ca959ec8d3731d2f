"""Everything that one host finds by itself, and with the other hosts' files and ports; torch apart."""

import socket
from functools import partial
from pathlib import Path
from typing import NamedTuple

from launch.doctor import environment, filesystem, labelled, machine, network, packages
from launch.doctor.check import Check, Task, run_tasks
from launch.doctor.gpu import GPUs, find_gpus
from launch.doctor.recipe import Needs
from launch.doctor.roll import Roster

PATIENCE = 15.0
"""Seconds after which a check of one host hangs."""
LETTERS = 10.0
"""Seconds in which a file written on one host must appear on the others."""
DEAD_MOUNT = "a network mount that does not answer: `mount | grep nfs`, `dmesg | tail`; remount it or drain the node"
STUCK_DRIVER = (
    "the driver hangs, often after a GPU fell off the bus: `dmesg | grep -i xid`, then reboot; drain the node"
)


class Host(NamedTuple):
    checks: list[Check]
    gpus: GPUs


def examine_host(
    rank: int,
    roster: Roster,
    needs: Needs,
    letters: filesystem.Letters,
    environ: dict[str, str],
    patience: float = PATIENCE,
) -> Host:
    """Made by one rank of each host."""
    found: list[GPUs] = []

    def look_for_gpus() -> list[Check]:
        found.append(find_gpus())
        return found[0].checks

    checks = run_tasks([Task("GPUs", look_for_gpus, STUCK_DRIVER)], patience)
    gpus = found[0] if found else GPUs(0, "", [])
    tasks = [*_machine(rank, roster, needs, gpus.number, environ), *_network(rank, roster, gpus.number, environ)]
    tasks += _disks(rank, roster, needs, letters, environ)
    return Host(checks + run_tasks(tasks, patience), gpus)


def _machine(rank: int, roster: Roster, needs: Needs, gpus: int, environ: dict[str, str]) -> list[Task]:
    here, hosts = roster.ranks_on(roster.host_of[rank]), len(roster.hosts)
    infiniband = Path("/sys/class/infiniband").is_dir() and any(Path("/sys/class/infiniband").iterdir())
    kernel = "the kernel does not answer a simple question: `dmesg | tail`"
    return [
        Task("packages", lambda: packages.packages(packages.versions(), packages.requirements()), DEAD_MOUNT),
        Task("compilers", lambda: packages.compilers(packages.torch_cuda()), DEAD_MOUNT),
        Task("environment", lambda: environment.environment(environ, gpus, hosts), DEAD_MOUNT),
        Task("memory", lambda: machine.memory(here * needs.host_bytes), kernel),
        Task("/dev/shm", lambda: machine.shared_memory(gpus), kernel),
        Task("ulimits", lambda: machine.limits(infiniband), kernel),
        Task("cores", lambda: machine.cores(here, environ), kernel),
        Task("huge pages", machine.huge_pages, kernel),
    ]


def _network(rank: int, roster: Roster, gpus: int, environ: dict[str, str]) -> list[Task]:
    endpoints = [network.Endpoint(*one) for one in roster.endpoints]
    name = socket.gethostname()
    dns = f"the name server does not answer: write the nodes into /etc/hosts, or see /etc/resolv.conf of {name}"
    card = "the adapter's driver hangs: `dmesg | tail`"
    return [
        Task("hostname", lambda: network.hostname(name, len(endpoints), gpus, environ), dns),
        Task("interfaces", network.interfaces, card),
        Task("InfiniBand", network.infiniband, card),
        Task("ports", lambda: network.ports(roster.leaders.index(rank), endpoints), "see `ip route` and the firewall"),
    ]


def _disks(rank: int, roster: Roster, needs: Needs, letters: filesystem.Letters, environ: dict[str, str]) -> list[Task]:
    def exchange_letters() -> Check:
        if rank:  # rank 0's lies there since before the roll was called
            letters.write(roster.token)
        others = [leader for leader in roster.leaders if leader != rank]
        missing, waited = letters.wait_for(others, LETTERS)
        return filesystem.judge_letters(letters, missing, waited, roster.host_of, len(roster.hosts))

    def room() -> Check:
        return filesystem.run_folder(needs.run_folder, needs.checkpoint_bytes, needs.keep_last)

    return [
        Task("run folder", room, DEAD_MOUNT),
        Task("shared folder", exchange_letters, DEAD_MOUNT),
        Task("disk speed", lambda: letters.speed(needs.checkpoint_bytes), DEAD_MOUNT),
        *(Task(f"data {path.name}", partial(filesystem.dataset, path), DEAD_MOUNT) for path in needs.datasets),
        *(Task(f"data {path.name}", partial(labelled.labelled, path), DEAD_MOUNT) for path in needs.labelled),
        *(Task("start_from", partial(labelled.source, path), DEAD_MOUNT) for path in [needs.start_from] if path),
        Task("caches", lambda: filesystem.caches(environ), DEAD_MOUNT),
    ]
