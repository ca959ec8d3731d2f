"""Two hosts on one machine, each with its own network, hostname, processes and sshd, joined by a switch whose cables
can be pulled. They share the file system, as the nodes of a cluster do.

Everything lives in Linux namespaces that end with their first process: nothing is named outside of them, so several
test runs on one machine do not meet, and nothing is left behind, also not by a killed pytest.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

NAMES = ("h1", "h2")
ADDRESSES = {"h1": "10.77.0.1", "h2": "10.77.0.2"}
BIN = Path(sys.executable).parent
NEEDED = {"ip": "iproute2", "pdsh": "pdsh", "ssh": "openssh-client", "sshd": "openssh-server", "unshare": "util-linux"}

SSHD = """HostKey {folder}/id
AuthorizedKeysFile {folder}/id.pub
PermitRootLogin yes
StrictModes no
UsePAM no
PidFile none
"""
SSH = """Host *
IdentityFile {folder}/id
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


@dataclass(frozen=True)
class Host:
    name: str
    init: int
    """Process id, seen from outside, of the first process inside; all others end with it."""

    @property
    def address(self) -> str:
        return ADDRESSES[self.name]

    def start(self, *command: str | Path, **options) -> subprocess.Popen:
        """Start a command on this host, in a session of its own; its output is one text."""
        options = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "env": environment(),
            **options,
        }
        here = ["env", "-C", str(options.pop("cwd", ROOT))]
        return subprocess.Popen([*enter(self.init), *here, *map(str, command)], start_new_session=True, **options)

    def run(self, *command: str | Path, timeout: float = 120, **options) -> subprocess.CompletedProcess:
        return finish(self.start(*command, **options), timeout)

    def kill(self, text: str) -> None:
        """End every process whose command holds `text` at once, as a power cut would."""
        self.run("pkill", "-9", "-f", text)


@dataclass(frozen=True)
class Hosts:
    h1: Host
    h2: Host
    switch: int

    def link(self, host: str, state: str) -> None:
        """Pull the cable of a host at the switch (`down`), or plug it in again (`up`)."""
        subprocess.run([*enter(self.switch), "ip", "link", "set", host, state], check=True)


def finish(process: subprocess.Popen, timeout: float = 120) -> subprocess.CompletedProcess:
    """Wait for a command that `start` began; after `timeout` seconds it is killed and the test fails."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"no end after {timeout:g} s: {process.args}\n{output[-3000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, output, "")


@pytest.fixture(scope="session")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    """Two hosts h1 and h2 that reach each other by name, over TCP and over ssh without a password."""
    if os.geteuid():
        pytest.skip("network namespaces need root")
    absent = [package for program, package in NEEDED.items() if not shutil.which(program)]
    if absent:
        pytest.skip(f"apt-get install {' '.join(absent)}")
    folder = tmp_path_factory.mktemp("hosts")
    write_files(folder)
    with ExitStack() as stack:
        switch = stack.enter_context(namespaces("sleep infinity"))
        bridge = "ip link add br0 type bridge && ip link set br0 up"
        subprocess.run([*enter(switch), "sh", "-c", bridge], check=True)
        found = []
        for name in NAMES:
            init = stack.enter_context(namespaces(boot(folder, name)))
            plug = f"ip link add {name} type veth peer name eth0 netns {init} && ip link set {name} master br0 up"
            subprocess.run(["nsenter", "-t", str(switch), "--net", "sh", "-c", plug], check=True)
            address = f"ip addr add {ADDRESSES[name]}/24 dev eth0 && ip link set eth0 up"
            subprocess.run(["nsenter", "-t", str(init), "--net", "sh", "-c", address], check=True)
            found.append(Host(name, init))
        wait_for_ssh(found)
        yield Hosts(*found, switch)


def write_files(folder: Path) -> None:
    """A key, the configurations of ssh and sshd, and who has which address."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "id"], check=True)
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    (folder / "ssh_config").write_text(SSH.format(folder=folder))
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{ADDRESSES[n]} {n}\n" for n in NAMES))


def boot(folder: Path, name: str) -> str:
    """Shell commands of a host's first process."""
    return (
        f"hostname {name} && mount --bind {folder}/hosts /etc/hosts && mount --bind {folder} /etc/ssh && "
        f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && ip link set lo up && {shutil.which('sshd')} && sleep infinity"
    )


@contextmanager
def namespaces(script: str) -> Iterator[int]:
    """Process id of a shell that runs `script` in namespaces of its own. Skips the test where that is not allowed."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "--mount", "--pid", "--fork"]
    command += ["--kill-child", "--mount-proc", "sh", "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for _ in range(100):
            if process.poll() is not None:
                pytest.skip(f"namespaces are not allowed here: {process.stdout.read().strip()}")
            if children.read_text():
                break
            time.sleep(0.02)
        yield int(children.read_text())
    finally:
        process.kill()
        process.wait()


def enter(init: int) -> list[str]:
    return ["nsenter", "-t", str(init), "--net", "--uts", "--mount", "--pid"]


def wait_for_ssh(found: list[Host]) -> None:
    """Every host answers every host over ssh, within five seconds."""
    for here in found:
        for there in found:
            for _ in range(50):
                answer = here.run("ssh", there.name, "hostname", timeout=10)
                if answer.stdout.strip() == there.name:
                    break
                time.sleep(0.1)
            else:
                pytest.fail(f"no ssh from {here.name} to {there.name}: {answer.stdout}")
