"""Memory, shared memory, limits and cores of one host, from what Linux says of itself."""

import os
import resource
from pathlib import Path

from launch.doctor.check import Check, fail, ok, warn
from launch.doctor.fold import counted

GB = 1e9
DOCKER_SHM = "in a container start it with --shm-size=16g or --ipc=host; else mount -o remount,size=16g /dev/shm"


def memory(needed: float = 0, proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> list[Check]:
    """Free memory against what all ranks of the host need, in bytes, and swap."""
    kilobytes = {key: int(rest.split()[0]) for key, rest in _pairs(proc / "meminfo")}
    total, available = kilobytes["MemTotal"] * 1024, kilobytes["MemAvailable"] * 1024
    limit = memory_limit(proc, cgroup)
    found = f"{available / GB:.1f} of {total / GB:.1f} GB available"
    if limit is not None and limit < total:
        found += f"; the control group of this process may use {limit / GB:.1f} GB"
    usable = min(available, limit or available)
    checks = []
    if usable < needed:
        fix = "more hosts, a smaller micro-batch or less offload; under SLURM ask for more --mem (--mem=0: all of the host)"
        checks.append(fail("memory", f"{found}; the recipe's ranks on this host need about {needed / GB:.1f} GB", fix))
    elif usable < 0.1 * total:
        checks.append(warn("memory", found, "see `ps aux --sort -rss | head` for what holds it (an earlier run?)"))
    else:
        checks.append(ok("memory", found))
    used = (kilobytes["SwapTotal"] - kilobytes["SwapFree"]) * 1024
    if used > GB:
        fix = "training that swaps crawls: end what holds memory, then `swapoff -a && swapon -a`"
        return [*checks, warn("swap", f"{used / GB:.1f} GB in use", fix)]
    size = kilobytes["SwapTotal"] * 1024
    return [*checks, ok("swap", f"{used / GB:.1f} of {size / GB:.1f} GB in use" if size else "none")]


def memory_limit(proc: Path, cgroup: Path) -> int | None:
    """The lowest limit of this process's control group and those above it (version 2, else 1), in bytes."""
    limits = []
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, name = (cgroup, "memory.max") if not controllers else (cgroup / "memory", "memory.limit_in_bytes")
        inside = Path(path.lstrip("/"))
        for folder in (inside, *inside.parents):
            file = root / folder / name
            if file.is_file() and (text := file.read_text().strip()) != "max":
                limits.append(int(text))
    return min(limits, default=None)


def shared_memory(gpus: int, folder: str = "/dev/shm") -> Check:
    """NCCL's and the data loaders' segments live there; containers get 64 MB unless they ask for more."""
    space = os.statvfs(folder)
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    found = f"{free / GB:.2f} of {size / GB:.2f} GB free"
    if free < 2**28:
        what = "NCCL needs tens of MB a GPU" if gpus else "ranks of one host exchange through it"
        return (fail if gpus else warn)(
            "/dev/shm", f"{found}; {what}", f"{DOCKER_SHM}; remove what dead runs left there"
        )
    if free < 2**30:
        return warn("/dev/shm", found, DOCKER_SHM)
    return ok("/dev/shm", found)


def limits(infiniband: bool, limit_of=resource.getrlimit) -> list[Check]:
    """ulimits, the soft ones as processes of this job have them."""
    files, locked, processes, core = (
        limit_of(what)[0]
        for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_NPROC, resource.RLIMIT_CORE)
    )
    where = "in /etc/security/limits.conf and in slurmd's unit (LimitNOFILE, LimitMEMLOCK), then log in again"
    checks = []
    for name, value, least, option in (("nofile", files, 4096, "-n"), ("nproc", processes, 4096, "-u")):
        if value != resource.RLIM_INFINITY and value < least:
            fix = f"`ulimit {option} 65536` in the job script, or {where}"
            checks.append(warn(f"ulimit {name}", f"{value:,}; many ranks, sockets and shards need more", fix))
        else:
            checks.append(ok(f"ulimit {name}", _number(value)))
    unlimited = locked == resource.RLIM_INFINITY
    if infiniband and not unlimited:
        fix = f"InfiniBand registers memory: memlock unlimited {where}; in docker --ulimit memlock=-1"
        checks.append(fail("ulimit memlock", f"{locked / 1024:,.0f} KB", fix))
    else:
        size = "unlimited" if unlimited else f"{locked / 1024:,.0f} KB, enough without InfiniBand"
        checks.append(ok("ulimit memlock", size))
    return [*checks, ok("ulimit core", f"{_number(core)}{'; 0 means no core files' if core == 0 else ''}")]


def cores(local_ranks: int, environ: dict[str, str], node: Path = Path("/sys/devices/system/node")) -> list[Check]:
    """Cores this process may run on, NUMA nodes, and threads of all local ranks against them."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    numa = len(list(node.glob("node[0-9]*"))) or 1
    found = f"{usable} of {present} usable, {counted(numa, 'NUMA node')}"
    checks = [ok("cores", found)]
    if usable < local_ranks:
        fix = "ask for more cores: --cpus-per-task under SLURM, --cpus for a container; or start fewer ranks"
        checks = [warn("cores", f"{found} for {counted(local_ranks, 'rank')}", fix)]
    elif usable == 1 and present > 8:
        fix = "srun --cpu-bind=none or a larger --cpus-per-task; data loading and offload run on one core like this"
        checks = [warn("cores", found, fix)]
    return [*checks, _threads(environ.get("OMP_NUM_THREADS"), local_ranks, usable)]


def _threads(setting: str | None, ranks: int, usable: int) -> Check:
    name, share = "OMP_NUM_THREADS", max(usable // ranks, 1)
    if setting is None:
        return ok(name, f"not set: train.py gives each rank {counted(share, 'thread')} of {counted(usable, 'core')}")
    if not setting.isdecimal() or int(setting) < 1:
        return fail(name, f"{setting!r} is not a number of threads", f"export OMP_NUM_THREADS={share}")
    if int(setting) > share:
        found = f"{setting} a rank, {counted(ranks, 'rank')} on {counted(usable, 'core')}: they wait for each other"
        return warn(name, found, f"export OMP_NUM_THREADS={share}")
    if int(setting) == 1 and share >= 4:
        found = f"1 (torchrun's default) with {share} cores a rank: the rest idle in offload and on CPU training"
        return warn(name, found, f"export OMP_NUM_THREADS={share}")
    return ok(name, f"{setting} a rank, {counted(ranks, 'rank')} on {counted(usable, 'core')}")


def huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> Check:
    if not setting.exists():
        return ok("huge pages", "not offered by this kernel")
    return ok("huge pages", setting.read_text().split("[")[1].split("]")[0])


def _pairs(file: Path) -> list[tuple[str, str]]:
    return [(key, rest) for key, _, rest in (line.partition(":") for line in file.read_text().splitlines()) if rest]


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
