"""Ranks that do not meet or are lost: one message that says who is missing and what to do, and no hang."""

import io
import os
import socket

import pytest
import torch

from config import ConfigError
from engine.connection_errors import lost_connection, silent_hosts
from engine.device import device_info, hidden_gpu
from engine.monitor import ProgressLine
from tests.conftest import train
from tests.ranks import free_port, run_ranks
from tests.workers.lost import message_when_the_other

CONTINUES = "The same command continues from the newest checkpoint"


@pytest.mark.parametrize(
    ("fate", "expected"),
    [
        ("leaves", "the connection to another rank broke ("),
        ("sleeps", "no answer from the other ranks within 2 s (engine.communication_timeout)"),
    ],
)
def test_a_lost_rank_is_one_message(fate, expected):
    message, _ = run_ranks(2, message_when_the_other, fate)
    assert message.startswith(f"rank 0 on {socket.gethostname()}: {expected}")
    assert message.endswith(f"; a rank ended or is stuck: its own last lines say why. {CONTINUES}")


def refused(result, *parts: str) -> None:
    assert result.returncode == 75, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    message = result.stderr[result.stderr.index("error: ") :]
    for part in parts:
        assert part in message, message


def test_a_port_in_use(recipe):
    with socket.create_server(("", 0)) as server:
        port = str(server.getsockname()[1])
        result = train(recipe, RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    refused(result, f"port {port} on {socket.gethostname()} is in use", "--master_port N", "--main_process_port N")


def test_a_rank_that_never_arrives(recipe):
    port = str(free_port())
    rank = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    timeout = "engine.communication_timeout=1"
    refused(train(recipe, timeout, RANK="0", **rank), f"1 of 2 ranks arrived at 127.0.0.1:{port} within 1 s (engine.")
    refused(
        train(recipe, timeout, RANK="1", **rank), "rank 1 on", f"could not reach rank 0 at 127.0.0.1:{port} within 1 s"
    )


def test_two_ranks_on_one_gpu():
    """NCCL's own finding, where SLURM shows each rank one GPU and nobody can tell before."""
    error = RuntimeError("NCCL error\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000")
    found = lost_connection(error, 1, ("h1", "h1"), 20, 29500)
    assert found.exit_code == 2, "starting again would not help"
    message = str(found)
    assert "rank 1 and rank 0 both on CUDA device 1b000: every rank needs a GPU of its own" in message


def test_hosts_that_answer_are_told_from_those_that_do_not(monkeypatch):
    def connect(address, timeout):
        name = address[0]
        raise {"refuses": ConnectionRefusedError, "unnamed": socket.gaierror}.get(name, TimeoutError)

    monkeypatch.setattr("engine.connection_errors.socket.create_connection", connect)
    assert silent_hosts({"refuses", "unnamed", "gone"}, 29500) == ["gone"]
    hosts = ("here", "refuses", "gone", "gone")
    message = str(lost_connection(RuntimeError("gloo: Timed out"), 0, hosts, 20, 29500))
    assert "gone (ranks 2 to 3) cannot be reached from here: mend the link or the host, or leave it out" in message


def test_a_gpu_that_torch_was_not_built_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "sm_120", "compute_120"])
    with pytest.raises(ConfigError, match=r"Tesla K80 has compute capability 3.7, but PyTorch .* 7.5 and newer"):
        device_info(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert device_info(torch.device("cuda", 0)).fast_bf16


def test_a_cpu_beside_a_gpu_is_no_silent_choice(monkeypatch, tmp_path):
    cpu = device_info(torch.device("cpu"))
    monkeypatch.setattr("engine.device.NVIDIA_DRIVER", tmp_path / "none")
    assert hidden_gpu(cpu) == ""
    monkeypatch.setattr("engine.device.NVIDIA_DRIVER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "PyTorch sees no GPU" in hidden_gpu(cpu)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is empty" in hidden_gpu(cpu)


def test_a_screen_that_is_gone_does_not_end_the_run():
    reader, writer = os.pipe()
    line = ProgressLine(io.TextIOWrapper(os.fdopen(writer, "wb"), write_through=True))
    os.close(reader)
    line.keep("step 1")
    line.keep("step 2")
