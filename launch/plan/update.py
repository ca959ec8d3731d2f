"""Seconds of the optimiser's update of one rank, of what its products cost, and of what is kept in host memory."""

from typing import Any

from config.block_memory import FP32
from config.derive import Derived
from config.hardware import Accelerator
from config.schema import RunConfig
from config.zero_memory import moments
from launch.plan.device import Device
from launch.plan.traffic import rank_parameters

HOST_BANDWIDTH = 30e9
"""Bytes per second of host memory that each device's process gets in a node whose devices all update at once."""
NEWTON_SCHULZ_STEPS = 5


def update_seconds(config: RunConfig, derived: Derived, ds_json: dict[str, Any], device: Device) -> tuple[float, float]:
    """On the device, and on the host if the optimiser's states are kept there.

    The rule reads weight, gradient and moments and writes all but the gradient, in fp32. ZeRO copies gradients into fp32
    shards first, takes their norm and scales them, and writes low-precision weights."""
    stage = ds_json["zero_optimization"]["stage"]
    numbers = rank_parameters(derived.parameters, config.engine.tensor_parallel)
    shard = numbers / (derived.world_size / config.engine.tensor_parallel if stage > 0 else 1)
    kept = moments(config.optimizer, derived.parameters) / derived.parameters.total
    rule = shard * FP32 * (3 + 2 * kept)
    around = shard * FP32 * (5 if stage > 0 else 3)
    if offloaded(ds_json, "optimizer"):
        return device.memory_seconds(shard * 2), (rule + around) / HOST_BANDWIDTH
    return device.memory_seconds(rule + around, 40) + _orthogonalising(config, derived, stage, device), 0.0


def _orthogonalising(config: RunConfig, derived: Derived, stage: int, device: Device) -> float:
    """Muon's Newton-Schulz steps, each X X^T of an m x n matrix, its square and their product with X: 4 m²n + 2 m³ FLOPs
    with m the smaller side. Whole matrices are spread over the ranks; at stage 0 each rank does them all."""
    if config.optimizer.name != "muon":
        return 0.0
    ranks = derived.world_size if stage > 0 else 1
    costs = [_newton_schulz(device, *sorted(shape)) for shape in _matrices(config)]
    layers = config.model.num_layers
    return max(sum(costs) * layers / ranks, max(costs))


def _newton_schulz(device: Device, small: int, large: int) -> float:
    products = [(small, small, large), (small, small, small), (small, large, small)]
    return NEWTON_SCHULZ_STEPS * sum(device.matmul_seconds(*shape, size=2) for shape in products)


def _matrices(config: RunConfig) -> list[tuple[int, int]]:
    """Shapes of one block's matrices."""
    model = config.model
    queries, keys = (model.head_width * heads for heads in (model.num_heads, model.kv_heads))
    shapes = [(queries, model.hidden_size)] * 2 + [(keys, model.hidden_size)] * 2
    return shapes + [(model.ffn_width, model.hidden_size)] * (2 + model.gated)


def offloaded(ds_json: dict[str, Any], what: str) -> bool:
    """Whether `optimizer` or `param` is kept in host memory."""
    return (ds_json["zero_optimization"].get(f"offload_{what}") or {}).get("device", "none") == "cpu"


def offload_seconds(config: RunConfig, derived: Derived, ds_json: dict[str, Any], accelerator: Accelerator) -> float:
    """Copies between device and host: gradients' shards out after each micro-batch and updated weights in; parameters that
    live on the host come in before each forward and backward pass."""
    numbers = rank_parameters(derived.parameters, config.engine.tensor_parallel)
    low = ds_json["bf16"]["enabled"] or ds_json["fp16"]["enabled"]
    shard = numbers * config.engine.tensor_parallel / derived.world_size * (2 if low else FP32)
    micro, stage = derived.accumulation_steps, ds_json["zero_optimization"]["stage"]
    size = 0.0
    if offloaded(ds_json, "optimizer"):
        size += shard * ((micro if stage > 1 else 1) + 1)
    if offloaded(ds_json, "param"):
        size += shard * 2 * micro
    return size / (1e9 * accelerator.host_gb)
