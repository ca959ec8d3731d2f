"""What has to agree between ranks and hosts."""

import re
from collections.abc import Mapping, Sequence

from launch.doctor.check import Check, fail, ok, skip, warn
from launch.doctor.fold import fold_names, fold_numbers

AHEAD = (1.0, 60.0)
"""Seconds between two clocks that deserve a warning, and that break things."""


def same_packages(found: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> list[Check]:
    """Versions and the checkout of every rank; rank by rank, because a launcher may start another Python on each."""
    names = list(dict.fromkeys(name for versions in found for name in versions))
    different = {name: _groups([versions.get(name, "missing") for versions in found], hosts) for name in names}
    different = {name: groups for name, groups in different.items() if len(groups) > 1}
    code = different.pop("code", None)
    fix = "install from constraints.txt into one environment that all nodes share, or into the same container image"
    checks = [
        fail("same packages", "; ".join(_told(name, groups) for name, groups in different.items()), fix)
        if different
        else ok("same packages", f"{len(names) - 1} versions agree on {_ranks(len(found))}")
    ]
    if code:
        fix = "pull or copy the same commit to every node, or start from a folder that all share"
        return [*checks, fail("same code", _told("checkout", code), fix)]
    return [*checks, ok("same code", f"{found[0]['code']} on {_ranks(len(found))}")]


def same_environment(found: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> Check:
    """NCCL's, gloo's and torch's variables."""
    names = sorted({name for environ in found for name in environ})
    different = {name: _groups([environ.get(name, "not set") for environ in found], hosts) for name in names}
    told = [_told(name, groups) for name, groups in different.items() if len(groups) > 1]
    if told:
        fix = "export them in the job script before srun; pdsh and ssh take along only what ./.deepspeed_env names"
        return warn("same environment", "; ".join(told), fix)
    return ok("same environment", f"NCCL's, gloo's and torch's variables agree on {_ranks(len(found))}")


def same_data(checks: Sequence[tuple[str, Check]]) -> list[Check]:
    """Data that every host has, each with its manifest or with how it begins."""
    names = dict.fromkeys(check.name for _, check in checks if check.name.startswith("data "))
    problems = []
    for name in names:
        theirs = [(host, check) for host, check in checks if check.name == name and check.status in ("ok", "warn")]
        manifests = [re.split("manifest |fingerprint ", check.found)[-1][:8] for _, check in theirs]
        groups = _groups(manifests, [host for host, _ in theirs])
        if len(groups) > 1:
            found, fix = _told("content", groups), "copy the same data to all hosts, or share one folder"
            problems.append(fail(name, found, fix))
    return problems


def one_host_one_name(names: Sequence[str], boots: Sequence[str]) -> list[Check]:
    """`names` and boot numbers of the launcher's nodes, in order."""
    if len(names) == 1:
        return []
    twice = sorted({name for name in names if names.count(name) > 1})
    if not twice:
        return [ok("host names", f"{len(names)} hosts, each with a name of its own")]
    boots_of = {boot for name, boot in zip(names, boots, strict=True) if name in twice}
    found = f"{len(names)} nodes of the launcher share the name {', '.join(twice)}"
    if len(boots_of) == 1:
        fix = "one machine was started as several nodes: check the hostfile or --nnodes; fine if you meant it"
        return [warn("host names", found, fix)]
    fix = "give each its own (hostnamectl set-hostname): NCCL takes equal names for one host and hangs"
    return [fail("host names", found, fix)]


def clocks(offsets: Mapping[str, tuple[float, float] | None]) -> Check:
    """`offsets`: host → seconds ahead of rank 0's clock and of the round trip, None where there was no answer."""
    known = {host: answer for host, answer in offsets.items() if answer}
    if not known:
        return skip("clocks", "one host")
    worst = max(known, key=lambda host: abs(known[host][0]))
    ahead, trip = known[worst]
    if abs(ahead) < max(0.01, trip):
        return ok("clocks", f"agree within {1000 * max(abs(ahead), trip):.1f} ms on {len(known) + 1} hosts")
    found = f"{worst} is {abs(ahead):.2f} s {'ahead' if ahead > 0 else 'behind'}"
    if abs(ahead) < AHEAD[0]:
        return ok("clocks", found)
    fix = "start chronyd there (chronyc makestep): logs, file times and certificates of the hosts contradict each other"
    return (fail if abs(ahead) >= AHEAD[1] else warn)("clocks", found, fix)


def all_came(size: int, came: Sequence[int], hosts: Sequence[str], allocated: str, seconds: float) -> list[Check]:
    """Whether every rank of the launch has reported; `allocated` is SLURM's list of nodes, if it has one."""
    missing = sorted(set(range(size)) - set(came))
    if not missing:
        return [ok("ranks", f"all {size} reported")] if size > 1 else []
    found = f"{len(missing)} of {size} did not report in {seconds:g} s: {fold_numbers(missing)}"
    found += f"; heard from {fold_names(hosts)}" + (f" of SLURM's {allocated}" if allocated else "")
    fix = "see what they printed; a host that is down, another network (MASTER_ADDR) or a firewall keeps them away: "
    fix += "try `ssh HOST hostname` and `nc -zv MASTER_ADDR MASTER_PORT` from there"
    return [fail("ranks", found, fix)]


def main_port(wanted: int, taken: int) -> list[Check]:
    """`wanted` is where train.py will listen on rank 0's host, `taken` where this examination had to."""
    if wanted == taken:
        return []
    fix = f"export another MASTER_PORT, or end what listens there: `ss -ltnp | grep :{wanted}` (an earlier run?)"
    return [fail("MASTER_PORT", f"{wanted} is taken on rank 0's host: train.py could not start", fix)]


def same_gpus(counts: Mapping[str, int]) -> list[Check]:
    """`counts`: host → GPUs. One that has fewer has lost some."""
    groups = _groups([str(count) for count in counts.values()], list(counts))
    if len(groups) < 2:
        return []
    fix = "a GPU that fell off the bus: `dmesg | grep -i xid` on the host that has fewer, then reboot; or drain it"
    return [fail("GPUs of all hosts", _told("GPUs:", groups), fix)]


def _groups(values: Sequence[str], hosts: Sequence[str]) -> dict[str, list[str]]:
    """Hosts by value, the most common value first."""
    groups: dict[str, list[str]] = {}
    for value, host in zip(values, hosts, strict=True):
        groups.setdefault(value, []).append(host)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _told(name: str, groups: Mapping[str, list[str]]) -> str:
    return f"{name} " + ", ".join(f"{value} on {fold_names(sorted(set(on)))}" for value, on in groups.items())


def _ranks(number: int) -> str:
    return "the one rank" if number == 1 else f"all {number} ranks"
