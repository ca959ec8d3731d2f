"""Every way to compute a recipe's training step that a cluster's memory allows, the fastest first."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import gcd
from typing import Any, get_args

from pydantic import ValidationError

from config import ConfigError, Derived, RunConfig, derive
from config.ds_config import DSConfig, read_ds_config
from config.ds_json import deepspeed_json, resolve_precision
from config.hardware import Cluster
from config.memory import Memory, estimate_memory
from config.parallel import ranks_per_row
from config.transformer_schema import Recompute
from launch.plan.speed import StepTime, estimate_step
from launch.plan.variants import variants

DS_CONFIG, PRECISION, MICRO_BATCH = "engine.ds_config", "engine.precision", "batch.micro_batch_size"
RECOMPUTE = "engine.activation_checkpointing"
SEQUENCE, TENSOR = "engine.sequence_parallel", "engine.tensor_parallel"
SETTINGS = (DS_CONFIG, PRECISION, RECOMPUTE, SEQUENCE, TENSOR, MICRO_BATCH)
"""What a plan chooses. None of it changes what is trained, only how."""

TIE = 1.05
"""Predictions closer than this are a tie, which the simpler option wins: less is within the error of the model."""
OFFLOAD_GAIN = 1.25
"""By how much offload has to be faster than all options without it: nothing is known of the host's speed."""


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


@dataclass(frozen=True)
class Choices:
    recipe: RunConfig
    room: Room
    written: Option | str
    """The recipe as it is, or why the cluster cannot run it."""
    fitting: list[Option]
    """The fastest first."""
    too_large: list[Option]
    """The closest first; of each kind only the smallest micro-batch that does not fit."""

    def best(self) -> Option | None:
        """The fastest, or the simplest of those that are as fast; with offload only if that is far faster."""
        if not self.fitting:
            return None
        options = self.fitting
        on_device = [option for option in options if not option.offloads]
        if on_device and on_device[0].seconds < options[0].seconds * OFFLOAD_GAIN:
            options = on_device
        return min((o for o in options if o.seconds <= options[0].seconds * TIE), key=self._complexity)

    def _complexity(self, option: Option) -> tuple[Any, ...]:
        """Parts that can go wrong, then what has to be changed in the recipe, then the memory."""
        sharing, zero = ranks_per_row(option.config.engine) > 1, option.ds_config.zero
        parts = sharing + (option.stage == 3) + ("zero_hpz_partition_size" in zero)
        return option.offloads, parts, len(option.changes(self.recipe)), option.stage, option.device_bytes


def setting(config: RunConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def choose(config: RunConfig, room: Room, kept: frozenset[str] = frozenset()) -> Choices:
    """Try all combinations, but for the settings in `kept`, which stay as the recipe has them.

    Raises ConfigError if no combination divides the batch among the cluster's ranks.
    """
    refused: list[ConfigError] = []
    options = list(explore(config, room, kept, refused))
    if not options:
        raise refused[0]
    fitting = [timed(option, room.cluster) for option in options if option.excess(room) <= 0]
    too_large = [option for option in options if option.excess(room) > 0]
    return Choices(
        config,
        room,
        _as_written(config, room),
        sorted(fitting, key=lambda option: option.seconds),
        sorted(too_large, key=lambda option: option.excess(room)),
    )


def explore(config: RunConfig, room: Room, kept: frozenset[str], refused: list[ConfigError]) -> Iterator[Option]:
    """All combinations, micro-batches only up to the first that does not fit. What cannot run is added to `refused`."""
    cluster = room.cluster
    for shared in _sharing(config, cluster, kept):
        try:
            sizes = _micro_batches(shared, cluster.gpus, kept)
        except ConfigError as error:
            refused.append(error)
            continue
        ways = product(_precisions(shared, cluster, kept), _ds_configs(shared, cluster, kept).items())
        for precision, (name, ds_config) in ways:
            for size in sizes:
                tried = with_settings(shared, {DS_CONFIG: name, PRECISION: precision, MICRO_BATCH: size})
                try:
                    option = evaluate(tried, cluster, ds_config)
                except ConfigError as error:
                    refused.append(error)
                    break
                yield option
                if option.excess(room) > 0:
                    break


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


def _as_written(config: RunConfig, room: Room) -> Option | str:
    try:
        option = evaluate(config, room.cluster)
    except ConfigError as error:
        return str(error)
    return option if option.excess(room) > 0 else timed(option, room.cluster)


def _sharing(config: RunConfig, cluster: Cluster, kept: frozenset[str]) -> Iterator[RunConfig]:
    """The recipe under each way to recompute activations and to share rows within a node that its checks accept."""
    node = min(cluster.gpus, cluster.gpus_per_node)
    sizes = [size for size in range(1, node + 1) if node % size == 0]
    ways = product(
        _or_kept(config, RECOMPUTE, get_args(Recompute), kept),
        _or_kept(config, SEQUENCE, sizes, kept),
        _or_kept(config, TENSOR, sizes, kept),
    )
    values = config.model_dump()
    for recompute, sequence, tensor in ways:
        engine = {"activation_checkpointing": recompute, "sequence_parallel": sequence, "tensor_parallel": tensor}
        try:
            yield RunConfig.model_validate(values | {"engine": values["engine"] | engine})
        except ValidationError:
            continue


def _micro_batches(config: RunConfig, ranks: int, kept: frozenset[str]) -> list[int]:
    """Divisors of the rows of one rank, or of one group that shares them, the smallest first. Raises ConfigError."""
    if MICRO_BATCH in kept:
        return [config.batch.micro_batch_size]
    readers = derive(with_settings(config, {MICRO_BATCH: 1}), ranks).data_parallel
    phases = [phase.global_batch_size for phase in config.batch.ramp]
    rows = gcd(config.batch.global_batch_size, *phases) // readers
    return [size for size in range(1, rows + 1) if rows % size == 0]


def _precisions(config: RunConfig, cluster: Cluster, kept: frozenset[str]) -> list[str]:
    """A recipe that leaves the choice open takes low-precision weights as well; one that names a precision means it."""
    asked, device = config.engine.precision, cluster.accelerator.device_info
    if asked != "auto" or PRECISION in kept or device.kind == "cpu":
        return [asked]
    return ["auto", "bf16" if device.fast_bf16 else "fp16"]


def _ds_configs(config: RunConfig, cluster: Cluster, kept: frozenset[str]) -> dict[str, DSConfig]:
    name = config.engine.ds_config
    if DS_CONFIG in kept:
        return {name: read_ds_config(name)}
    return variants(name, cluster.nodes, cluster.gpus_per_node, offload=cluster.accelerator.kind == "gpu")


def _or_kept(config: RunConfig, name: str, values: Any, kept: frozenset[str]) -> Any:
    return (setting(config, name),) if name in kept else values
