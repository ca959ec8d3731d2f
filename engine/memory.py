"""Where a rank's memory is: an account of chosen steps by part, and what to do when there is not enough."""

import gc
import re
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import RunConfig
from config.derive import derive
from config.ds_json import deepspeed_json, resolve_precision
from config.memory import estimate_memory
from engine.device import device_info
from engine.engine import Engine
from engine.fragments import base_optimizer, observed_updates, owners
from engine.runs import Say

Storages = dict[int, int]
"""Bytes of each block of memory, by its address."""

HISTORY = 1_000_000
"""Allocations and releases that a GPU's snapshot holds at most."""


@contextmanager
def account_of_step(engine: Engine, path: Path, say: Say) -> Iterator[None]:
    """Write what holds memory at the end of the forward pass and before the update; beside it, on a GPU, a snapshot of
    every allocation."""
    moments: dict[str, dict[str, int]] = {}
    saved: Storages = {}

    def keep(tensor: Tensor) -> Tensor:
        saved.update(storages([tensor]))
        return tensor if tensor.is_leaf else tensor.detach()  # the tensor itself would refer to its own graph

    def after_forward(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module.training:
            moments["after forward"] = account(engine, saved)

    def before_update(touched: Any, step: Callable[[], None]) -> None:
        if "before update" not in moments:  # ZeRO 3 updates one group of parameters after the other
            moments["before update"] = account(engine, {})
        step()

    hook = engine.deepspeed.module.register_forward_hook(after_forward)
    on_gpu = engine.world.device.type == "cuda"
    if on_gpu:
        torch.cuda.memory._record_memory_history(max_entries=HISTORY)
    try:
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            observed_updates(engine.deepspeed, [], before_update),
        ):
            yield
        if on_gpu:
            torch.cuda.memory._dump_snapshot(str(path.with_suffix(".pickle")))
    finally:
        hook.remove()
        if on_gpu:
            torch.cuda.memory._record_memory_history(enabled=None)
    text = _table(moments, _peak(engine.world.device))
    path.write_text(text, encoding="utf-8")
    say(f"memory: {path}\n{text.rstrip()}")


def account(engine: Engine, saved: Storages) -> dict[str, int]:
    """Bytes of tensors by part. `saved` are those that the backward pass will need; some may be counted elsewhere."""
    parts = model_states(engine)
    known: Storages = {}
    for part in (*parts.values(), saved):
        known |= part
    sizes = {name: sum(part.values()) for name, part in parts.items()}
    sizes["activations"] = sum(known.values()) - sum(sizes.values())
    if engine.world.device.type == "cuda":
        everything = torch.cuda.memory_allocated(engine.world.device)
    else:
        real = (
            o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter)
        )  # the compiler keeps tensors without data
        everything = sum((known | storages(real)).values())
    return {**sizes, "other tensors": everything - sum(known.values()), "all tensors": everything}


def model_states(engine: Engine) -> dict[str, Storages]:
    """Blocks of weights, gradients and optimiser, each counted once."""
    parameters = list(engine.deepspeed.module.parameters())
    masters = owners(engine.deepspeed)
    states = (value for state in base_optimizer(engine.deepspeed).state.values() for value in state.values())
    found: dict[str, Iterable[Any]] = {
        "weights": [*parameters, *(getattr(p, "ds_tensor", None) for p in parameters)],
        "gradients": [p.grad for p in (*parameters, *masters)],
        "optimiser": [*masters, *states],
    }
    parts: dict[str, Storages] = {}
    taken: set[int] = set()
    for name, tensors in found.items():
        parts[name] = {place: size for place, size in storages(tensors).items() if place not in taken}
        taken |= parts[name].keys()
    return parts


def storages(tensors: Iterable[Any]) -> Storages:
    """The blocks behind tensors; what is no tensor, or holds no data, is left out."""
    found = {}
    for tensor in tensors:
        if torch.is_tensor(tensor) and tensor.layout == torch.strided and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            if storage.data_ptr():
                found[storage.data_ptr()] = storage.nbytes()
    return found


def explain_out_of_memory(error: RuntimeError, engine: Engine, step: int, folder: Path) -> str:
    """What was asked for, what holds the memory, and which settings would save how much of it."""
    device = engine.world.device
    asked = re.search(r"allocate ([\d.,]+) (\w+)", str(error), re.IGNORECASE)
    amount = "more" if not asked else _size(int(asked[1])) if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
    sizes = {name: sum(part.values()) for name, part in model_states(engine).items()}
    lines = [f"rank {engine.world.rank} ran out of memory at step {step:,}: it asked for {amount}"]
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        rest, name = torch.cuda.memory_allocated(device) - sum(sizes.values()), "activations, buffers and temporaries"
        folder.mkdir(exist_ok=True)
        snapshot = folder / f"out_of_memory_step_{step:08d}.rank_{engine.world.rank}.pickle"
        torch.cuda.memory._dump_snapshot(str(snapshot))
        lines.append(
            f"{_size(free)} of the device's {_size(total)} are free; snapshot for pytorch.org/memory_viz: {snapshot}"
        )
    else:
        rest, name = _peak(device) - sum(sizes.values()), "everything else (activations, buffers, libraries)"
    sizes[name] = max(rest, 0)
    held = ", ".join(f"{name} {_size(size)}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
    lines.append(f"held: {held}")
    savings = "; ".join(f"{change} saves about {_size(saved)}" for change, saved in possible_savings(engine))
    return "\n  ".join([*lines, f"fixes: {savings or 'a smaller model, shorter rows or more ranks'}"])


def possible_savings(engine: Engine) -> list[tuple[str, int]]:
    """Changes of the recipe that leave the training as it is, and the bytes of device memory each saves by formula."""
    config = engine.config
    size, recompute = config.batch.micro_batch_size, config.engine.activation_checkpointing
    changes: list[tuple[str, str, Any]] = []
    if size > 1:
        smaller = max(n for n in range(1, size // 2 + 1) if size % n == 0)
        changes.append(("batch", "micro_batch_size", smaller))
    if recompute != "full":
        changes.append(("engine", "activation_checkpointing", "full"))
    stages = ["zero1", "zero2", "zero3"]
    if engine.world.device.type != "cpu":
        stages += ["zero2_offload", "zero3_offload"]
    changes += [("engine", "ds_config", name) for name in stages]
    before = _device_bytes(config, engine)
    savings = []
    for section, setting, value in changes:
        changed = getattr(config, section).model_copy(update={setting: value})
        saved = before - _device_bytes(config.model_copy(update={section: changed}), engine)
        if saved > 0.01 * before:
            savings.append((f"{section}.{setting}={value}", saved))
    return sorted(savings, key=lambda change: -change[1])


def _device_bytes(config: RunConfig, engine: Engine) -> int:
    info, derived = device_info(engine.world.device), derive(config, engine.world.size)
    ds_json = deepspeed_json(config, derived, resolve_precision(config, info).value, info)
    return sum(estimate_memory(config, derived, ds_json).device.values())


def _table(moments: dict[str, dict[str, int]], peak: int) -> str:
    lines = [f"{'MB':<14}" + "".join(f"{moment:>16}" for moment in moments)]
    names = next(iter(moments.values()))
    lines += [f"{name:<14}" + "".join(f"{sizes[name] / 1e6:>16,.2f}" for sizes in moments.values()) for name in names]
    return "\n".join([*lines, f"peak {peak / 1e6:,.0f} MB", ""])


def _peak(device: torch.device) -> int:
    """Most bytes that tensors held on a GPU, and that the whole process held on a CPU, since the start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
