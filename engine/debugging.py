"""What `--debug` adds: determinism, anomaly detection, and a look at each module in the first steps."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from engine.engine import Engine


def prepare_debugging(engine: Engine, say: Callable[[str], None], steps: int) -> None:
    """Make the run deterministic, let autograd name the forward line of a NaN, and report the first `steps` steps."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only warns where a GPU has no deterministic form, as for the cumulative sum of top-p sampling.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True)
    for name, module in engine.deepspeed.module.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.Identity | nn.Dropout):
            module.register_forward_hook(_reporter(name, engine, say, steps))


def statistics(tensor: Tensor) -> str:
    """Shape, type, mean, standard deviation and largest magnitude, and how many values are not finite."""
    values = tensor.detach().float()
    finite = values[values.isfinite()]
    bad = values.numel() - finite.numel()
    numbers = f"mean {finite.mean():+.2e} std {finite.std(correction=0):.2e} max {finite.abs().max():.2e}"
    shape = "×".join(map(str, tensor.shape)) or "scalar"
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{shape:<14} {kind:<8} {numbers if finite.numel() else ''}{f'  {bad} NOT FINITE' if bad else ''}"


def _reporter(name: str, engine: Engine, say: Callable[[str], None], steps: int) -> Callable[..., None]:
    """A forward hook that reports a module's outputs, and their gradients when they arrive."""

    def report(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not module.training or engine.deepspeed.global_steps >= steps:
            return
        for tensor in _floating(outputs):
            say(f"  forward  {name:<36} {statistics(tensor)}")
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: say(f"  backward {name:<36} {statistics(gradient)}"))

    return report


def _floating(value: Any) -> list[Tensor]:
    values = value if isinstance(value, tuple | list) else [value]
    return [v for v in values if torch.is_tensor(v) and v.is_floating_point()]
