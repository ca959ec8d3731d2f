"""A real SLURM of five nodes on this machine, run by whoever runs the tests: no munge, no database, no fixed ports."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, environment

NODES = 5
SETTLE_SECONDS = 2.0
"""Until SLURM has cleaned up after a job on all nodes; a start before would be killed with what it cleans up."""
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
GresTypes=gpu
EnforcePartLimits=ALL
ReturnToService=2
KillWait=20
SlurmdTimeout=10
MinJobAge=600
MessageTimeout=60
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 MaxTime=1-0 State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 MaxTime=1-0 State=UP
"""
NODE = "NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=4000 Gres=gpu:4"
GRES = f"NodeName=n[1-{NODES}] Name=gpu File=/dev/null,/dev/zero,/dev/full,/dev/random\n"


class Cluster:
    """Commands of a running cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environ = {"SLURM_CONF": f"{folder}/slurm.conf"}

    def run(self, *command: str | Path, **extra: str) -> subprocess.CompletedProcess:
        """A SLURM command or `python -m launch`, as a user in the project's folder would type it."""
        environ = {**environment(), **self.environ, **extra}
        return subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environ, capture_output=True, text=True, timeout=200
        )

    def launch(self, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess:
        return self.run(sys.executable, "-m", "launch", *arguments, **extra)

    def job(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job."""
        result = self.run("scontrol", "show", "job", job, "-o")
        return dict(word.split("=", 1) for word in result.stdout.split() if "=" in word)

    def wait_for(self, job: str, *states: str, seconds: float = 100) -> dict[str, str]:
        """Poll until a job has one of the states. A requeued one waits for some seconds, not for its two minutes."""
        requeued = 0.0

        def reached() -> bool:
            nonlocal requeued
            found = self.job(job)
            if found["JobState"] in states:
                return True
            waits = found["JobState"] == "PENDING" and found["Reason"] == "BeginTime"
            requeued = (requeued or time.monotonic()) if waits else 0.0
            if requeued and time.monotonic() - requeued > SETTLE_SECONDS:
                self.run("scontrol", "update", f"jobid={job}", "starttime=now")
                requeued = 0.0
            return False

        until(reached, seconds, lambda: f"job {job} is {self.job(job)}, expected {states}\n{self.logs()}")
        return self.job(job)

    def kill_node(self, name: str) -> None:
        """The power of a node fails: its slurmd and everything that it started die at once."""
        tasks = [p for p in self.processes() if environ_of(p).get("SLURMD_NODENAME") == name]
        steps = [p for task in tasks if (p := task.parent()) and "slurmstepd" in _command(p)]
        daemons = [p for p in self.processes() if _command(p).endswith(f"-N {name}")]
        kill({*daemons, *steps, *tasks})

    def start_node(self, name: str) -> None:
        self._daemon("slurmd", "-N", name)

    def start(self) -> None:
        """Start all daemons and wait until every node is idle."""
        ports = free_ports(NODES + 1)
        nodes = [NODE.format(n=n, host=socket.gethostname(), port=ports[n]) for n in range(1, NODES + 1)]
        conf = CONF.format(
            host=socket.gethostname(), user=getpass.getuser(), folder=self.folder, ports=ports, nodes="\n".join(nodes)
        )
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "gres.conf").write_text(GRES)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self._daemon("slurmctld", "-c")
        for n in range(1, NODES + 1):
            self.start_node(f"n{n}")
        until(lambda: set(self.run("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"}, 60, self.logs)

    def stop(self) -> None:
        """Kill every process of the cluster, those of jobs and half-dead steps included."""
        for _ in range(3):  # a daemon may be starting one more
            kill(self.processes())
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """The daemons and whatever they started: all have this cluster's configuration in their environment."""
        conf = self.environ["SLURM_CONF"]
        others = (process for process in psutil.process_iter() if process.pid != os.getpid())
        return [process for process in others if environ_of(process).get("SLURM_CONF") == conf]

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))

    def _daemon(self, name: str, *arguments: str) -> None:
        result = self.run(_program(name), "-f", self.environ["SLURM_CONF"], *arguments)
        assert result.returncode == 0, result.stderr


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _program(name: str) -> str | None:
    """Daemons lie where an ordinary user's PATH does not look."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def environ_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def until(condition: Callable[[], bool], seconds: float, describe: Callable[[], object]) -> None:
    """Poll until the condition holds. Fails with a description after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s: {describe()}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "scontrol") if not _program(name)]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: apt-get install slurmctld slurmd slurm-client")
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
