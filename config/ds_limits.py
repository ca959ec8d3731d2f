"""Settings of a ds_config that do not work with the recipe, the ranks or the device, found by experiment."""

from typing import Any

from config.derive import Derived
from config.device import DeviceInfo
from config.schema import RunConfig

QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights")


def limits(config: RunConfig, derived: Derived, zero: dict[str, Any], device: DeviceInfo) -> list[str]:
    """What is wrong with `zero_optimization`, one message each."""
    problems = []
    quantized = [f"zero_optimization.{name}" for name in QUANTIZED if zero.get(name)]
    size = int(zero.get("zero_hpz_partition_size") or 1)
    plus = quantized + ["zero_optimization.zero_hpz_partition_size"] * (size > 1)
    if plus and zero["stage"] < 3:
        problems.append(f"{plus[0]} needs stage 3, not stage {zero['stage']}: it is about sharded weights")
    if quantized and device.kind == "cpu":
        problems.append(f"{quantized[0]} needs a GPU, not {device.name}: DeepSpeed quantises in CUDA kernels alone")
    if plus and config.engine.tensor_parallel > 1:
        problems.append(
            f"{plus[0]} does not work with engine.tensor_parallel {config.engine.tensor_parallel}: its groups of ranks "
            "take no account of slices; set it to 1, or engine.ds_config=zero3"
        )
    if derived.world_size % size:
        problems.append(
            f"zero_optimization.zero_hpz_partition_size {size} does not divide {derived.world_size} ranks: set it to the "
            "GPUs of one node, or engine.ds_config=zero3"
        )
    return problems
