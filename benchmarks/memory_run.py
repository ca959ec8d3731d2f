"""One rank of a short run whose memory is measured, as a process that prints what it found as JSON (see memory.py).

The real engine takes a few steps; hooks mark where the forward pass and the optimiser's step begin and end. On a GPU the
allocator counts for itself. On a CPU the process's peak is the kernel's figure, and with --count torch's profiler
records every block that the allocator hands out or takes back, from before the model is built; its records take
memory, too, so the process's peak is that of a run without it.
"""

import argparse
import gc
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import RunConfig, load_recipe
from config.objective_schema import MaskedLM, row_shape
from config.parallel import data_rank_and_size
from data.batch import IGNORE, Batch
from engine.build import build_engine
from engine.device import device_info
from engine.dist import World, connect
from engine.engine import Engine

STEPS = 2
"""The second one finds gradients, moments and buffers as every later one does."""
Phase = tuple[str, int, int]
"""Name of a part of a run, bytes of tensors at most during it and at its end."""


def micro_batches(config: RunConfig, world: World) -> list[Batch]:
    """Random tokens in the shape of the recipe's objective, for one step of this rank."""
    rank, readers = data_rank_and_size(config.engine, world.rank, world.size)
    generator = np.random.default_rng(rank)
    shape, rows = row_shape(config.objective, config.data.row_length), config.batch.micro_batch_size

    def tokens(length: int) -> Any:
        return generator.integers(0, config.model.vocab_size, (rows, length))

    def batch() -> Batch:
        labels_BT = tokens(shape.decoder or shape.length)
        if shape.decoder:
            return Batch(tokens(shape.decoder), labels_BT, source_BS=tokens(shape.length))
        if isinstance(config.objective, MaskedLM):
            labels_BT[generator.random(labels_BT.shape) >= config.objective.mask_rate] = IGNORE
            return Batch(tokens(shape.length), labels_BT, parts=("mlm",))
        return Batch(tokens(shape.length), labels_BT, max_seqlen=shape.length)

    return [batch() for _ in range(config.batch.global_batch_size // (rows * readers))]


class Counter:
    """Bytes of tensors in each phase of a run: of a CPU from the profiler's records, of a GPU from its allocator."""

    def __init__(self, device: torch.device, counting: bool):
        self.on_gpu = device.type == "cuda"
        self.phases: list[Phase] = []
        self.current = "start"
        activities = [torch.profiler.ProfilerActivity.CPU]
        profiled = counting and not self.on_gpu
        self.profile: Any = (
            torch.profiler.profile(activities=activities, profile_memory=True) if profiled else nullcontext()
        )

    def mark(self, phase: str) -> None:
        """A phase begins."""
        if self.on_gpu:
            self._close()
            self.current = phase
            torch.cuda.reset_peak_memory_stats()
        else:
            with torch.profiler.record_function(f"phase {phase}"):
                pass

    def _close(self) -> None:
        self.phases.append((self.current, torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()))

    def finish(self) -> list[Phase]:
        if self.on_gpu:
            self._close()
        elif isinstance(self.profile, torch.profiler.profile):
            self.phases = list(_replay(self.profile))
        return self.phases


def _replay(profile: torch.profiler.profile) -> Iterator[Phase]:
    recorded: Any = profile.profiler
    events = recorded.kineto_results.events()
    records = [(e.start_ns(), e.name(), e.nbytes()) for e in events if e.name().startswith(("[memory]", "phase "))]
    phase, peak, now = "start", 0, 0
    for _, name, size in sorted(records, key=lambda record: record[0]):
        if name == "[memory]":
            now += size
            peak = max(peak, now)
        else:
            yield phase, peak, now
            phase, peak = name.removeprefix("phase "), now
    yield phase, peak, now


def mark_phases(engine: Engine, mark: Callable[[str], None]) -> None:
    model, optimizer = engine.deepspeed.module, engine.deepspeed.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    model.register_forward_pre_hook(lambda *_: mark("forward"))
    model.register_forward_hook(lambda *_: mark("backward"))
    inner.register_step_pre_hook(lambda *_: mark("step"))


def kept_states(engine: Engine) -> dict[str, int]:
    """Bytes of distinct storages of the weights, and of the optimiser with its fp32 copy of the weights."""
    ds = engine.deepspeed
    inner = getattr(ds.optimizer, "optimizer", ds.optimizer)
    weights = _storages(t for p in ds.module.parameters() for t in (p.data, getattr(p, "ds_tensor", None)))
    moments = _storages(t for state in inner.state.values() for t in state.values())
    masters = getattr(ds.optimizer, "fp32_partitioned_groups_flat", None) or [
        p for group in inner.param_groups for p in group["params"]
    ]
    optimizer = moments | {key: size for key, size in _storages(iter(masters)).items() if key not in weights}
    return {"weights": sum(weights.values()), "optimiser": sum(optimizer.values())}


def _storages(tensors: Iterator[Any]) -> dict[int, int]:
    found = {}
    for tensor in tensors:
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type != "meta":
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def resident(field: str) -> int:
    """VmRSS or its highest, VmHWM, of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(config: RunConfig, counting: bool) -> dict[str, Any]:
    world = connect(60)
    counter = Counter(world.device, counting)
    with counter.profile:
        engine, setup = build_engine(config, world)
        mark_phases(engine, counter.mark)
        batches = micro_batches(config, world)
        for step in range(STEPS):
            engine.step(step, batches)
        peak = resident("VmHWM")
    if counter.on_gpu:
        peak = torch.cuda.max_memory_reserved()
    phases = counter.finish()
    return {
        "alive": sum(_storages(iter(gc.get_objects())).values()),
        "rank": world.rank,
        "ranks": world.size,
        "kind": device_info(world.device).kind,
        "precision": setup.precision.value,
        "compiled": setup.compile.value,
        "process": peak,
        "phases": phases,
        **kept_states(engine),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--count", action="store_true", help="count tensors: the process itself becomes larger")
    options = parser.parse_args()
    found = measure(load_recipe(options.recipe, options.overrides), options.count)
    if found["rank"] == 0:
        options.out.write_text(json.dumps(found))
    os._exit(0)  # as train.py does: an orderly exit may abort in a process group's thread


if __name__ == "__main__":
    main()
