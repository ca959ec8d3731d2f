"""Every way to compute a recipe's training step that a cluster's memory allows, the fastest first."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd
from typing import Any, get_args

from pydantic import ValidationError

from config import ConfigError, RunConfig, derive
from config.contrastive_schema import micro_batch_matters
from config.ds_config import DSConfig, read_ds_config
from config.hardware import Cluster
from config.parallel import ranks_per_row
from config.transformer_schema import Recompute
from launch.plan.option import (
    DS_CONFIG,
    MICRO_BATCH,
    PRECISION,
    RECOMPUTE,
    SEQUENCE,
    SETTINGS,
    TENSOR,
    Option,
    Room,
    evaluate,
    setting,
    timed,
    with_settings,
)
from launch.plan.variants import variants

TIE = 1.05
"""Predictions closer than this are a tie, which the simpler option wins: less is within the error of the model."""
OFFLOAD_GAIN = 1.25
"""By how much offload has to be faster than all options without it: nothing is known of the host's speed."""


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


def kept_settings(config: RunConfig, overrides: tuple[str, ...]) -> frozenset[str]:
    """What stays as it is: settings of the command line, and a micro-batch whose rows are each other's negatives."""
    typed = {override.partition("=")[0].strip() for override in overrides}
    return frozenset(typed & set(SETTINGS)) | ({MICRO_BATCH} if micro_batch_matters(config.objective) else set())


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
