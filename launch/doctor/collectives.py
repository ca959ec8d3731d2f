"""What the all-reduce between all ranks has measured, judged; and which ranks are paired to find the slowest link."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from launch.doctor.check import Check, fail, ok, skip, warn
from launch.doctor.fold import counted, fold_names, fold_numbers

ALL_PAIRS = 16
"""Up to this many ranks each is paired with every other; beyond, with the next one and with its like on the next host."""
SLOW_LINK, SLOW_GPU, SLOW_CPU = 0.5, 0.85, 0.5
"""Shares of the median below which a link or a rank stands out."""

BUSY = "still busy"
"""What a probe says of itself that has not failed and not finished."""
Rates = dict[tuple[int, int], float]
"""GB/s of pairs of ranks."""


def bus_bandwidth(size: int, ranks: int, seconds: float) -> float:
    """GB/s that each link carries in a ring all-reduce of `size` bytes: 2 (n - 1) / n times size over time (nccl-tests,
    doc/PERFORMANCE.md), comparable between numbers of ranks."""
    return 2 * (ranks - 1) / ranks * size / seconds / 1e9


def pairings(size: int, local: int) -> list[list[tuple[int, int]]]:
    """Rounds of pairs of ranks, each rank at most once a round.

    All pairs by the circle method of tournaments, or neighbours at distances 1 and `local` (ranks of a host).
    """
    if size <= ALL_PAIRS:
        players: list[int | None] = [*range(size), *([None] if size % 2 else [])]
        rounds = []
        for _ in range(len(players) - 1):
            half = len(players) // 2
            met = zip(players[:half], reversed(players[half:]), strict=True)
            rounds.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
            players = [players[0], players[-1], *players[1:-1]]
        return rounds
    return [
        [(rank, rank + step) for rank in range(size - step) if rank // step % 2 == half]
        for step in sorted({1, local})
        for half in (0, 1)
    ]


def judge(reports: Sequence[dict[str, Any] | None], hosts: Sequence[str], backend: str, waited: float) -> list[Check]:
    """Each rank's report of the probe: its results, or how far it came."""
    if len(reports) == 1:
        return [
            skip("all-reduce", "one rank has nobody to reduce with; --ranks 2 starts two here"),
            *_rates(reports, hosts),
        ]
    if any(not report or "bus_gb_s" not in report for report in reports):
        return [_broken(reports, hosts, backend, waited)]
    done = [report for report in reports if report]
    wrong = [rank for rank, report in enumerate(done) if not report["correct"]]
    if wrong:
        fix = "a GPU or link that computes wrongly spoils every run: leave its host out (--exclude) and test it alone; "
        fix += "NCCL_P2P_DISABLE=1 tells a broken link from a broken GPU"
        return [fail("all-reduce", f"{backend}: the sum is wrong on {_places(wrong, hosts)}", fix)]
    size = max(done[0]["bus_gb_s"], key=int)
    slowest = min(report["bus_gb_s"][size] for report in done)
    latency = max(report["latency_us"] for report in done)
    found = (
        f"{backend}, {len(done)} ranks: sums right, {slowest:.2f} GB/s bus bandwidth at {int(size) / 2**20:.0f} MiB, "
    )
    found += f"{latency:,.0f} µs at 4 bytes"
    return [ok("all-reduce", found), _links(done, hosts), *_rates(done, hosts)]


def _broken(reports: Sequence[dict[str, Any] | None], hosts: Sequence[str], backend: str, waited: float) -> Check:
    """Points at the ranks that came least far: the others only wait for them."""
    stages: dict[str, list[int]] = {}
    errors = {}
    for rank, report in enumerate(reports):
        stages.setdefault((report or {}).get("stage", "not started"), []).append(rank)
        if report and report.get("error") not in (None, BUSY):
            errors[rank] = report["error"]
    found = f"{backend} did not finish in {waited:.0f} s: "
    fewest_first = sorted(stages.items(), key=lambda item: len(item[1]))  # most wait for the few
    found += "; ".join(f"{_places(ranks, hosts)} at `{stage}`" for stage, ranks in fewest_first)
    if errors:
        first = min(errors, key=lambda rank: "Connection closed" in errors[rank])
        found += f"; rank {first} said: {errors[first]}"
    variable = "NCCL" if backend == "nccl" else "GLOO"
    fix = "look first at the hosts of the ranks that came least far (most others wait for them), and at ports and hostname above; name the network with "
    fix += f"{variable}_SOCKET_IFNAME" + ("; run again with NCCL_DEBUG=INFO" if backend == "nccl" else "")
    return fail("all-reduce", found, fix)


def _links(reports: Sequence[dict[str, Any]], hosts: Sequence[str]) -> Check:
    """Pairs far below the median of their kind, inside a host or between hosts; the slowest one is named."""
    kinds: dict[str, Rates] = {"inside a host": {}, "between hosts": {}}
    for rank, report in enumerate(reports):
        for peer, rate in report["pairs"]:
            kinds["inside a host" if hosts[rank] == hosts[peer] else "between hosts"][rank, peer] = rate
    kinds = {kind: rates for kind, rates in kinds.items() if rates}
    found = f"{counted(sum(map(len, kinds.values())), 'pair')}: "
    found += ", ".join(f"{kind} {_span(list(rates.values()))} GB/s" for kind, rates in kinds.items())
    slow = [_slowest(kind, rates, hosts) for kind, rates in kinds.items() if _stand_out(rates)]
    if not slow:
        return ok("links", found)
    fix = "look at that host's card, cable and switch port (ibstat, ethtool, nvidia-smi topo -m), or leave it out (--exclude)"
    return warn("links", f"{found}; slowest: {'; '.join(slow)}", fix)


def _stand_out(rates: Rates) -> Rates:
    return {pair: rate for pair, rate in rates.items() if rate < SLOW_LINK * median(rates.values())}


def _slowest(kind: str, rates: Rates, hosts: Sequence[str]) -> str:
    """The slowest pair, or the one rank of it whose every pair is slow."""
    slow = _stand_out(rates)
    worst = min(slow, key=lambda pair: slow[pair])
    for rank in worst:
        pairs = [pair for pair in rates if rank in pair]
        if len(pairs) > 1 and all(pair in slow for pair in pairs):
            return f"rank {rank} on {hosts[rank]} in all its pairs {kind} ({slow[worst]:.3g} GB/s)"
    return " and ".join(f"rank {rank} on {hosts[rank]}" for rank in worst) + f" ({slow[worst]:.3g} GB/s)"


def _rates(reports: Sequence[dict[str, Any] | None], hosts: Sequence[str]) -> list[Check]:
    """Ranks that multiply matrices slower than the others while all do at once."""
    rates = [(report or {}).get("matmul_tflops", 0.0) for report in reports]
    if not all(rates):
        return []
    middle, device = median(rates), (reports[0] or {})["device"]
    slow = [rank for rank, rate in enumerate(rates) if rate < (SLOW_CPU if device == "cpu" else SLOW_GPU) * middle]
    found = f"{_span(rates)} TFLOP/s a rank on the {device}, all ranks at once"
    if slow:
        fix = "every step waits for the slowest rank: see GPU clocks and memory above, what else runs there, or leave it out"
        return [warn("matmul", f"{found}; slowest: {_places(slow, hosts)}", fix)]
    return [ok("matmul", found)]


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def _places(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    on = fold_names(sorted({hosts[rank] for rank in ranks}))
    return f"rank{'s' * (len(ranks) > 1)} {fold_numbers(ranks)} on {on}"
