"""Memory of one rank at the fullest moment of a step, part by part, by formula.

Model states are in config/zero_memory.py, activations in config/activations.py. `python -m benchmarks.memory` measures
how far the sum is from real runs (docs/benchmarks.md).
"""

from dataclasses import dataclass
from typing import Any

from config.activations import Activations
from config.block_memory import FP32, Arithmetic
from config.compiling import choose_compile
from config.derive import Derived
from config.device import DeviceInfo
from config.schema import RunConfig
from config.zero_memory import Parts, States

CUDA_CONTEXT, NCCL = 500_000_000, 400_000_000
"""What a GPU holds for the driver and kernels, and for NCCL where there are several ranks."""
CPU_PROCESS = 360_000_000
"""A process that has imported torch and DeepSpeed."""
FRAGMENTATION = {"gpu": (0.0, 0.05), "cpu": (0.2, 0.35)}
"""What an allocator holds beyond the tensors, as shares of those that stay and of those that come and go. On a CPU the
median of benchmarks/memory.py's runs, which spread widely: glibc cuts one heap for all sizes (engine/allocator.py)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by part."""

    device: Parts
    """At the fullest moment of a step; their sum is the peak. On a CPU all of the process, offload included."""
    host: Parts
    """What offload keeps in a GPU's host; empty without it."""
    moment: str
    """When the step is fullest."""


def estimate_memory(
    config: RunConfig,
    derived: Derived,
    ds_json: dict[str, Any],
    *,
    device: DeviceInfo | None = None,
    compiled: bool | None = None,
) -> Memory:
    """Peak of one rank.

    Args:
        device: where the run would be; without it, a GPU.
        compiled: whether blocks are compiled; without it, as `engine.compile` says, its "auto" being what a GPU does.
    """
    kind = "gpu" if device is None else device.kind
    states = States(config, derived, ds_json)
    if compiled is None:
        compiled = _compiles(config, derived, states.stage, kind)
    product = 2 if states.computes_low else FP32
    activations = Activations(config, Arithmetic(product, states.number, kind == "gpu", compiled))
    resident, host = _resident(states, kind)
    passing = _passing(states, activations, kind)
    moment = max(passing, key=lambda name: sum(passing[name].values()))
    staying, going = FRAGMENTATION[kind]
    margin = int(staying * sum(resident.values()) + going * sum(passing[moment].values()))
    parts = _add(resident, passing[moment]) | {"fragmentation": margin} | _process(derived, kind)
    return Memory({name: size for name, size in parts.items() if size}, host, moment)


def _compiles(config: RunConfig, derived: Derived, stage: int, kind: str) -> bool:
    """As runs choose on a GPU. On a CPU their choice depends on the run's length, and off needs more."""
    if kind == "cpu":
        return config.engine.compile == "on"
    gpu = DeviceInfo("gpu", "a GPU", fast_bf16=True, fp16=True)
    return choose_compile(config, derived, "bf16_autocast", gpu, stage).value


def _resident(states: States, kind: str) -> tuple[Parts, Parts]:
    """What stays between steps, on the device and in the host's memory."""
    parts = {
        "weights": states.weights(),
        "weights within a node (hpZ)": states.secondary_weights(),
        "gradients": states.kept_gradients(),
        "optimiser": states.optimizer(),
        "rank allocation (AdaLoRA)": states.rank_allocation(),
    }
    host = states.host()
    parts |= dict.fromkeys(host.keys() & parts.keys(), 0)
    if states.stage == 3:
        parts["communication buffers"] = states.buffers(kind)
    return (_add(parts, host), {}) if kind == "cpu" else (parts, host)


def _passing(states: States, activations: Activations, kind: str) -> dict[str, Parts]:
    """What comes and goes, at the four moments of which one is the fullest."""
    gradients, kept, head = states.gradients(), activations.kept(), activations.head_kept()
    buffers = states.buffers(kind) if states.stage in (1, 2) else 0
    copies = states.weight_copies()
    gathered = {"gathered weights": states.gathered()}
    return {
        "while the loss is computed": {
            "gradients": gradients["forward"],
            "communication buffers": buffers if states.stage == 1 and states.accumulates else 0,
            "bf16 copies of weights": copies,
            "activations": kept,
            "logits and head": head + activations.head_working(),
        }
        | gathered,
        "at the start of the backward pass": {
            "gradients": gradients["forward"],
            "communication buffers": buffers,
            "bf16 copies of weights": copies,
            "activations": kept + activations.recomputed() + activations.gradients(),
            "logits and head": head,
        }
        | gathered,
        "at the end of the backward pass": {
            "gradients": gradients["backward"],
            "communication buffers": buffers,
            "activations": activations.recomputed() + activations.gradients(),
        }
        | gathered,
        "in the optimiser's step": {"gradients": gradients["step"], "copies for the step": states.step_copies()},
    }


def _process(derived: Derived, kind: str) -> Parts:
    if kind == "cpu":
        return {"process": CPU_PROCESS}
    return {"CUDA and NCCL": CUDA_CONTEXT + (NCCL if derived.world_size > 1 else 0)}


def _add(one: Parts, other: Parts) -> Parts:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one | other}
