"""The order of an examination: who is there, what each host finds by itself, what the ranks measure together."""

import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from launch.doctor import across, collectives, network
from launch.doctor.check import Check, skip
from launch.doctor.filesystem import Letters
from launch.doctor.fold import fold_numbers
from launch.doctor.host import examine_host
from launch.doctor.probe import Probe, judge_software
from launch.doctor.ranks import Ranks
from launch.doctor.recipe import Needs
from launch.doctor.report import Finding
from launch.doctor.roll import ABSENT, Roster, call_roll, identity


class Result(NamedTuple):
    failed: bool
    """On every rank; the rest on rank 0."""
    findings: list[Finding]
    hosts: list[str]
    measured: list[Any]


def examine(ranks: Ranks, local_rank: int, environ: Mapping[str, str], needs: Needs, seconds: float) -> Result:
    """All checks of all ranks. Torch and whatever ranks do together is given up after `seconds`.

    Raises OSError on a rank that loses rank 0.
    """
    probe = Probe(environ)
    listener, port = network.listen()
    letters = Letters(needs.run_folder, ranks.rank)
    try:
        me = identity(ranks.rank, local_rank, port, environ)
        roster, agreed = call_roll(ranks, me, environ, letters.write, seconds)
        reports = ranks.gather(_look(ranks.rank, roster, needs, letters, environ, probe, seconds), 2 * seconds)
        measured, together = _measure(ranks, roster, reports, environ, probe, seconds)
        findings: list[Finding] = [("", needs.check)] + [("", check) for check in agreed]
        findings += [(host, Check(*check)) for host, one in _by_host(roster, reports) for check in one["checks"]]
        findings += [("", check) for check in [*_agreement(roster, reports, findings), *together]]
        failed = ranks.share(any(check.status == "fail" for _, check in findings), 3 * seconds)
        return Result(failed, findings, roster.hosts, measured)
    finally:
        letters.remove()
        listener.close()
        probe.close()
        ranks.close()


def _look(
    rank: int, roster: Roster, needs: Needs, letters: Letters, environ: Mapping[str, str], probe: Probe, seconds: float
) -> dict[str, Any]:
    """What this rank tells rank 0: the leader of a host everything about it, the others whether torch works."""
    if rank not in roster.leaders:
        said = probe.wait_for("software", seconds)
        return {"checks": [], "torch": "software" in said, "torch_gpus": said.get("software", {}).get("gpus", 0)}
    host = examine_host(rank, roster, needs, letters, dict(environ))
    said = probe.wait_for("software", seconds)
    return {
        "checks": [*host.checks, *judge_software(said, host.gpus.number, host.gpus.driver_cuda)],
        "torch": "software" in said,
        "torch_gpus": said.get("software", {}).get("gpus", 0),
        "gpus": host.gpus.number,
    }


def _measure(
    ranks: Ranks, roster: Roster, reports: list[Any], environ: Mapping[str, str], probe: Probe, seconds: float
) -> tuple[list[Any], list[Check]]:
    """Each rank's measurements and their judgement, on rank 0."""
    order, reason = _order(roster, reports, environ) if ranks.rank == 0 else (None, "")
    order = ranks.share(order, 3 * seconds)
    if order is None:
        return [], [skip("all-reduce", reason)]
    probe.order({**order, "rank": ranks.rank, "size": ranks.size, "seconds": 0.8 * seconds})
    measured = ranks.gather(probe.wait_for("matmul_tflops", seconds), 2 * seconds)
    return measured, collectives.judge(measured, roster.host_of, order["backend"], seconds) if measured else []


def _order(roster: Roster, reports: list[Any], environ: Mapping[str, str]) -> tuple[dict[str, Any] | None, str]:
    """Where and how the ranks meet, or why they cannot."""
    absent = [rank for rank, report in enumerate(reports) if not report]
    broken = [rank for rank, report in enumerate(reports) if report and not report["torch"]]
    if absent or broken:
        who, what = (absent, "are missing") if absent else (broken, "have no working torch")
        return None, f"ranks {fold_numbers(who)} {what}: all ranks are needed"
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    backend = "nccl" if all(report["torch_gpus"] for report in reports) else "gloo"
    local = roster.ranks_on(roster.host_of[0])
    return {"backend": backend, "address": environ["MASTER_ADDR"], "port": port, "local": local}, ""


def _by_host(roster: Roster, reports: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """The reports of hosts, on rank 0."""
    leaders = [(roster.host_of[rank], reports[rank]) for rank in roster.leaders] if reports else []
    return [(host, report) for host, report in leaders if report and host != ABSENT]


def _agreement(roster: Roster, reports: list[Any], findings: list[Finding]) -> list[Check]:
    """What hosts have to have alike beyond what the roll told."""
    hosts = _by_host(roster, reports)
    return [*across.same_gpus({host: report["gpus"] for host, report in hosts}), *across.same_data(findings)]
