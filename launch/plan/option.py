"""One way to compute a recipe's training step on a cluster: what it needs and how long it takes."""

from dataclasses import dataclass, replace
from typing import Any

from config import ConfigError, Derived, RunConfig, derive
from config.ds_config import DSConfig, read_ds_config
from config.ds_json import deepspeed_json, resolve_precision
from config.hardware import Cluster
from config.memory import Memory, estimate_memory
from launch.plan.speed import StepTime, estimate_step

DS_CONFIG, PRECISION, MICRO_BATCH = "engine.ds_config", "engine.precision", "batch.micro_batch_size"
RECOMPUTE = "engine.activation_checkpointing"
SEQUENCE, TENSOR = "engine.sequence_parallel", "engine.tensor_parallel"
SETTINGS = (DS_CONFIG, PRECISION, RECOMPUTE, SEQUENCE, TENSOR, MICRO_BATCH)
"""What a plan chooses. None of it changes what is trained, only how."""


@dataclass(frozen=True)
class Room:
    """Where an option has to fit."""

    cluster: Cluster
    host_gb: float
    """Memory of one node's host, which offload may fill."""

    @property
    def device_bytes(self) -> float:
        return self.cluster.accelerator.memory_gb * 1e9

    @property
    def host_bytes(self) -> float:
        """Of one rank."""
        return self.host_gb * 1e9 / min(self.cluster.gpus, self.cluster.gpus_per_node)


@dataclass(frozen=True)
class Option:
    """One way to compute the step."""

    config: RunConfig
    ds_config: DSConfig
    derived: Derived
    ds_json: dict[str, Any]
    precision: str
    """As resolved for the device."""
    memory: Memory
    step: StepTime | None = None
    """Not known of what does not fit."""

    @property
    def stage(self) -> int:
        return self.ds_config.stage

    @property
    def offloads(self) -> bool:
        return any(self.ds_config.offload_device(what) != "none" for what in ("optimizer", "param"))

    @property
    def device_bytes(self) -> int:
        return sum(self.memory.device.values())

    @property
    def host_bytes(self) -> int:
        return sum(self.memory.host.values())

    @property
    def seconds(self) -> float:
        assert self.step is not None, "only options that fit are timed"
        return self.step.seconds

    def excess(self, room: Room) -> float:
        """Bytes of a rank that do not fit; nothing or less if all do."""
        return max(self.device_bytes - room.device_bytes, self.host_bytes - room.host_bytes)

    def settings(self) -> dict[str, Any]:
        return {name: setting(self.config, name) for name in SETTINGS}

    def changes(self, recipe: RunConfig) -> dict[str, Any]:
        """Settings that the recipe has otherwise."""
        return {name: value for name, value in self.settings().items() if value != setting(recipe, name)}


def evaluate(config: RunConfig, cluster: Cluster, ds_config: DSConfig | None = None) -> Option:
    """What a recipe needs on a cluster. Raises ConfigError if it cannot run there."""
    device = cluster.accelerator.device_info
    ds_config = ds_config or read_ds_config(config.engine.ds_config)
    derived = derive(config, cluster.gpus)
    precision = resolve_precision(config, device, ds_config).value
    if precision == "bf16" and not device.fast_bf16 and device.kind == "gpu":
        raise ConfigError(
            f"engine.precision bf16 is not supported on {device.name}, whose matrix products know fp16 but not bf16: set "
            "engine.precision to fp16 or auto"
        )
    ds_json = deepspeed_json(config, derived, precision, device, ds_config=ds_config)
    memory = estimate_memory(config, derived, ds_json, device=device)
    return Option(config, ds_config, derived, ds_json, precision, memory)


def timed(option: Option, cluster: Cluster) -> Option:
    return replace(option, step=estimate_step(option.config, option.derived, option.ds_json, cluster))


def with_settings(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy with settings that need no check across sections."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    return config.model_copy(update={s: getattr(config, s).model_copy(update=new) for s, new in sections.items()})


def setting(config: RunConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)
