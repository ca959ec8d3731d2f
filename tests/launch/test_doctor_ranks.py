"""Ranks that meet over TCP, what has to agree between them, and the judgement of what they measured together."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from launch.doctor import across, collectives
from launch.doctor.check import ok
from launch.doctor.ranks import Ranks, Unreachable, job_ports, meet
from launch.doctor.roll import make_roster


def free_port() -> int:
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def together(size: int, act: Callable[[Ranks], Any], ports: list[int] | None = None, seconds: float = 5) -> list[Any]:
    """`act` on every rank of one job, in threads."""
    ports, results = ports or [free_port()], [None] * size

    def one(rank: int) -> None:
        ranks = meet(rank, size, "127.0.0.1", ports, "job", seconds)
        results[rank] = act(ranks)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_values_are_gathered_and_shared():
    def act(ranks: Ranks) -> tuple[list, Any]:
        gathered = ranks.gather({"rank": ranks.rank, "text": "ü" * 100_000}, 5)
        return [one["rank"] for one in gathered], ranks.share(f"from {ranks.rank}", 5)

    results = together(4, act)
    assert results == [([0, 1, 2, 3], "from 0"), *[([], "from 0")] * 3]


def test_a_rank_that_falls_silent_is_left_out():
    def act(ranks: Ranks) -> Any:
        if ranks.rank == 1:
            return time.sleep(1)
        gathered = ranks.gather(ranks.rank, 0.3)
        return (gathered, ranks.share("on", 3), ranks.lost) if ranks.rank == 0 else ranks.share(None, 3)

    assert together(3, act) == [([0, None, 2], "on", {1: "silent for 0.3 s"}), None, "on"]


def test_the_clock_of_a_rank_that_waits():
    def act(ranks: Ranks) -> Any:
        if ranks.rank:
            return ranks.share(None, 5)
        answer = ranks.clock(1)
        ranks.share("done", 5)
        return answer

    (ahead, trip), told = together(2, act)
    assert told == "done" and abs(ahead) < 0.5 and 0 < trip < 0.5


def test_a_busy_port_is_passed_over_and_told():
    with socket.socket() as taken:
        taken.bind(("", 0))
        first = taken.getsockname()[1]
        ports = together(2, lambda ranks: ranks.port, [first, free_port()])
    assert ports[0] == ports[1] != first
    (check,) = across.main_port(first, ports[0])
    assert check.status == "fail" and f"{first} is taken" in check.found


def test_rank_0_goes_on_without_those_that_do_not_come():
    ranks = meet(0, 2, "", [free_port()], "job", 0.2)
    assert ranks.connections == {} and ranks.gather("here", 0.1) == ["here", None]


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "does not resolve on this host")],
)
def test_rank_0_cannot_be_reached(address, words):
    with pytest.raises(Unreachable, match=words):
        meet(1, 2, address, [free_port()], "job", 0.3)


def test_another_job_on_the_port_is_not_joined():
    port = free_port()
    main = threading.Thread(target=lambda: meet(0, 2, "", [port], "mine", 1.0))
    main.start()
    with pytest.raises(Unreachable, match="another program"):
        meet(1, 2, "127.0.0.1", [port], "yours", 0.5)
    main.join()


def test_torchrun_keeps_its_port():
    assert job_ports({"MASTER_PORT": "29500"})[:2] == [29500, 29501]
    assert job_ports({"MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"})[0] == 29501
    assert job_ports({"MASTER_PORT": "65530"})[-1] == 65535


def person(rank: int, local: int, host: str, boot: str = "b") -> dict:
    return {"rank": rank, "local_rank": local, "host": host, "boot": boot, "port": 5000 + rank}


def test_the_roster():
    came = [person(0, 0, "n0"), person(1, 1, "n0"), person(2, 0, "n1"), person(3, 1, "n1")]
    roster = make_roster(came, Ranks(0, 5, {}, {1: "", 2: "10.0.0.2", 3: ""}, 1), "10.0.0.1")
    assert roster.host_of == ["n0", "n0", "n1", "n1", "?"] and roster.leaders == [0, 2] and roster.hosts == ["n0", "n1"]
    assert roster.endpoints == [("n0", "10.0.0.1", 5000), ("n1", "10.0.0.2", 5002)]
    clones = [person(0, 0, "vm"), person(1, 1, "vm"), person(2, 0, "vm")]
    roster = make_roster(clones, Ranks(0, 3, {}, {1: "", 2: "10.0.0.2"}, 1), "10.0.0.1")
    assert roster.host_of == ["vm#1", "vm#1", "vm#2"] and roster.ranks_on("vm#1") == 2
    headless = make_roster([person(0, 0, "n0"), person(3, 1, "n1")], Ranks(0, 4, {}, {3: "10.0.0.2"}, 1), "10.0.0.1")
    assert headless.hosts == ["n0", "n1"] and headless.leaders == [0, 3]


HOSTS = ["n1", "n1", "n2", "n3"]


def test_unequal_versions_and_checkouts():
    same = {"python": "3.11.7", "torch": "2.13.0", "code": "abcd0123"}
    assert [c.status for c in across.same_packages([same] * 4, HOSTS)] == ["ok", "ok"]
    packages, code = across.same_packages([same, same, {**same, "torch": "2.12.0"}, {**same, "code": "ffff"}], HOSTS)
    assert packages.status == "fail" and packages.found == "torch 2.13.0 on n[1,3], 2.12.0 on n2"
    assert code.status == "fail" and code.found == "checkout abcd0123 on n[1-2], ffff on n3"


def test_unequal_environment_data_and_gpus():
    check = across.same_environment([{"NCCL_ALGO": "Ring"}, {"NCCL_ALGO": "Ring"}, {}, {"NCCL_ALGO": "Ring"}], HOSTS)
    assert check.status == "warn" and check.found == "NCCL_ALGO Ring on n[1,3], not set on n2"
    assert across.same_environment([{}] * 4, HOSTS).status == "ok"
    data = [("n1", ok("data c4", "/c4, manifest aaaaaaaa")), ("n2", ok("data c4", "/c4, manifest bbbbbbbb"))]
    (check,) = across.same_data(data)
    assert check.status == "fail" and check.found == "content aaaaaaaa on n1, bbbbbbbb on n2"
    assert across.same_data(data[:1]) == []
    (check,) = across.same_gpus({"n1": 8, "n2": 7, "n3": 8})
    assert check.status == "fail" and check.found == "GPUs: 8 on n[1,3], 7 on n2"


def test_host_names():
    assert across.one_host_one_name(["n1", "n2"], ["a", "b"])[0].status == "ok"
    assert across.one_host_one_name(["vm", "vm"], ["a", "b"])[0].status == "fail"  # two machines
    assert across.one_host_one_name(["vm", "vm"], ["a", "a"])[0].status == "warn"  # one, started twice
    assert across.one_host_one_name(["vm"], ["a"]) == []


@pytest.mark.parametrize(("ahead", "status"), [(0.0004, "ok"), (0.3, "ok"), (-5.0, "warn"), (3600.0, "fail")])
def test_clocks(ahead, status):
    check = across.clocks({"n2": (0.0001, 0.001), "n3": (ahead, 0.001), "n4": None})
    assert check.status == status
    assert status == "ok" or f"n3 is {abs(ahead):.2f} s" in check.found


def test_missing_ranks_are_named():
    (check,) = across.all_came(8, [0, 1, 4, 5, 6, 7], ["n1", "n3", "n4"], "n[1-4]", 60)
    assert check.status == "fail"
    assert check.found == "2 of 8 did not report in 60 s: 2-3; heard from n[1,3-4] of SLURM's n[1-4]"


def test_bus_bandwidth_is_that_of_nccl_tests():
    # nccl-tests, all_reduce_perf on 8 GPUs: 128 MiB in 1,000 us is 134.2 GB/s algorithm and 234.9 GB/s bus bandwidth
    assert collectives.bus_bandwidth(2**27, 8, 1e-3) == pytest.approx(234.88, abs=0.01)


@pytest.mark.parametrize("size", [2, 3, 8, 15, 16])
def test_every_two_ranks_are_paired_once_and_no_rank_twice_a_round(size):
    rounds = collectives.pairings(size, 4)
    pairs = [pair for turn in rounds for pair in turn]
    assert sorted(pairs) == [(a, b) for a in range(size) for b in range(a + 1, size)]
    assert all(len({rank for pair in turn for rank in pair}) == 2 * len(turn) for turn in rounds)


def test_many_ranks_are_paired_with_neighbours_and_their_like_on_the_next_host():
    rounds = collectives.pairings(512, 8)
    pairs = [pair for turn in rounds for pair in turn]
    assert len(rounds) == 4 and {b - a for a, b in pairs} == {1, 8}
    assert all(len({rank for pair in turn for rank in pair}) == 2 * len(turn) for turn in rounds)
    assert {rank for pair in pairs for rank in pair} == set(range(512))


def measured(rates: dict[tuple[int, int], float], tflops: list[float], wrong: int | None = None) -> list[dict]:
    return [
        {
            "bus_gb_s": {"1048576": 1.0, "268435456": 200.0}, "latency_us": 20.0, "correct": rank != wrong, "device": "cuda",
            "pairs": [(b, rate) for (a, b), rate in rates.items() if a == rank], "matmul_tflops": tflops[rank],
        }
        for rank in range(len(tflops))
    ]  # fmt: skip


ALL = {(a, b): 40.0 for a in range(4) for b in range(a + 1, 4)}


def judged(*arguments) -> dict[str, Any]:
    return {
        check.name: check for check in collectives.judge(measured(*arguments), ["n1", "n1", "n2", "n2"], "nccl", 60)
    }


def test_healthy_collectives():
    checks = judged(ALL, [600.0] * 4)
    assert {check.status for check in checks.values()} == {"ok"}
    assert "200.00 GB/s bus bandwidth at 256 MiB, 20 µs" in checks["all-reduce"].found


def test_a_slow_pair_a_slow_rank_and_a_slow_gpu_are_named():
    pair = judged({**ALL, (0, 3): 4.0}, [600.0] * 4)["links"]
    assert pair.status == "warn" and pair.found.endswith("slowest: rank 0 on n1 and rank 3 on n2 (4 GB/s)")
    rank = judged({**ALL, (0, 3): 4.0, (1, 3): 4.0}, [600.0] * 4)["links"]
    assert rank.found.endswith("slowest: rank 3 on n2 in all its pairs between hosts (4 GB/s)")
    gpu = judged(ALL, [600.0, 600.0, 400.0, 600.0])["matmul"]
    assert gpu.status == "warn" and "slowest: rank 2 on n2" in gpu.found


def test_a_rank_that_sums_wrongly_is_named():
    check = judged(ALL, [600.0] * 4, 3)["all-reduce"]
    assert check.status == "fail" and "the sum is wrong on rank 3 on n2" in check.found


def test_a_hang_points_at_the_ranks_that_came_least_far():
    reports = [{"stage": "all-reduce of 1 MiB"}] * 4 + [{"stage": "joining"}] * 2 + [None]
    (check,) = collectives.judge(reports, ["n1"] * 4 + ["n2"] * 2 + ["n3"], "nccl", 60)
    told = "rank 6 on n3 at `not started`; ranks 4-5 on n2 at `joining`; ranks 0-3 on n1 at `all-reduce of 1 MiB`"
    assert check.status == "fail" and told in check.found
    failed = {"stage": "joining", "error": "DistBackendError: NCCL error: unhandled system error"}
    (check,) = collectives.judge([failed, {"stage": "joining", "error": collectives.BUSY}], ["n1", "n2"], "nccl", 60)
    assert check.found.endswith("rank 0 said: DistBackendError: NCCL error: unhandled system error")
