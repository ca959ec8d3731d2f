"""The part of the doctor that imports torch: a process of its own, started by `launch.doctor.probe` on every rank.

Tells what it finds as lines of JSON, each with what is new; then reads from its input where the ranks meet, and measures
the all-reduce. Each `stage` is told before it starts, so that whoever listens knows where a probe hangs.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from launch.doctor.collectives import bus_bandwidth, pairings

FLASH = {"flash-attn 4": "flash_attn.cute", "flash-attn 3": "flash_attn_interface", "flash-attn 2": "flash_attn"}
OPS = ("fused_adam", "cpu_adam", "async_io")


def main() -> None:
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not end up between the lines

    def tell(**facts: Any) -> None:
        told.write(json.dumps(facts) + "\n")

    try:
        tell(stage="importing torch")
        tell(**software(tell))
        order = json.loads(sys.stdin.readline() or "null")
        if order:
            tell(**measure(order, tell))
        tell(stage="done")
    except Exception as error:
        tell(error=f"{type(error).__name__}: {error}"[:500])
    told.flush()
    os._exit(0)  # a communicator that hangs must not be waited for


def software(tell: Callable[..., None]) -> dict[str, Any]:
    started = time.perf_counter()
    import torch

    seconds = time.perf_counter() - started
    facts: dict[str, Any] = {"torch": torch.__version__, "import_seconds": seconds, "cuda": torch.version.cuda}
    facts |= {"hip": torch.version.hip, "gloo": torch.distributed.is_gloo_available(), "gpus": 0}
    if torch.version.cuda or torch.version.hip:
        try:
            torch.cuda.init()
            facts["gpus"] = torch.cuda.device_count()
            facts["capability"] = list(torch.cuda.get_device_capability(0))
            facts["archs"] = torch.cuda.get_arch_list()
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        except (RuntimeError, AssertionError) as error:
            facts["cuda_error"] = str(error).splitlines()[0]
    if os.environ.get("LOCAL_RANK", "0") == "0":
        tell(stage="trying flash-attn")
        facts["flash"] = {name: try_flash(module, facts["gpus"] > 0) for name, module in FLASH.items()}
        tell(stage="looking at DeepSpeed's ops")
        facts["ops"] = deepspeed_ops(facts["gpus"] > 0)
    return {"software": facts}


def try_flash(module: str, gpu: bool) -> str:
    """Its version if it computes what torch computes, "missing", or what went wrong."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Wheels of flash-attn 2 hold sources of 4 without what those import.
        absent = module == "flash_attn.cute" or (error.name and module.startswith(error.name))
        return "missing" if absent else f"broken: {error}"
    except Exception as error:  # a build for another torch fails in any way
        return f"broken: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    version = getattr(package, "__version__", "present")
    if not gpu:
        return f"broken: {version} needs a GPU"
    try:
        q_BTHE = torch.randn(1, 128, 2, 64, device="cuda", dtype=torch.bfloat16)
        out = package.flash_attn_func(q_BTHE, q_BTHE, q_BTHE, causal=True)
        out = out[0] if isinstance(out, tuple) else out
        q_BHTE = q_BTHE.transpose(1, 2)
        expected = scaled_dot_product_attention(q_BHTE, q_BHTE, q_BHTE, is_causal=True).transpose(1, 2)
        off = (out - expected).abs().max().item()
        return version if off < 0.05 else f"broken: {version} is {off:.2g} off torch's attention"
    except Exception as error:
        return f"broken: {version}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def deepspeed_ops(gpu: bool) -> dict[str, str]:
    """Each op: installed, buildable, or not buildable; one entry "error" if DeepSpeed cannot be imported."""
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    try:
        from deepspeed.git_version_info import installed_ops
        from deepspeed.ops.op_builder.all_ops import ALL_OPS
        from deepspeed.ops.op_builder.builder import probe_is_compatible
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    state = {}
    for name in OPS:
        if name not in ALL_OPS:
            state[name] = "not for this device"
        elif installed_ops.get(name):
            state[name] = "installed"
        else:
            state[name] = "buildable" if probe_is_compatible(ALL_OPS[name]) else "not buildable"
    return state


