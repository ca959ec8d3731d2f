"""Where ZeRO keeps each parameter: the one description of its shards that saving and loading need.

A fragment is a run of elements of one flattened parameter that this rank owns, together with the flat fp32 tensor
the optimiser steps it in. Saved as fragments, a training state fits any number of ranks and any ZeRO stage.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    name: str
    """Parameter's name in the model."""
    start: int
    """First element, within the flattened parameter."""
    numel: int
    owner: Tensor
    """Tensor the optimiser steps; the key into its state."""
    offset: int
    """First element, within the flattened owner."""

    def view(self, flat: Tensor) -> Tensor:
        """The fragment's part of `flat`, a tensor laid out like `owner`."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimiser under DeepSpeed's wrapper."""
    return engine.basic_optimizer


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Full shape of every parameter, sharded or not."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def replicated(engine: Any) -> bool:
    """Whether every rank owns everything (stage 0), so that saving may share the work."""
    return engine.zero_optimization_stage() == 0


def fragments(engine: Any) -> list[Fragment]:
    """All fragments this rank owns. A tied parameter appears once."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        return [Fragment(name, 0, p.numel(), p, 0) for name, p in engine.module.named_parameters()]
    return list(_partitioned(engine.optimizer) if stage == 3 else _flattened(engine.optimizer))


def owners(engine: Any) -> list[Tensor]:
    """The flat tensors the optimiser steps, in the same order on every rank; at stage 0 the parameters themselves."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return list(engine.module.parameters())
    return list(zero.fp32_partitioned_groups_flat) if stage == 3 else _flats(zero)[1]


def _flats(zero: Any) -> tuple[list[list[Any]], list[Tensor]]:
    """Stages 1 and 2: the parameters of each group, and this rank's flat fp32 partition of it."""
    if hasattr(zero, "bf16_groups"):  # BF16_Optimizer: stage 1 with gradients accumulated in fp32
        return zero.bf16_groups, zero.fp32_groups_flat_partition
    return zero.bit16_groups, zero.single_partition_of_fp32_groups


def _flattened(zero: Any) -> Iterator[Fragment]:
    """Stages 1 and 2: each group is one flat tensor, cut into equal partitions across parameters."""
    for group, owner in zip(*_flats(zero), strict=True):
        for parameter in group:
            if mapping := parameter._hp_mapping:
                inside, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield Fragment(zero.param_names[parameter], inside.start, inside.numel, owner, flat.start)


def _partitioned(zero: Any) -> Iterator[Fragment]:
    """Stage 3: each parameter is cut into equal, padded partitions."""
    for name, parameter in zero.module.named_parameters():
        group, offset, numel = zero.grad_position[zero.get_param_id(parameter)]
        start = zero._get_param_partition_rank(parameter) * numel
        owned = min(numel, parameter.ds_numel - start)
        if owned > 0:
            yield Fragment(name, start, owned, zero.fp32_partitioned_groups_flat[group], offset)


def publish(engine: Any) -> None:
    """Copy the fp32 values the optimiser holds into the weights that compute."""
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    elif stage == 3:
        _publish_partitioned(engine.optimizer)


def _publish_partitioned(zero: Any) -> None:
    flats = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    for index, (low, master) in enumerate(flats):
        low.data.copy_(master.data)
        shards = zero.unflatten(low, zero.fp16_partitioned_groups[index])
        for shard, value in zip(zero.fp16_partitioned_groups[index], shards, strict=True):
            shard.data = value.data
    # Small parameters stay gathered between steps: drop the stale copies and gather the new ones.
    if persistent := zero.persistent_parameters:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
