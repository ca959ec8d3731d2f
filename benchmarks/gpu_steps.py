"""Training steps of a 124M and a 1.3B model in several ways, and where the time goes."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import gpu_peers
from benchmarks.gpu import Row
from benchmarks.gpu_clock import DEVICE, ON_GPU, first_line, seconds_of, synchronize
from config import RunConfig, load_recipe
from config.derive import derive
from config.hardware import find_accelerator
from engine.device import measured_matmul_tflops

COMMON = ("schedule.steps=10000", "schedule.name=constant", "schedule.warmup_steps=0", "engine.precision=bf16_autocast")
TINY = (
    "model.num_layers=1", "model.hidden_size=32", "model.num_heads=2", "model.num_kv_heads=2", "model.ffn_size=64",
    "model.vocab_size=128", "data.row_length=32", "monitor.peak_tflops=1",
)  # fmt: skip
ROOM = 0.85
"""Share of the memory that the largest micro-batch may fill in the eager step, which needs most."""


@dataclass(frozen=True)
class Workload:
    """A model whose training step is timed."""

    recipe: str
    overrides: tuple[str, ...]
    micro_batches: tuple[int, ...]
    """Tried from the first on; the first that fits is used, without accumulation."""


WORKLOADS = {
    "gpt2_124m": Workload("gpt2_124m", (), (256, 128, 64, 32, 16)),
    "llama_1.3b": Workload(
        "llama_1b", ("model.num_layers=24", "model.num_heads=16", "model.num_kv_heads=16"), (32, 16, 8, 4)
    ),
}


@dataclass(frozen=True)
class Variant:
    """One way to take a step."""

    name: str
    peer: Callable[[RunConfig], gpu_peers.Step]
    overrides: tuple[str, ...]


ALL_LOGITS = "engine.loss_chunk_tokens=1000000000"
DOCUMENTS = "data.document_masking=true"
COMPILED, EAGER = "engine.compile=on", "engine.compile=off"
VARIANTS = (
    Variant("ZeRO 1, compiled", gpu_peers.groundwork, (COMPILED,)),
    Variant("plain torch, compiled", gpu_peers.plain_torch, (COMPILED,)),
    Variant("compiled, chunks of 8,192", gpu_peers.plain_torch, (COMPILED, "engine.loss_chunk_tokens=8192")),
    Variant("compiled, all logits", gpu_peers.plain_torch, (COMPILED, ALL_LOGITS)),
    Variant("eager", gpu_peers.plain_torch, (EAGER,)),
    *(
        Variant(f"compiled, {kernel}", gpu_peers.plain_torch, (COMPILED, f"engine.kernel={kernel}"))
        for kernel in ("flash", "flex")
    ),
    *(
        Variant(
            f"compiled, documents, {kernel}", gpu_peers.plain_torch, (COMPILED, DOCUMENTS, f"engine.kernel={kernel}")
        )
        for kernel in ("varlen", "flex", "sdpa")
    ),
)


def time_steps(smoke: bool, model: str) -> Iterator[Row]:
    """Every variant of a model's step, at the largest micro-batch that fits."""
    measured = measured_matmul_tflops(DEVICE, torch.bfloat16, 64 if smoke else 8192)
    yield {"variant": "matrix product alone", "TFLOP/s": measured}
    micro = _largest_micro_batch(model, smoke)
    yield {"variant": f"micro-batch {micro}"}
    for variant in VARIANTS:
        config = _config(model, smoke, micro, variant.overrides)
        try:
            yield {"variant": variant.name, **_step_figures(config, variant, measured, smoke)}
        except Exception as error:  # out of memory, a kernel that is not installed: belongs into the table
            yield {"variant": variant.name, "problem": first_line(error)}
        _forget()


def _config(model: str, smoke: bool, micro: int, overrides: tuple[str, ...]) -> RunConfig:
    workload = WORKLOADS[model]
    batch = (f"batch.micro_batch_size={micro}", f"batch.global_batch_size={micro}")
    changes = [*COMMON, *workload.overrides, *batch, *overrides]
    return load_recipe(workload.recipe, [*changes, *TINY, EAGER] if smoke else changes)


def _largest_micro_batch(model: str, smoke: bool) -> int:
    for micro in (2,) if smoke else WORKLOADS[model].micro_batches:
        try:
            gpu_peers.plain_torch(_config(model, smoke, micro, (EAGER,)))()
            synchronize()
            fits = not ON_GPU or torch.cuda.max_memory_allocated() < ROOM * torch.cuda.mem_get_info()[1]
        except torch.OutOfMemoryError:
            fits = False
        _forget()
        if fits:
            return micro
    raise SystemExit(f"not even {WORKLOADS[model].micro_batches[-1]} rows fit")


def _step_figures(config: RunConfig, variant: Variant, measured: float, smoke: bool) -> Row:
    derived = derive(config, 1)
    step = variant.peer(config)
    start = time.perf_counter()
    step()
    synchronize()
    first = time.perf_counter() - start
    step()
    seconds = seconds_of(step, 1 if smoke else 8)
    tokens_per_second = derived.tokens_per_step / seconds
    tflops = tokens_per_second * derived.flops_per_token / 1e12
    sheet = find_accelerator("h200").bf16_tflops
    return {
        "tokens/s": tokens_per_second,
        "TFLOP/s": tflops,
        f"% of {sheet:g}": 100 * tflops / sheet,
        "% of measured": 100 * tflops / measured,
        "ms": 1e3 * seconds,
        "first step, s": first,
        "memory, GB": torch.cuda.max_memory_allocated() / 1e9 if ON_GPU else 0.0,
    }


def profile_steps(smoke: bool, variant_name: str = VARIANTS[0].name) -> Iterator[Row]:
    """The fifteen GPU kernels (operators, on a CPU) that take most of the 124M model's step."""
    variant = next(variant for variant in VARIANTS if variant.name == variant_name)
    micro = 2 if smoke else 64
    step = variant.peer(_config("gpt2_124m", smoke, micro, variant.overrides))
    step()
    step()
    synchronize()
    activity = torch.profiler.ProfilerActivity
    steps = 1 if smoke else 3
    with torch.profiler.profile(activities=[activity.CUDA, activity.CPU] if ON_GPU else [activity.CPU]) as profile:
        for _ in range(steps):
            step()
        synchronize()
    kind = torch.autograd.DeviceType.CUDA if ON_GPU else torch.autograd.DeviceType.CPU
    time_of: Callable[[Any], float] = lambda e: e.self_device_time_total if ON_GPU else e.self_cpu_time_total  # noqa: E731
    events = [event for event in profile.key_averages() if event.device_type == kind]
    total = sum(map(time_of, events))
    for event in sorted(events, key=time_of, reverse=True)[:15]:
        yield {
            f"{variant.name}, {micro} rows": event.key[:90],
            "%": 100 * time_of(event) / total,
            "ms a step": time_of(event) / 1e3 / steps,
            "calls a step": event.count / steps,
        }


def _forget() -> None:
    """Free the last model, and its compiled blocks: a block is compiled at most eight times in one process."""
    gc.collect()
    torch._dynamo.reset()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
