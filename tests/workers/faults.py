"""Trainings in which something stops being finite, and what is said about it. Run in one or two fresh processes."""

from collections.abc import Callable
from typing import Any

import torch

from config import RunConfig
from config.parallel import data_rank_and_size
from engine.build import build_engine
from engine.dist import World, connect
from engine.engine import Engine, TrainingError
from engine.fragments import owners
from engine.localise import Finding, first_not_finite
from engine.state import loss_scaler
from tests.tiny import rank_batches, tiny_config


def weight(engine: Engine) -> None:
    """One value of one weight of one module becomes NaN, wherever ZeRO keeps it."""
    module = engine.deepspeed.module.get_submodule("blocks.1.feed_forward.up_proj")
    _spoil_when_used(module, lambda value: value.view(-1).__setitem__(5, torch.nan))


def _spoil_when_used(module: torch.nn.Module, spoil: Callable[[torch.Tensor], None]) -> None:
    def before(module: Any, inputs: Any) -> None:
        with torch.no_grad():
            spoil(module.weight.data)

    module.register_forward_pre_hook(before)


def overflow(engine: Engine) -> None:
    """Activations of one row grow beyond the largest number: inf, and NaN further on."""
    module = engine.deepspeed.module.get_submodule("blocks.0.attention.output_proj")

    def scale(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        factor = torch.ones(len(output), 1, 1, dtype=output.dtype)
        factor[1] = torch.finfo(output.dtype).max
        return output * factor * 1e8

    module.register_forward_hook(scale)


def between(engine: Engine) -> None:
    """What a module computes between its parts: attention's scores, here by a norm of its own queries."""
    module = engine.deepspeed.module.get_submodule("blocks.1.attention.output_proj")
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] / 0.0,))


def gradient(engine: Engine) -> None:
    """A backward pass that sends infinity below the norm of a feed-forward layer, on the last rank alone."""
    if engine.world.rank == engine.world.size - 1:
        module = engine.deepspeed.module.get_submodule("blocks.1.attention")
        module.register_forward_hook(lambda module, inputs, output: _Infinite.apply(output))


class _Infinite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * torch.inf


FAULTS = {"weight": weight, "overflow": overflow, "between": between, "gradient": gradient}


def overflow_twice(stages: list[int]) -> list[tuple[bool, str, bool]]:
    """fp16 gradients that overflow at a loss scale of 2 and again at 1, the lowest: whether the first step was skipped, the
    message of the second, and whether the weights stayed as they were."""
    world, results = connect(60), []
    for stage in stages:
        engine, _ = build_engine(tiny_config(engine={"ds_config": f"zero{stage}", "precision": "fp16"}), world)
        scaler, before = loss_scaler(engine.deepspeed), [owner.detach().clone() for owner in owners(engine.deepspeed)]
        scaler.cur_scale, scaler.cur_hysteresis = 2.0, 1
        gradient(engine)
        first = engine.step(0, rank_batches(0, 2, 0, 1))
        try:
            engine.step(1, rank_batches(1, 2, 0, 1))
        except TrainingError as error:
            same = all(torch.equal(a, b) for a, b in zip(before, owners(engine.deepspeed), strict=True))
            results.append((first.skipped, str(error), same))
    return results


def find_all(cases: list[tuple[dict[str, Any], str]]) -> list[tuple[str, list[Finding], bool]]:
    """Of each case, an engine section and a fault: the message of the step that fails, what is found, and whether the
    weights stayed as they were."""
    world = connect(60)
    return [find(tiny_config(engine=engine), fault, world) for engine, fault in cases]


def find(config: RunConfig, fault: str, world: World) -> tuple[str, list[Finding], bool]:
    engine, _ = build_engine(config, world)
    rank, size = data_rank_and_size(config.engine, world.rank, world.size)
    step = lambda index: rank_batches(index, config.batch.micro_batch_size, rank, size)  # noqa: E731
    engine.step(0, step(0))
    before = [owner.detach().clone() for owner in owners(engine.deepspeed)]
    FAULTS[fault](engine)
    try:
        engine.step(1, step(1))
    except TrainingError as error:
        same = fault == "weight" or all(
            torch.equal(a, b) for a, b in zip(before, owners(engine.deepspeed), strict=True)
        )
        return str(error), first_not_finite(engine, 1, step(1), lambda *seen: None), same
    raise AssertionError(f"{fault}: the step did not fail")
