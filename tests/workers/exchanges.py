"""Counts the collectives of a training step that are not DeepSpeed's own."""

from collections import Counter
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import engine.dist
from engine.build import build_engine
from engine.dist import World, connect
from engine.fault import StopRequest
from tests.tiny import rank_batches, tiny_config


def exchanges_by_micro_batch_size(micro_batch_sizes: list[int], steps: int) -> list[list[tuple[int, int]]]:
    """For each size of micro-batches and each step: its collectives, and the most numbers that one of them sums."""
    world = connect(60)
    return [exchanges_by_step(world, size, steps) for size in micro_batch_sizes]


def exchanges_by_step(world: World, micro_batch_size: int, steps: int) -> list[tuple[int, int]]:
    engine_, _ = build_engine(tiny_config(batch={"micro_batch_size": micro_batch_size}), world)
    stop, found = StopRequest(0.0), []
    for step in range(steps):
        batches = rank_batches(step, micro_batch_size, world.rank, world.size)
        stand_in, seen = counted(engine.dist.dist)
        with patch.object(engine.dist, "dist", stand_in):
            engine_.step(step, batches)
            stop.agreed(world)
        found.append((sum(seen.values()), max(seen)))
    return found


def counted(module: Any) -> tuple[Any, Counter[int]]:
    """torch.distributed with the collectives of engine/dist.py counted by the numbers they exchange."""
    seen: Counter[int] = Counter()

    def all_reduce(tensor: Any, **options: Any) -> None:
        seen[tensor.numel()] += 1
        module.all_reduce(tensor, **options)

    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("a step exchanges numbers, no objects")

    objects = ("all_gather_object", "broadcast_object_list", "gather_object", "barrier")
    return SimpleNamespace(all_reduce=all_reduce, ReduceOp=module.ReduceOp, **dict.fromkeys(objects, unexpected)), seen
