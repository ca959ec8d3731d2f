"""Seconds of the optimiser's update of one rank, of what its products cost, and of what is kept in host memory."""

import math

from config.block_memory import FP32
from config.hardware import Accelerator
from config.schema import RunConfig
from config.zero_memory import States, kept_moments
from launch.plan.device import Device

HOST_BANDWIDTH = 30e9
"""Bytes per second of host memory that each device's process gets in a node whose devices all update at once."""
NEWTON_SCHULZ_STEPS = 5


def update_seconds(states: States, device: Device) -> float:
    """Of the device, or of the host if the optimiser's states are kept there: it waits.

    The rule reads weight, gradient and moments and writes all but the gradient, in fp32. ZeRO copies gradients into fp32
    shards first, takes their norm and scales them, and writes low-precision weights."""
    shard = states.trained_share if states.stage else states.trained
    rule = shard * FP32 * (3 + 2 * kept_moments(states.config, states.derived) / states.derived.trained)
    around = shard * FP32 * (5 if states.stage else 3)
    if states.offloads("optimizer"):
        return (rule + around) / HOST_BANDWIDTH + _orthogonalising(states, device)
    return device.memory_seconds(rule + around, kernels=40) + _orthogonalising(states, device)


def _orthogonalising(states: States, device: Device) -> float:
    """Muon's Newton-Schulz steps, each X X^T of an m x n matrix, its square and their product with X: 4 m²n + 2 m³ FLOPs
    with m the smaller side. Whole matrices are spread over the ranks; at stage 0 each rank does them all."""
    if states.config.optimizer.name != "muon":
        return 0.0
    ranks, counts = states.derived.world_size if states.stage else 1, states.derived.parameters
    matrices = _matrices(states.config)
    blocks = (counts.attention + counts.ffn) / sum(map(math.prod, matrices))
    costs = [_newton_schulz(device, *sorted(shape)) for shape in matrices]
    return max(sum(costs) * blocks / ranks, max(costs))


def _newton_schulz(device: Device, small: int, large: int) -> float:
    products = [(small, small, large), (small, small, small), (small, large, small)]
    return NEWTON_SCHULZ_STEPS * sum(device.matmul_seconds(*shape, size=2) for shape in products)


def _matrices(config: RunConfig) -> list[tuple[int, int]]:
    """Shapes of one block's matrices."""
    model = config.model
    queries, keys = (model.head_width * heads for heads in (model.num_heads, model.kv_heads))
    shapes = [(queries, model.hidden_size)] * 2 + [(keys, model.hidden_size)] * 2
    return shapes + [(model.ffn_width, model.hidden_size)] * (2 + model.gated)


def offload_seconds(states: States, accelerator: Accelerator) -> float:
    """Copies between device and host: gradients' shards out after each micro-batch and updated weights in; parameters that
    live on the host come in before each forward and backward pass."""
    micro, size = states.derived.accumulation_steps, 0
    if states.offloads("optimizer"):
        size += states.number * states.trained_share * ((micro if states.stage > 1 else 1) + 1)
    if states.offloads("param"):
        size += states.number * states.share * 2 * micro
    return size / (1e9 * accelerator.host_gb)
