"""Who is there: every rank tells rank 0 where it runs and with what, and learns where the others are."""

import secrets
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from launch.doctor import across
from launch.doctor.check import Check
from launch.doctor.environment import settings_of_all
from launch.doctor.packages import versions
from launch.doctor.ranks import Ranks, job_ports

BOOT = Path("/proc/sys/kernel/random/boot_id")
ABSENT = "?"


class Roster(NamedTuple):
    token: str
    """Marks this examination's temporary files."""
    host_of: list[str]
    """Host of each rank, `?` for those that did not come."""
    leaders: list[int]
    """The rank of each host that examines it."""
    endpoints: list[tuple[str, str, int]]
    """Host, address and port at which each leader listens."""

    @property
    def hosts(self) -> list[str]:
        return [self.host_of[rank] for rank in self.leaders]

    def ranks_on(self, host: str) -> int:
        return self.host_of.count(host)


def identity(rank: int, local_rank: int, port: int, environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        "rank": rank,
        "local_rank": local_rank,
        "host": socket.gethostname(),
        "boot": BOOT.read_text().strip() if BOOT.exists() else "",
        "port": port,
        "packages": versions(),
        "environ": settings_of_all(environ),
    }


def call_roll(
    ranks: Ranks, me: dict[str, Any], environ: Mapping[str, str], before: Callable[[str], None], seconds: float
) -> tuple[Roster, list[Check]]:
    """The roster, and on rank 0 what has to agree between ranks. `before(token)` runs on rank 0 before the others hear."""
    came = [one for one in ranks.gather(me, seconds) if one]
    roster, checks = None, []
    if ranks.rank == 0:
        roster = make_roster(came, ranks, environ["MASTER_ADDR"])
        before(roster.token)
        checks = _agreement(came, roster, ranks, environ, seconds)
    return Roster(*ranks.share(roster, 3 * seconds)), checks


def make_roster(came: list[dict[str, Any]], ranks: Ranks, main: str) -> Roster:
    """One host for each rank that is first on its node. Nodes of one name are told apart by a number."""
    leaders = [one for one in came if one["local_rank"] == 0]
    led = {one["host"] for one in leaders}
    for one in came:  # a host whose first rank is missing
        if one["host"] not in led:
            leaders.append(one)
            led.add(one["host"])
    names = [one["host"] for one in leaders]
    labels = [
        name if names.count(name) == 1 else f"{name}#{names[: place + 1].count(name)}"
        for place, name in enumerate(names)
    ]
    host_of = [ABSENT] * ranks.size
    for one in came:
        mine = [place for place, leader in enumerate(leaders) if leader["host"] == one["host"]]
        host_of[one["rank"]] = labels[max((p for p in mine if leaders[p]["rank"] <= one["rank"]), default=mine[0])]
    addresses = {0: main, **ranks.addresses}
    endpoints = [
        (label, addresses[leader["rank"]], leader["port"]) for label, leader in zip(labels, leaders, strict=True)
    ]
    return Roster(secrets.token_hex(4), host_of, [leader["rank"] for leader in leaders], endpoints)


def _agreement(
    came: list[dict[str, Any]], roster: Roster, ranks: Ranks, environ: Mapping[str, str], seconds: float
) -> list[Check]:
    nodes = [next(one for one in came if one["rank"] == leader) for leader in roster.leaders]
    hosts = [roster.host_of[one["rank"]] for one in came]
    allocated = environ.get("SLURM_JOB_NODELIST", "")
    return [
        *across.all_came(ranks.size, [one["rank"] for one in came], roster.hosts, allocated, seconds),
        *across.main_port(job_ports(environ)[0], ranks.port),
        *across.one_host_one_name([one["host"] for one in nodes], [one["boot"] for one in nodes]),
        across.clocks({roster.host_of[rank]: ranks.clock(rank) for rank in roster.leaders if rank}),
        *across.same_packages([one["packages"] for one in came], hosts),
        across.same_environment([one["environ"] for one in came], hosts),
    ]
