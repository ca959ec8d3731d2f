"""The doctor's checks of one host. What this machine cannot be (full, capped, without a name) is told to them as files."""

import os
import resource
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.doctor import environment, machine, network, packages
from launch.doctor.check import Check, Task, fail, ok, run_tasks, skip, warn
from launch.doctor.fold import fold_names, merge
from launch.doctor.network import Endpoint
from launch.doctor.report import as_json, fold, text


def statuses(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


def test_a_check_that_hangs_or_raises_is_a_fail_and_the_others_count():
    never = threading.Event()

    def broken() -> Check:
        raise OSError("stale file handle")

    tasks = [
        Task("dead mount", lambda: [ok("dead mount", str(never.wait()))], "remount it"),
        Task("broken", broken, "unused"),
        Task("fine", lambda: ok("fine", "yes"), "unused"),
    ]
    hangs, raises, fine = run_tasks(tasks, 0.3)
    never.set()
    assert hangs == fail("dead mount", "no answer in 0.3 s", "remount it")
    assert (raises.name, raises.status) == ("broken", "fail") and "OSError: stale file handle" in raises.found
    assert fine == ok("fine", "yes")


def meminfo(folder: Path, available: int, swap_used: int = 0) -> Path:
    (folder / "self").mkdir(exist_ok=True)
    (folder / "self/cgroup").write_text("0::/job/step\n")
    kilobytes = {"MemTotal": 64_000_000, "MemAvailable": available, "SwapTotal": 8_000_000}
    kilobytes["SwapFree"] = 8_000_000 - swap_used
    (folder / "meminfo").write_text("".join(f"{key}:  {value} kB\n" for key, value in kilobytes.items()))
    return folder


@pytest.mark.parametrize(
    ("available", "swap_used", "limit", "needed", "expected"),
    [
        (60_000_000, 0, "max", 0, ["ok", "ok"]),
        (3_000_000, 0, "max", 0, ["warn", "ok"]),
        (60_000_000, 4_000_000, "max", 0, ["ok", "warn"]),
        (60_000_000, 0, "16000000000", 20e9, ["fail", "ok"]),
        (60_000_000, 0, "30000000000", 20e9, ["ok", "ok"]),
    ],
)
def test_memory(tmp_path, available, swap_used, limit, needed, expected):
    group = tmp_path / "groups/job"  # the limit stands above the process's own group
    group.mkdir(parents=True)
    (group / "memory.max").write_text(limit + "\n")
    checks = machine.memory(needed, meminfo(tmp_path, available, swap_used), tmp_path / "groups")
    assert [check.status for check in checks] == expected
    if limit != "max":
        assert f"may use {int(limit) / 1e9:.1f} GB" in checks[0].found


def test_memory_of_this_machine_is_what_linux_says():
    checks = machine.memory()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert f"of {total / 1e9:.1f} GB available" in checks[0].found


@pytest.mark.parametrize(
    ("blocks", "gpus", "status"), [(16, 8, "fail"), (16, 0, "warn"), (200, 8, "warn"), (4000, 8, "ok")]
)
def test_shared_memory(monkeypatch, blocks, gpus, status):
    size = SimpleNamespace(f_blocks=blocks, f_bavail=blocks, f_frsize=4 * 2**20)
    monkeypatch.setattr(os, "statvfs", lambda folder: size)
    assert machine.shared_memory(gpus).status == status


def test_limits():
    def limit_of(what: int) -> tuple[int, int]:
        return (1024, 4096) if what == resource.RLIMIT_NOFILE else (65536, 65536)

    found = statuses(machine.limits(infiniband=True, limit_of=limit_of))
    assert found == {"ulimit nofile": "warn", "ulimit nproc": "ok", "ulimit memlock": "fail", "ulimit core": "ok"}
    assert statuses(machine.limits(infiniband=False, limit_of=limit_of))["ulimit memlock"] == "ok"


@pytest.mark.parametrize(
    ("ranks", "setting", "expected"),
    [
        (2, None, ("ok", "ok")),
        (2, "4", ("ok", "ok")),
        (2, "8", ("ok", "warn")),
        (1, "1", ("ok", "warn")),
        (8, "1", ("ok", "ok")),
        (16, "1", ("warn", "ok")),
        (2, "many", ("ok", "fail")),
    ],
)
def test_cores_and_threads(monkeypatch, ranks, setting, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    checks = machine.cores(ranks, {} if setting is None else {"OMP_NUM_THREADS": setting})
    assert tuple(check.status for check in checks) == expected


@pytest.mark.parametrize(
    ("environ", "gpus", "hosts", "name", "status"),
    [
        ({}, 8, 2, "environment", "ok"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 8, 1, "CUDA_VISIBLE_DEVICES", "fail"),
        ({"CUDA_VISIBLE_DEVICES": "0,8"}, 8, 1, "CUDA_VISIBLE_DEVICES", "fail"),
        ({"CUDA_VISIBLE_DEVICES": "1,1"}, 8, 1, "CUDA_VISIBLE_DEVICES", "fail"),
        ({"CUDA_VISIBLE_DEVICES": "6,7"}, 8, 1, "environment", "ok"),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, 1, "environment", "ok"),
        ({"NCCL_P2P_DISABLE": "1"}, 8, 1, "environment", "warn"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, 8, 1, "environment", "warn"),
        ({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}, 8, 1, "environment", "ok"),
        ({"GLOO_SOCKET_IFNAME": "no_such0"}, 0, 2, "GLOO_SOCKET_IFNAME", "fail"),
        ({"GLOO_SOCKET_IFNAME": "l"}, 0, 2, "GLOO_SOCKET_IFNAME", "fail"),  # gloo takes whole names,
        ({"NCCL_SOCKET_IFNAME": "l"}, 0, 2, "environment", "ok"),  # NCCL prefixes
        ({"NCCL_SOCKET_IFNAME": "=l"}, 0, 2, "NCCL_SOCKET_IFNAME", "fail"),
        ({"NCCL_SOCKET_IFNAME": "^docker0"}, 0, 2, "environment", "ok"),
        ({"MASTER_ADDR": "localhost"}, 0, 2, "MASTER_ADDR", "fail"),
        ({"MASTER_ADDR": "localhost"}, 0, 1, "environment", "ok"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, 0, 1, "proxy", "warn"),
        ({"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "localhost"}, 0, 1, "environment", "ok"),
    ],
)
def test_environment(environ, gpus, hosts, name, status):
    (check,) = environment.environment(environ, gpus, hosts)
    assert (check.name, check.status) == (name, status), check


def test_libraries_that_hide_those_of_torch(tmp_path):
    (tmp_path / "libnccl.so.2").touch()
    (check,) = environment.environment({"LD_LIBRARY_PATH": f"/no/such:{tmp_path}"}, 8, 1)
    assert (check.name, check.status) == ("LD_LIBRARY_PATH", "warn") and f"{tmp_path} holds libnccl.so.2" in check.found


def test_a_hostname_on_loopback_is_a_trap_for_several_hosts():
    def resolve(name: str, port: None) -> list[tuple]:
        return [(socket.AF_INET, None, None, "", ("127.0.1.1", 0))]

    assert network.hostname("n1", 2, 0, {}, resolve).status == "fail"
    assert network.hostname("n1", 2, 8, {}, resolve).status == "warn"  # NCCL does not ask the name
    assert network.hostname("n1", 1, 0, {}, resolve).status == "ok"
    assert network.hostname("n1", 2, 0, {"GLOO_SOCKET_IFNAME": "eth0"}, resolve).status == "ok"


def test_a_hostname_that_does_not_resolve():
    check = network.hostname("no-such-host.invalid", 2, 0, {})
    assert check.status == "fail" and "no-such-host.invalid does not resolve" in check.found


def test_infiniband_ports(tmp_path):
    for name, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / name / "ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    check = network.infiniband(tmp_path)
    assert (check.status, check.found) == ("warn", "1 ports active, down: mlx5_1:1")
    (tmp_path / "mlx5_1/ports/1/state").write_text("4: ACTIVE")
    assert network.infiniband(tmp_path).found == "2 ports active, 400 Gb/sec"
    assert network.infiniband(tmp_path / "none").status == "skip"


def test_ports_that_are_open_closed_or_not_ours():
    listener, port = network.listen()
    closed, closed_port = network.listen()
    closed.shutdown(socket.SHUT_RDWR)
    closed.close()
    with listener, socket.create_server(("127.0.0.1", 0)) as stranger:
        me, other = Endpoint("n0", "127.0.0.1", 1), Endpoint("n1", "127.0.0.1", port)
        assert network.ports(0, [me, other]).status == "ok"
        check = network.ports(0, [me, other, Endpoint("n2", "127.0.0.1", closed_port)])
        assert check.status == "fail"
        assert check.found == f"cannot reach n2 (127.0.0.1:{closed_port}): Connection refused"
        silent = Endpoint("n3", *stranger.getsockname())
        assert network.call(silent, seconds=0.2) == "no answer in 0.2 s"
    assert network.ports(0, [me]).status == "skip"


def test_every_host_is_called_by_some_other():
    for hosts in (2, 3, 64, 65, 1000):
        called = {other for me in range(hosts) for other in network.to_call(me, hosts)}
        assert called == set(range(hosts)) and all(me not in network.to_call(me, hosts) for me in range(hosts))
    assert len(network.to_call(5, 64)) == 63 and network.to_call(999, 1000) == [0, 1]


def test_packages_of_this_environment():
    found = packages.versions()
    assert statuses(packages.packages(found, packages.requirements())) == {"python": "ok", "packages": "ok"}
    old = {**found, "torch": "1.13.1", "xxhash": "missing"}
    check = packages.packages(old, packages.requirements())[1]
    assert check.status == "fail"
    assert "torch 1.13.1 (needs >=2.11)" in check.found and "xxhash missing" in check.found


def test_another_checkout_has_another_fingerprint(tmp_path):
    (tmp_path / "train.py").write_text("a = 1\n")
    (tmp_path / "config").mkdir()
    before = packages.fingerprint(tmp_path)
    (tmp_path / "config/schema.py").write_text("b = 1\n")
    assert packages.fingerprint(tmp_path) != before


def test_hosts_fold_as_slurm_writes_them():
    assert fold_names(["n1", "n2", "n3", "n7", "login"]) == "n[1-3,7], login"
    assert fold_names(["gpu007", "gpu008", "gpu12"]) == "gpu[007-008], gpu12"
    assert fold_names(["n1.cluster", "n2.cluster"]) == "n[1-2].cluster"
    assert merge(["20 GB of 1,000", "7.5 GB of 1,000"]) == "7.5–20 GB of 1,000"
    assert merge(["at 10.0.0.9", "at 10.0.0.10"]) == "at 10.0.0.9–10.0.0.10"
    assert merge(["20 GB", "20 GiB"]) is None


def test_equal_findings_of_many_hosts_are_one_line():
    findings = [("", ok("ranks", "all 16 reported"))]
    for number in range(1, 9):
        findings.append((f"n{number}", ok("memory", f"{number} of 64 GB available")))
        bad = warn("clocks", "held down", "cool it") if number in (3, 4) else skip("clocks", "no GPU")
        findings.append((f"n{number}", bad))
    lines = [(line.check.name, line.check.status, line.check.found, len(line.hosts)) for line in fold(findings)]
    assert lines == [
        ("ranks", "ok", "all 16 reported", 0),
        ("memory", "ok", "1–8 of 64 GB available", 8),
        ("clocks", "warn", "held down", 2),
        ("clocks", "skip", "no GPU", 6),
    ]
    shown = text(findings, [f"n{number}" for number in range(1, 9)], 16, 1.0)
    assert "held down (on n[3-4])" in shown and "fix: cool it" in shown
    assert shown.splitlines()[-2:] == [
        "8 hosts, 16 ranks, 1.0 s: 2 ok, 1 warn, 1 skip",
        "look at: warn clocks on n[3-4]",
    ]
    facts = as_json(findings, ["n1"], 16, 1.0, [])
    assert facts["ok"] and {"name", "status", "found", "fix", "hosts"} == facts["checks"][0].keys()
