"""The DeepSpeed JSON of a run: the recipe's ds_config with its "auto" values filled from the recipe.

The recipe is the one source of truth for batch and precision; a value that contradicts it is an error.
"""

import copy
import json
from typing import Any, NamedTuple

from config.choice import Choice
from config.derive import Derived
from config.device import DeviceInfo
from config.ds_config import DSConfig, read_ds_config
from config.ds_limits import limits
from config.errors import ConfigError
from config.schema import RunConfig

DEFAULTS = {
    "steps_per_print": 10**9,
    "wall_clock_breakdown": False,
    # The optimiser is a client's: without these two DeepSpeed refuses SGD, RMSprop and Lion, and any client optimiser
    # under offload but its own DeepSpeedCPUAdam, which is a C++ build.
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
GPU_ONLY = (
    "zero_optimization.overlap_comm",
    "zero_optimization.offload_optimizer.pin_memory",
    "zero_optimization.offload_param.pin_memory",
)


class FromRecipe(NamedTuple):
    value: Any
    source: str
    """The recipe's setting and its value, in words."""


def resolve_precision(config: RunConfig, device: DeviceInfo, ds_config: DSConfig | None = None) -> Choice[str]:
    """Precision of this run on this device: fp32, bf16_autocast, bf16 or fp16, and why. The recipe's ds_config is read
    if none is given.

    Raises ConfigError if the device or the ZeRO stage cannot train in the one that is asked for.
    """
    asked = config.engine.precision
    if asked == "auto":
        if device.fast_bf16:
            return Choice("bf16_autocast", f"{device.name} computes bf16 fast")
        return Choice("fp32", f"{device.name} has no fast bf16")
    ds_config = ds_config or read_ds_config(config.engine.ds_config)
    if asked in ("bf16", "fp16") and ds_config.stage == 0:
        raise ConfigError(
            f"engine.precision {asked} does not train right under {ds_config.path}, ZeRO stage 0: DeepSpeed takes an "
            "extra optimiser step at the start, which moved the loss by 0.05 where it was measured. Set "
            "engine.precision=bf16_autocast, or engine.ds_config=zero1"
        )
    if asked == "fp16" and not device.fp16:
        raise ConfigError(f"engine.precision fp16 is not supported on {device.name}: set engine.precision=auto")
    return Choice(asked, "engine.precision")


def deepspeed_json(
    config: RunConfig,
    derived: Derived,
    precision: str,
    device: DeviceInfo,
    recipe: str = "the recipe",
    ds_config: DSConfig | None = None,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize(config=…)`.

    Args:
        precision: as resolved by `resolve_precision`.
        recipe: the recipe's file, for messages.
        ds_config: in place of the recipe's, which is read otherwise.

    Raises:
        ConfigError: the file is missing or damaged, or values in it contradict the recipe: all of them at once.
    """
    ds_config = ds_config or read_ds_config(config.engine.ds_config)
    values = copy.deepcopy(ds_config.values)
    from_recipe = _from_recipe(config, derived, precision)
    problems = [
        f'{key} {json.dumps(found)} contradicts {wanted.source} ({recipe}): write "auto"'
        for key, wanted in from_recipe.items()
        if (found := _get(values, key)) not in (None, "auto", wanted.value)
    ]
    for key, wanted in from_recipe.items():
        _put(values, key, wanted.value)
    if derived.data_parallel < derived.world_size:
        del values["train_batch_size"]  # DeepSpeed would divide it by all ranks, and finds it by itself
    for key in GPU_ONLY:
        if _get(values, key) == "auto":
            _put(values, key, device.kind == "gpu")
    if autos := _autos(values):
        problems += [f'{key} is "auto", but nothing in a recipe decides it: write a value' for key in autos]
    else:
        problems += limits(config, derived, values["zero_optimization"], device)
    if problems:
        raise ConfigError("\n".join(f"{ds_config.path}: {problem}" for problem in problems))
    if precision == "bf16" and derived.accumulation_steps > 1:
        # DeepSpeed would add up micro-batches in bf16, where the smaller of two numbers soon vanishes.
        values["data_types"] = {"grad_accum_dtype": "fp32", **values.get("data_types", {})}
    return DEFAULTS | values


def _from_recipe(config: RunConfig, derived: Derived, precision: str) -> dict[str, FromRecipe]:
    """DeepSpeed's settings that the recipe decides, by dotted name."""
    batch, clip = config.batch, config.optimizer.grad_clip
    asked = config.engine.precision
    source = f"engine.precision {asked}" + (f" (here {precision})" if asked != precision else "")
    return {
        "train_batch_size": FromRecipe(batch.global_batch_size, f"batch.global_batch_size {batch.global_batch_size}"),
        "train_micro_batch_size_per_gpu": FromRecipe(
            batch.micro_batch_size, f"batch.micro_batch_size {batch.micro_batch_size}"
        ),
        "gradient_accumulation_steps": FromRecipe(
            derived.accumulation_steps, f"the accumulation {derived.accumulation_steps} of {derived.batch_equation}"
        ),
        "gradient_clipping": FromRecipe(clip, f"optimizer.grad_clip {clip:g}"),
        "bf16.enabled": FromRecipe(precision == "bf16", source),
        "fp16.enabled": FromRecipe(precision == "fp16", source),
        "torch_autocast.enabled": FromRecipe(precision == "bf16_autocast", source),
        "torch_autocast.dtype": FromRecipe("bfloat16", source),
    }


def _get(values: Any, key: str) -> Any:
    """A value by its dotted name; a section written as "auto" makes all of its values "auto"."""
    for part in key.split("."):
        if not isinstance(values, dict):
            return values
        values = values.get(part)
    return values


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def _autos(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of what still is "auto". DeepSpeed's own use of the word in `data_types` is left alone."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _autos(value, f"{prefix}{key}.")
        elif value == "auto" and key != "keep_in_fp32_modules":
            found.append(prefix + key)
    return found