def measure(order: dict[str, Any], tell: Callable[..., None]) -> dict[str, Any]:
    """`order`: backend, address, port, rank, size, local (ranks of a host), seconds (time-out)."""
    import torch
    import torch.distributed as dist

    rank, size, gpu = order["rank"], order["size"], order["backend"] == "nccl"
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        if gpu
        else torch.device("cpu")
    )
    if gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(len(os.sched_getaffinity(0)) // order["local"], 1))
    found: dict[str, Any] = {"device": device.type}
    if size > 1:
        tell(stage="joining")
        store = dist.TCPStore(order["address"], order["port"], size, rank == 0, timedelta(seconds=order["seconds"]))
        timeout = timedelta(seconds=order["seconds"])
        dist.init_process_group(order["backend"], store=store, rank=rank, world_size=size, timeout=timeout)
        tell(stage="first all-reduce")
        one = torch.ones(1, device=device)
        found["latency_us"] = 1e6 * seconds_of(lambda: dist.all_reduce(one), device, repeats=30)
        found |= _all_reduce(order, device, tell)
        found["pairs"] = _pairs(order, device, tell)
    tell(stage="multiplying matrices")
    width, dtype = (8192, torch.bfloat16) if gpu else (768, torch.float32)
    left = torch.randn(width, width, device=device, dtype=dtype)
    if size > 1:
        dist.barrier()
    found["matmul_tflops"] = 2 * width**3 / seconds_of(lambda: left @ left, device, repeats=7) / 1e12
    return found


def _all_reduce(order: dict[str, Any], device: Any, tell: Callable[..., None]) -> dict[str, Any]:
    """Bus bandwidth by size in bytes, and whether every sum is right: rank r adds (r + 1) (i mod 7) at place i, whole
    numbers that fp32 adds exactly."""
    import torch
    import torch.distributed as dist

    rank, size = order["rank"], order["size"]
    sizes = (2**20, 2**24) if device.type == "cpu" else (2**20, 2**25, 2**28)
    rates, correct = {}, True
    for number in sizes:
        tell(stage=f"all-reduce of {number // 2**20} MiB")
        pattern = torch.arange(number // 4, device=device) % 7
        summed = (pattern * (rank + 1)).float()
        dist.all_reduce(summed)
        correct = correct and bool(torch.equal(summed, (pattern * (size * (size + 1) // 2)).float()))
        summed.zero_()  # so that repeating cannot overflow
        seconds = seconds_of(partial(dist.all_reduce, summed), device, repeats=5)
        rates[str(number)] = bus_bandwidth(number, size, seconds)
    return {"bus_gb_s": rates, "correct": correct}


def _pairs(order: dict[str, Any], device: Any, tell: Callable[..., None]) -> list[tuple[int, float]]:
    """GB/s to each higher partner, both ways at once, one round of pairs after the other."""
    import torch
    import torch.distributed as dist

    rank, number = order["rank"], 2**22 if device.type == "cpu" else 2**26
    sent, received = (torch.zeros(number // 4, device=device) for _ in range(2))
    rates = []
    for turn, pairs in enumerate(pairings(order["size"], order["local"])):
        tell(stage=f"pairs, round {turn + 1}")
        partner = next((a + b - rank for a, b in pairs if rank in (a, b)), None)

        def exchange(partner: int | None = partner) -> None:
            if partner is not None:
                calls = [dist.P2POp(dist.isend, sent, partner), dist.P2POp(dist.irecv, received, partner)]
                for request in dist.batch_isend_irecv(calls):
                    request.wait()

        seconds = seconds_of(exchange, device, repeats=3)
        if partner is not None and partner > rank:
            rates.append((partner, number / seconds / 1e9))
        dist.barrier()
    return rates


def seconds_of(action: Callable[[], Any], device: Any, repeats: int) -> float:
    """Median time of `action` after one to warm up."""
    import torch

    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        action()
        if device.type != "cpu":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])[repeats // 2]


if __name__ == "__main__":
    main()
