"""Steps of contrastive training on real DeepSpeed, run by tests in one or two fresh processes."""

from typing import Any

import torch

from config import RunConfig
from engine.build import build_engine
from engine.dist import World, connect
from engine.self_check import gather, recorded_gradients
from tests.tiny import tiny_config
from tests.workers.objectives import held_out_batches, make_stream

Gradients = dict[str, torch.Tensor]


def first_steps(cases: list[dict[str, Any]]) -> list[tuple[float, Gradients, float]]:
    """Loss and gradients (on the main rank) of each case's first step, and its held-out loss afterwards."""
    world = connect(60)
    return [first_step(tiny_config(**case), world) for case in cases]


def first_step(config: RunConfig, world: World) -> tuple[float, Gradients, float]:
    engine, _ = build_engine(config, world)
    micro_batches, _ = make_stream(config, world).step(0)
    with recorded_gradients(engine) as pieces:
        report = engine.step(0, micro_batches)
    gradients = gather(engine, pieces)
    return report.loss, gradients, engine.validate(held_out_batches(config, world)).parts["contrastive"]


def curves(cases: list[dict[str, Any]], steps: int) -> list[list[float]]:
    """Losses of each case's steps."""
    world, found = connect(60), []
    for case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        walk = make_stream(config, world).steps(0)
        found.append([engine.step(index, next(walk)[0]).loss for index in range(steps)])
    return found
