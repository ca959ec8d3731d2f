"""Bytes that every collective of a training step moves, counted at torch.distributed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from engine.build import build_engine
from engine.dist import connect
from tests.tiny import tiny_config
from tests.workers.steps import run_steps

COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "reduce",
)
SMALL = 64
"""Bytes up to which a message is a count or a norm, not part of the model."""


def count_bytes(cases: list[dict[str, Any]], first: int, steps: int) -> list[dict[str, int]]:
    """Largest tensor's bytes of each kind of collective, added up over one step, after `first` steps of warming up."""
    counted: Counter[str] = Counter()
    for name in COLLECTIVES:
        setattr(dist, name, _counting(name, getattr(dist, name), counted))
    world = connect(60)
    results = []
    for case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        run_steps(engine, config, 0, first)
        counted.clear()
        run_steps(engine, config, first, first + steps)
        results.append({name: size // steps for name, size in counted.items()})
    return results


def _counting(name: str, collective: Callable[..., Any], counted: Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes = [_bytes(value) for value in (*args, *kwargs.values())]
        if max(sizes) > SMALL and dist.get_world_size(kwargs.get("group")) > 1:
            counted[name] += max(sizes)
        return collective(*args, **kwargs)

    return call


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, list) else 0
