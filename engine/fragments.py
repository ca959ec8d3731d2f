"""Where ZeRO keeps each parameter: the one description of its shards that saving and loading need.

A fragment is a run of elements of one flattened parameter that this rank owns, together with the flat fp32 tensor
the optimiser steps it in. Saved as fragments, a training state fits any number of ranks and any ZeRO stage.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.tensor_parallel import slice_index, sliced_dimension

Step = Callable[[], None]


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
    columns: "Columns | None" = None
    """Of a matrix whose columns tensor-parallel ranks share, those that `start` and `numel` count in; None: all."""

    @property
    def places(self) -> "slice | Tensor":
        """Where its elements are in the flattened whole parameter."""
        if self.columns is None:
            return slice(self.start, self.start + self.numel)
        return self.columns.to_whole(torch.arange(self.start, self.start + self.numel))

    @property
    def gradient(self) -> Tensor:
        """The fragment's part of the gradient that the optimiser is about to use."""
        assert self.owner.grad is not None
        return self.view(self.owner.grad)

    def view(self, flat: Tensor) -> Tensor:
        """The fragment's part of `flat`, a tensor laid out like `owner`."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)


@dataclass(frozen=True)
class Columns:
    """The slice of a matrix's columns that one tensor-parallel rank has, flattened by itself."""

    part: int
    parts: int
    width: int
    """Columns of one slice."""

    def to_whole(self, places: Tensor) -> Tensor:
        """Places in the flattened whole matrix from places in the flattened slice."""
        row, column = places // self.width, places % self.width
        return row * self.width * self.parts + self.part * self.width + column

    def from_whole(self, places: Tensor) -> Tensor:
        """The reverse; -1 for what lies in another slice."""
        row, column = places // (self.width * self.parts), places % (self.width * self.parts)
        inside = column // self.width == self.part
        return torch.where(inside, row * self.width + column % self.width, -1)


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimiser under DeepSpeed's wrapper."""
    return engine.basic_optimizer


@contextmanager
def observed_updates(
    engine: Any, among: list["Fragment"], observe: Callable[[list["Fragment"], Step], None]
) -> Iterator[None]:
    """Call `observe` in place of each of the optimiser's steps, with those fragments that it will change and the step,
    which `observe` has to call. ZeRO 3 takes several steps, each with a part of the parameters."""
    optimizer = base_optimizer(engine)
    outer, step = vars(optimizer).get("step"), optimizer.step

    def observed_step() -> None:
        stepped = {p for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
        observe([f for f in among if f.owner in stepped], step)  # type: ignore[arg-type]

    optimizer.step = observed_step  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del optimizer.step
        if outer:  # contexts inside one another
            optimizer.step = outer  # type: ignore[method-assign]


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Full shape of every parameter, sharded, sliced or not."""
    _, slices = slice_index(engine)
    shapes = {}
    for name, parameter in engine.module.named_parameters():
        shapes[name] = list(getattr(parameter, "ds_shape", parameter.shape))
        if (dimension := sliced_dimension(name)) is not None:
            shapes[name][dimension] *= slices
    return shapes


def replicated(engine: Any) -> bool:
    """Whether every rank (of one slice) owns everything: stage 0."""
    return engine.zero_optimization_stage() == 0


def owned_here(engine: Any, rank: int, world_size: int) -> list[Fragment]:
    """This rank's share of all fragments, frozen ones too, in which each element of the model occurs on exactly one
    rank."""
    index, slices = slice_index(engine)
    mine, still = fragments(engine), frozen(engine)
    if index > 0:
        shared = _sharded_over_slices(engine) if engine.zero_optimization_stage() == 3 else set()
        mine = [f for f in mine if sliced_dimension(f.name) is not None or f.name in shared]
    if replicated(engine):
        return (mine + still)[rank // slices :: world_size // slices]
    return mine + (still if engine.zero_optimization_stage() == 3 else still[rank::world_size])


def _sharded_over_slices(engine: Any) -> set[str]:
    """Whole parameters that ZeRO 3 shards over all ranks, although tensor-parallel neighbours would have equal ones."""
    world = dist.get_world_size()
    parameters = engine.module.named_parameters()
    return {name for name, p in parameters if dist.get_world_size(p.ds_process_group) == world}


def fragments(engine: Any) -> list[Fragment]:
    """All fragments of trained parameters that this rank owns. A tied parameter appears once."""
    stage = engine.zero_optimization_stage()
    if stage == 0:
        parameters = engine.module.named_parameters()
        found: Iterator[Fragment] = (Fragment(name, 0, p.numel(), p, 0) for name, p in parameters if p.requires_grad)
    else:
        found = _partitioned(engine.optimizer) if stage == 3 else _flattened(engine.optimizer)
    index, slices = slice_index(engine)
    if slices == 1:
        return list(found)
    shapes = parameter_shapes(engine)
    return [_within_whole(fragment, shapes[fragment.name], index, slices) for fragment in found]


def frozen(engine: Any) -> list[Fragment]:
    """What this rank has of the frozen parameters: whole ones, at stage 3 its shards. Their owner, which nothing steps, is
    the weight that computes."""
    found = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        if engine.zero_optimization_stage() < 3:
            found.append(Fragment(name, 0, parameter.numel(), parameter, 0))
            continue
        shard = parameter.ds_tensor
        start = shard.ds_numel * dist.get_rank(parameter.ds_process_group)
        owned = min(shard.ds_numel, parameter.ds_numel - start)
        if owned > 0:
            found.append(Fragment(name, start, owned, shard, 0))
    return found


def _within_whole(fragment: Fragment, shape: list[int], index: int, slices: int) -> Fragment:
    """A fragment of slice `index` of a parameter, as a part of the whole parameter of `shape`."""
    dimension = sliced_dimension(fragment.name)
    if dimension is None:
        return fragment
    if dimension == 0:  # rows of the whole, one after the other
        return replace(fragment, start=fragment.start + index * math.prod(shape) // slices)
    return replace(fragment, columns=Columns(index, slices, shape[1] // slices))


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
        if not parameter.requires_grad:
            continue
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
    zero.invalidate_secondary_tensor()
    # Small parameters stay gathered between steps: drop the stale copies and gather the new ones.
    if persistent := zero.persistent_parameters:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
