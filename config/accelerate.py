"""What `accelerate launch` exports from its YAML or its flags must not contradict the recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from config.derive import derive
from config.ds_config import find_ds_config, read_ds_config
from config.errors import ConfigError
from config.schema import RunConfig

PRECISIONS = {"no": ("fp32",), "bf16": ("bf16_autocast", "bf16"), "fp16": ("fp16",)}
"""Accelerate's mixed_precision and the recipe's precisions that it may mean."""
FP8 = (
    "mixed_precision fp8: Accelerate's FP8 replaces layers in Accelerator.prepare(), which this training does not call, "
    "so nothing would run in FP8: leave it out, or set bf16"
)


class Shared(NamedTuple):
    """A setting that both sides have."""

    theirs: str
    """Accelerate's name of it."""
    value: str | None
    """What Accelerate exports; None if it says nothing."""
    agrees: bool
    ours: str
    """The recipe's setting and value."""
    fix: str
    """What to set in the recipe for Accelerate's value."""

    def __str__(self) -> str:
        return f"{self.theirs} {self.value} contradicts {self.ours}: leave it out there, or set {self.fix}"


def check_accelerate(config: RunConfig, environ: Mapping[str, str]) -> None:
    """Raises ConfigError with every contradiction. Without Accelerate there is nothing to compare."""
    if "ACCELERATE_MIXED_PRECISION" not in environ:  # every kind of `accelerate launch` exports it
        return
    problems = [
        f"{name} is chosen, but DeepSpeed trains the model: set distributed_type: DEEPSPEED"
        for name in ("FSDP", "MEGATRON_LM")
        if environ.get(f"ACCELERATE_USE_{name}") == "true"
    ]
    if environ["ACCELERATE_MIXED_PRECISION"] == "fp8":
        problems.append(FP8)
    shared = [_ds_config_file(config, environ), _precision(config, environ), *_numbers(config, environ)]
    problems += [str(setting) for setting in shared if setting.value is not None and not setting.agrees]
    if problems:
        raise ConfigError("\n".join(f"accelerate launch (its config file or flags): {p}" for p in problems))


def _ds_config_file(config: RunConfig, environ: Mapping[str, str]) -> Shared:
    named = environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    ours = find_ds_config(config.engine.ds_config)
    return Shared(
        "deepspeed_config_file",
        named,
        named is not None and Path(named).resolve() == ours.resolve(),
        f"engine.ds_config {config.engine.ds_config}",
        f"engine.ds_config={named}",
    )


def _precision(config: RunConfig, environ: Mapping[str, str]) -> Shared:
    """`no` is exported even if nobody wrote it; DS_FIELDS tells whether the config file did. fp8 is answered apart."""
    precision, asked = environ["ACCELERATE_MIXED_PRECISION"], config.engine.precision
    written = precision != "no" or "mixed_precision" in environ.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")
    possible = PRECISIONS.get(precision, (asked,))
    return Shared(
        "mixed_precision",
        precision if written else None,
        asked in possible,
        f"engine.precision {asked}",
        f"engine.precision={possible[0]}",
    )


def _numbers(config: RunConfig, environ: Mapping[str, str]) -> list[Shared]:
    """Stage, offload, accumulation and clipping, which Accelerate's YAML can name one by one."""
    ds_config = read_ds_config(config.engine.ds_config)

    def shared(name: str, variable: str, wanted: Any, ours: str, fix: str) -> Shared:
        exported = environ.get(f"ACCELERATE_{variable}")
        value = None if exported == "auto" else exported
        return Shared(name, value, value is not None and _same(value, wanted), ours, fix)

    settings = [
        shared("zero_stage", "DEEPSPEED_ZERO_STAGE", ds_config.stage, f"stage {ds_config.stage} of {ds_config.path}",
               "engine.ds_config to a file of that stage"),
        shared("gradient_clipping", "GRADIENT_CLIPPING", config.optimizer.grad_clip,
               f"optimizer.grad_clip {config.optimizer.grad_clip:g}", "optimizer.grad_clip to it"),
    ]  # fmt: skip
    for what in ("optimizer", "param"):
        ours = ds_config.offload_device(what)
        settings.append(
            shared(f"offload_{what}_device", f"DEEPSPEED_OFFLOAD_{what.upper()}_DEVICE", ours,
                   f"offload_{what} {ours} of {ds_config.path}", "engine.ds_config to a file that says the same")
        )  # fmt: skip
    if "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in environ:
        derived = derive(config, int(environ.get("WORLD_SIZE", 1)))
        settings.append(
            shared("gradient_accumulation_steps", "GRADIENT_ACCUMULATION_STEPS", derived.accumulation_steps,
                   derived.batch_equation, "batch.micro_batch_size so that it comes out")
        )  # fmt: skip
    return settings


def _same(exported: str, wanted: Any) -> bool:
    try:
        return float(exported) == float(wanted)
    except ValueError:
        return exported == str(wanted)
