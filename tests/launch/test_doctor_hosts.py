"""The doctor on two hosts that are network namespaces of this machine: well, and with everything wrong at once."""

import json
import sys

import pytest

from tests.conftest import environment
from tests.launch.two_hosts import Hosts, finish, hosts  # noqa: F401 (a fixture)


def examine(pair: Hosts, folder, *arguments: str, **extra: str) -> tuple[dict, str, list[int]]:
    """Findings by name of the doctor started on both hosts, as srun would; the text that h1 shows; both exit codes."""
    job = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": pair.h1.address, "MASTER_PORT": "29400"}
    command = [sys.executable, "-m", "launch", "doctor", *arguments, "--json", folder / "found.json"]
    processes = [
        host.start(*command, env=environment(RANK=str(rank), **job, **extra))
        for rank, host in enumerate((pair.h1, pair.h2))
    ]
    ended = [finish(process, 90) for process in processes]
    found: dict[str, list[dict]] = {}
    for check in json.loads((folder / "found.json").read_text())["checks"]:
        found.setdefault(check["name"], []).append(check)
    return found, ended[0].stdout, [process.returncode for process in ended]


@pytest.mark.slow
def test_two_hosts_that_are_well(hosts: Hosts, recipe, tmp_path):  # noqa: F811
    found, text, codes = examine(hosts, tmp_path, str(recipe), GLOO_SOCKET_IFNAME="eth0")
    assert codes == [0, 0], text
    assert "2 hosts, 2 ranks" in text
    for name in ("clocks", "hostname", "ports", "shared folder", "data prepared", "all-reduce", "links"):
        assert [check["status"] for check in found[name]] == ["ok"], found[name]
    assert "between hosts" in found["links"][0]["found"]


@pytest.mark.slow
def test_names_on_loopback_and_a_folder_that_is_not_shared(hosts: Hosts, recipe, tmp_path):  # noqa: F811
    """As Debian installs a host: its own name stands on the line of 127.0.1.1."""
    (tmp_path / "runs").mkdir()
    for mine, other in ((hosts.h1, hosts.h2), (hosts.h2, hosts.h1)):
        names = tmp_path / f"hosts_{mine.name}"
        names.write_text(f"127.0.0.1 localhost\n127.0.1.1 {mine.name}\n{other.address} {other.name}\n")
        mine.run("mount", "--bind", names, "/etc/hosts")
    hosts.h1.run("mount", "-t", "tmpfs", "tmpfs", tmp_path / "runs")
    try:
        found, text, codes = examine(hosts, tmp_path, str(recipe), "--timeout", "6")
    finally:
        for host in (hosts.h1, hosts.h2):
            host.run("umount", "/etc/hosts")
    assert codes == [1, 1], text
    assert [check["hosts"] for check in found["hostname"]] == [["h1"], ["h2"]]
    assert "h1 is 127.0.1.1: gloo listens there" in found["hostname"][0]["found"]
    assert found["shared folder"][0]["hosts"] == ["h1", "h2"] and found["shared folder"][0]["status"] == "fail"
    assert found["ports"][0]["status"] == "ok"
    assert found["all-reduce"][0]["status"] == "fail", found["all-reduce"]  # the names are the only reason


@pytest.mark.slow
def test_ports_that_a_firewall_closes(hosts: Hosts, tmp_path):  # noqa: F811
    """MASTER_PORT is open, so all ranks report; those that the kernel gives out are not, and training would hang."""
    closed = ["rule", "add", "ipproto", "tcp", "dport", "32768-60999", "prohibit"]
    assert hosts.h2.run("ip", *closed).returncode == 0
    try:
        found, text, codes = examine(hosts, tmp_path, "--timeout", "8", GLOO_SOCKET_IFNAME="eth0")
    finally:
        hosts.h2.run("ip", "rule", "del", *closed[2:])
    assert codes == [1, 1], text
    assert [check["hosts"] for check in found["ports"]] == [["h1"], ["h2"]]
    assert f"cannot reach h1 ({hosts.h1.address}:" in found["ports"][1]["found"]
    assert found["all-reduce"][0]["status"] == "fail" and "at `joining`" in found["all-reduce"][0]["found"]
