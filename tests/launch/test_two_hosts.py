"""Each launcher trains across two hosts as two ranks train on one; hosts leave, come back, and lose their link."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.accelerate_config import accelerate_config
from tests.conftest import ROOT, environment, losses, metrics, train, write_recipe
from tests.launch.two_hosts import BIN, Host, finish, hosts

__all__ = ["hosts"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(corpus, tmp_path_factory) -> Path:
    """Folder of the recipe and its runs, and what DeepSpeed exports to the hosts that it starts over ssh."""
    folder = tmp_path_factory.mktemp("home")
    write_recipe(folder, corpus)
    (folder / ".deepspeed_env").write_text("DS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    return folder


@pytest.fixture(scope="module")
def reference(home) -> dict[int, float]:
    """The losses of two ranks on one host."""
    done = train(home / "tiny.yaml", "run.name=one-host", ranks=2)
    assert done.returncode == 0, done.stderr
    return losses(home / "runs/one-host")


def hostfile(home: Path, text: str) -> str:
    path = home / "hosts.txt"
    path.write_text(text)
    return str(path)


def trained_alike(run: Path, reference: dict[int, float], *results: subprocess.CompletedProcess) -> None:
    for result in results:
        assert result.returncode == 0, result.stdout[-3000:]
    assert "accumulation × 2 ranks;" in results[0].stdout, results[0].stdout[-3000:]
    assert losses(run) == pytest.approx(reference, abs=1e-6)


def test_deepspeed_over_ssh_with_an_excluded_slot(hosts, home, reference):
    slots = hostfile(home, "h1 slots=2\nh2 slots=1\n")
    checked = hosts.h1.run(BIN / "python", "-m", "launch", "hostfile", slots, home / "tiny.yaml", "batch.micro_batch_size=1",
                           "batch.global_batch_size=6")  # fmt: skip
    assert checked.returncode == 0 and "  ok  h2 slots=1" in checked.stdout, checked.stdout
    options = ["--hostfile", slots, "--exclude", "h1:1", "--master_port", "29601"]
    environ = environment(HOME=str(home))
    result = hosts.h1.run(BIN / "deepspeed", *options, "train.py", home / "tiny.yaml", "run.name=pdsh", env=environ)
    assert "h2: " in result.stdout
    trained_alike(home / "runs/pdsh", reference, result)


def test_ctrl_c_under_pdsh_saves_although_the_screen_is_gone(hosts, home):
    run, slots = home / "runs/ctrl-c", hostfile(home, "h1 slots=1\nh2 slots=1\n")
    never = ["schedule.steps=100000", "checkpoint.every_steps=100000", "validation.every_steps=0"]
    training = ["train.py", home / "tiny.yaml", "run.name=ctrl-c", *never]
    command = [BIN / "deepspeed", "--hostfile", slots, "--master_port", "29608", *training]
    process = hosts.h1.start(*command, env=environment(HOME=str(home)))
    wait_until(lambda: (run / "metrics.jsonl").exists() and metrics(run))
    os.killpg(process.pid, signal.SIGINT)
    finish(process)
    wait_until(lambda: newest(run) > 0)
    assert newest(run) == metrics(run)[-1]["step"]
    wait_until(lambda: all(host.run("pgrep", "-f", "train.py").returncode for host in (hosts.h1, hosts.h2)))


def test_deepspeed_without_ssh_with_included_slots_and_bound_cores(hosts, home, reference):
    """--bind_cores_to_rank needs numactl, and is forgotten under pdsh."""
    command = [BIN / "deepspeed", "--hostfile", hostfile(home, "h1 slots=2\nh2 slots=2\n"), "--include", "h1:0@h2:1"]
    if not subprocess.run(["which", "numactl"], capture_output=True).returncode:
        command += ["--bind_cores_to_rank", "--bind_core_list", str(min(os.sched_getaffinity(0)))]
    command += ["--no_ssh", "--master_addr", hosts.h1.address, "--master_port", "29602", "--node_rank"]
    training = ["train.py", home / "tiny.yaml", "run.name=no-ssh"]
    started = [host.start(*command, rank, *training) for rank, host in enumerate((hosts.h1, hosts.h2))]
    trained_alike(home / "runs/no-ssh", reference, *map(finish, started))


def accelerate(home: Path, launcher: str) -> list[str | Path]:
    path = home / f"{launcher}.yaml"
    path.write_text(accelerate_config(str(ROOT / "ds_configs/zero1.json"), 2, cpu=True, multinode_launcher=launcher))
    return [BIN / "accelerate", "launch", "--config_file", path]


def test_accelerate_on_each_host(hosts, home, reference):
    command = [*accelerate(home, "standard"), "--main_process_ip", hosts.h1.address, "--main_process_port", "29603"]
    training = ["train.py", home / "tiny.yaml", "run.name=standard"]
    started = [host.start(*command, "--machine_rank", i, *training) for i, host in enumerate((hosts.h1, hosts.h2))]
    trained_alike(home / "runs/standard", reference, *map(finish, started))


def test_accelerate_over_ssh(hosts, home, reference):
    """Run in a folder of its own: Accelerate writes the environment, secrets included, into .deepspeed_env there."""
    scratch = home / "scratch"
    scratch.mkdir()
    (scratch / "hostfile").write_text("h1 slots=1\nh2 slots=1\n")
    command = [*accelerate(home, "pdsh"), "--main_process_port", "29604", ROOT / "train.py", home / "tiny.yaml"]
    environ = environment(SECRET="told-to-all", PATH=f"{BIN}:{os.environ['PATH']}")
    settings = ["run.name=over-ssh", f"engine.ds_config={ROOT}/ds_configs/zero1.json"]
    result = hosts.h1.run(*command, *settings, cwd=scratch, env=environ)
    trained_alike(home / "runs/over-ssh", reference, result)
    assert "SECRET=told-to-all" in (scratch / ".deepspeed_env").read_text(), "the warning in the YAML is out of date"


def test_a_lost_link_fails_both_ranks_in_time_and_the_same_command_continues(hosts, home):
    settings = [
        "run.name=link",
        "engine.communication_timeout=5",
        "checkpoint.every_steps=20",
        "validation.every_steps=0",
    ]

    def start(port: int, steps: int) -> list[subprocess.Popen]:
        """As a launcher would start them, but with the exit code of the rank itself."""
        place = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": hosts.h1.address, "MASTER_PORT": str(port)}
        training = ["train.py", home / "tiny.yaml", *settings, f"schedule.steps={steps}", "run.accept_changes=true"]
        ranks = [environment(RANK=rank, **place) for rank in "01"]
        return [h.start(BIN / "python", *training, env=e) for h, e in zip((hosts.h1, hosts.h2), ranks, strict=True)]

    started = start(29605, 10_000)
    wait_until(lambda: (home / "runs/link/checkpoints/step_00000020").exists())
    hosts.link("h2", "down")
    began = time.monotonic()
    try:
        results = [finish(process) for process in started]
        assert time.monotonic() - began < 30  # 5 of the time-out, 2 of the search for silent hosts
        slots = hostfile(home, "h1 slots=1\nh2 slots=1\n")
        checked = hosts.h1.run(BIN / "python", "-m", "launch", "hostfile", slots, "--timeout", "1")
    finally:
        hosts.link("h2", "up")
    for rank, (result, here, there) in enumerate(zip(results, ("h1", "h2"), ("h2", "h1"), strict=True)):
        assert result.returncode == 75 and "Traceback" not in result.stdout, result.stdout[-3000:]
        assert (
            f"error: rank {rank} on {here}: no answer from the other ranks within 5 s (engine.communication_timeout); "
            f"{there} (rank {1 - rank}) cannot be reached from here: mend the link" in result.stdout
        ), result.stdout[-3000:]
    assert checked.returncode == 1 and "fail  h2 slots=1: ssh: connect to host h2 port 22: " in checked.stdout
    saved = max(int(path.name[5:]) for path in (home / "runs/link/checkpoints").glob("step_*"))
    results = [finish(process) for process in start(29606, saved + 3)]
    assert [result.returncode for result in results] == [0, 0], results[0].stdout[-3000:]
    assert [record["step"] for record in metrics(home / "runs/link")] == list(range(1, saved + 4))


def test_torchrun_goes_on_as_hosts_come_and_go(hosts, home):
    """One host, joined by a second one, which is killed and comes back: no step is lost or done twice, and each has the
    same number of tokens."""
    run, steps = home / "runs/elastic", 600
    log = home / "elastic.log"
    settings = ["run.name=elastic", f"schedule.steps={steps}", "checkpoint.every_steps=50", "validation.every_steps=0"]

    def agent(host: Host) -> subprocess.Popen:
        rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts.h1.address}:29607", "--rdzv-id", "elastic"]
        patience = ["--rdzv-conf", "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"]
        restarts = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "9", "--monitor-interval", "0.2"]
        command = [BIN / "torchrun", *restarts, *rendezvous, *patience, "train.py", home / "tiny.yaml", *settings]
        with log.open("a") as output:
            return host.start(*command, stdout=output, env=environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"))

    def times(text: str) -> int:
        return log.read_text().count(text)

    first = agent(hosts.h1)
    wait_until(lambda: times("step ") > 0)
    second = agent(hosts.h2)
    wait_until(lambda: times("× 2 ranks;") == 1 and (run / "metrics.jsonl").stat().st_size)
    alone = newest(run)
    wait_until(lambda: newest(run) > alone)
    hosts.h2.kill("train.py")
    second.wait()
    wait_until(lambda: times("× 1 rank;") == 2)
    second = agent(hosts.h2)
    wait_until(lambda: times("× 2 ranks;") == 2)
    assert (first.wait(100), second.wait(100)) == (0, 0), log.read_text()[-3000:]
    records = metrics(run)
    assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert {record["tokens"] for record in records} == set(range(256, 256 * steps + 1, 256))


def newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s"
        time.sleep(0.1)
