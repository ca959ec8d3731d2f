"""`train.py RECIPE --self-check`: the first steps of a configuration against the plain reference, and a verdict.

The configuration trains as it would: its precision, kernel, compiling, ZeRO stage, ranks, micro-batches and optimiser.
Then one process repeats the steps with `engine/reference.py` in fp32, on the same batches, from the same initial weights.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from config import ConfigError, RunConfig
from config.contrastive_schema import Similarity, micro_batch_matters
from config.objective_schema import ObjectiveConfig
from config.parallel import ranks_per_row
from data.batch import Batch
from data.similar import join_similar
from data.stream import Stream
from engine.build import Setup, build_engine
from engine.dist import World, from_main, gather_objects, together
from engine.engine import Engine
from engine.fragments import Fragment, Step, fragments, observed_updates, parameter_shapes, replicated
from engine.ownership import Ownership
from engine.reference import Reference

STEPS = 10

Weights = dict[str, Tensor]
"""Whole tensors by parameter name, on the main rank; empty on the others."""

Pieces = list[tuple[str, slice | Tensor, Tensor]]
"""Parameter, places in it when it is flattened, values."""


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that rounding explains, in fp32 and in low precision."""

    loss: float
    """Nats, at any step."""
    grad_norm: float
    """Share of the gradient norm, at any step."""
    gradient: float
    """Norm of the difference of a parameter's first gradients, as a share of the gradient's norm, or of a tenth of what
    is average for as many elements if that is more."""
    distance: float
    """How much further or less far the weights of an owner moved, as a share."""
    movement: float
    """Norm of the difference of both movements, as a share of the reference's."""


# Five times and more what was measured for 0.06 to 3M parameters, GPT-2 and Qwen3, adamw, muon, lion, sgd, ZeRO 0 to 3.
FP32 = Tolerance(loss=1e-3, grad_norm=5e-3, gradient=1e-3, distance=5e-3, movement=0.02)
LOW = Tolerance(loss=0.03, grad_norm=0.05, gradient=0.1, distance=0.03, movement=0.3)


@dataclass(frozen=True)
class Measured:
    """What one of the two trainings did."""

    steps: list[tuple[float, float]]
    """Loss and gradient norm of each step."""
    gradient: Weights
    """First gradient as the optimiser gets it: of the global batch, clipped."""
    movement: Weights
    """Last weights minus first weights."""


@dataclass(frozen=True)
class Verdict:
    text: str
    failures: list[str]


def self_check(config: RunConfig, stream: Stream, world: World) -> Verdict:
    """Train the configuration's first steps twice and compare; all ranks call it together and get the verdict.

    The main rank holds the reference: whole fp32 weights, gradients and moments. Nothing is written. Dropout is turned
    off, because its masks are drawn by rank and micro-batch. Raises ConfigError and TrainingError as a training would.
    """
    if config.adapter.name == "adalora":
        raise ConfigError(
            "--self-check does not know adapter.name adalora, whose ranks depend on a whole run: check lora"
        )
    config = without_dropout(config)
    engine, setup = build_engine(config, world)
    batches, ours = measure_engine(engine, stream, min(STEPS, config.schedule.steps))

    def compare() -> Verdict | None:
        if not world.is_main:
            return None
        reference = measure_reference(Reference(config, world.device), batches)
        tolerance = FP32 if setup.precision.value == "fp32" else LOW
        return judge(ours, reference, setup.owners, tolerance, title(config, setup))

    return from_main(together(compare, world))


def without_dropout(config: RunConfig) -> RunConfig:
    changed: dict[str, Any] = {}
    for name, setting in (("model", "dropout"), ("objective", "head_dropout"), ("adapter", "dropout")):
        section = getattr(config, name)
        if hasattr(section, setting):
            changed[name] = section.model_copy(update={setting: 0.0})
    return config.model_copy(update=changed)


def measure_engine(engine: Engine, stream: Stream, steps: int) -> tuple[list[list[Batch]], Measured]:
    """Train `steps` steps from the start of the stream; also returns the global batch of each."""
    batches, reports, cursor = [], [], 0
    before = gather_weights(engine)
    for index in range(steps):
        micro_batches, cursor = stream.step(cursor)
        with recorded_gradients(engine) as pieces:
            reports.append(engine.step(index, micro_batches))
        if index == 0:
            gradient = gather(engine, pieces)
        distinct = gather_objects(micro_batches)[:: ranks_per_row(engine.config.engine)]
        batches.append(of_all_ranks(distinct, engine.config.objective))
    after = gather_weights(engine)
    curve = [(report.loss, report.grad_norm) for report in reports]
    return batches, Measured(curve, gradient, {name: after[name] - before[name] for name in after})


def of_all_ranks(batches: list[list[Batch]], objective: ObjectiveConfig) -> list[Batch]:
    """The ranks' micro-batches as one process reads them. Contrastive ones become one where their losses look at each
    other's rows: those of one pass, or all."""
    flat = [batch for of_rank in batches for batch in of_rank]
    if micro_batch_matters(objective):
        return [join_similar(of_ranks) for of_ranks in zip(*batches, strict=True)]
    return [join_similar(flat)] if isinstance(objective, Similarity) else flat


def measure_reference(reference: Reference, batches: list[list[Batch]]) -> Measured:
    before = {name: p.detach().clone() for name, p in reference.trained().items()}
    curve = []
    for index, micro_batches in enumerate(batches):
        loss, gradients = reference.gradients(micro_batches)
        curve.append((loss, reference.clip(gradients)))
        if index == 0:
            first = {name: gradient.cpu().clone() for name, gradient in gradients.items()}
        reference.update(index, gradients)
    after = reference.trained()
    return Measured(curve, first, {name: (p.detach() - before[name]).cpu() for name, p in after.items()})


def judge(ours: Measured, reference: Measured, owners: list[Ownership], allowed: Tolerance, title: str) -> Verdict:
    """Every comparison as a line, and those beyond their tolerance as failures."""
    lines, failures = [title, f"{'step':>4} {'loss':>9} {'reference':>9} {'gradient':>10} {'reference':>9}"], []

    def check(what: str, found: float, limit: float) -> None:
        if not found <= limit:  # not a number fails
            failures.append(f"{what} differs by {found:.2g}, more than {limit:g}")

    for step, (mine, theirs) in enumerate(zip(ours.steps, reference.steps, strict=True), start=1):
        lines.append(f"{step:>4} {mine[0]:9.5f} {theirs[0]:9.5f} {mine[1]:10.5f} {theirs[1]:9.5f}")
        check(f"loss of step {step}", abs(mine[0] - theirs[0]), allowed.loss)
        check(f"gradient norm of step {step}", abs(mine[1] - theirs[1]) / theirs[1], allowed.grad_norm)
    errors = gradient_errors(ours.gradient, reference.gradient)
    worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])
    lines.append(f"first gradient: largest difference {errors[worst]:.2%}, of {worst}")
    check(f"first gradient of {worst}", errors[worst], allowed.gradient)
    for owner in owners:
        distance, difference = movement_errors(ours.movement, reference.movement, owner)
        lines.append(f"moved {distance:.3f} times as far, {difference:.1%} apart: {owner.title}")
        check(f"distance moved by {owner.title}", abs(distance - 1), allowed.distance)
        check(f"movement of {owner.title}", difference, allowed.movement)
    verdict = "FAILED" if failures else "passed: every difference is within the rounding of the precision"
    return Verdict("\n".join([*lines, f"self-check {verdict}", *(f"  {failure}" for failure in failures)]), failures)


def gradient_errors(ours: Weights, reference: Weights) -> dict[str, float]:
    """By parameter; see Tolerance.gradient. A parameter without a gradient here has the error 1."""
    total = sum(g.numel() for g in reference.values())
    average = math.sqrt(sum(g.square().sum().item() for g in reference.values()) / total)
    errors = {}
    for name, expected in reference.items():
        size = max(expected.norm().item(), 0.1 * average * math.sqrt(expected.numel()))
        errors[name] = (ours.get(name, 0.0) - expected).norm().item() / size
    return errors


def movement_errors(ours: Weights, reference: Weights, owner: Ownership) -> tuple[float, float]:
    """How far the owner's weights moved and how far apart both ended, as shares of the reference's way."""
    mine, theirs = (torch.cat([side[name].flatten() for name in owner.parameters]) for side in (ours, reference))
    way = max(theirs.norm().item(), 1e-30)
    return mine.norm().item() / way, (mine - theirs).norm().item() / way


def title(config: RunConfig, setup: Setup) -> str:
    ranks, compiled = setup.derived.world_size, "compiled" if setup.compile.value else "not compiled"
    return (
        f"self-check of {config.run.name}: {ranks} × {setup.device}, {config.engine.ds_config}, {setup.precision.value}, "
        f"attention {setup.kernel.value.name}, {compiled}; against one process in fp32 with plain attention"
    )


@contextmanager
def recorded_gradients(engine: Engine) -> Iterator[Pieces]:
    """Collects what the optimiser steps with, as (name, start, elements)."""
    pieces: Pieces = []

    def record(touched: list[Fragment], step: Step) -> None:
        pieces.extend((f.name, f.places, f.gradient.cpu().clone()) for f in touched)
        step()

    with observed_updates(engine.deepspeed, fragments(engine.deepspeed), record):
        yield pieces


def gather_weights(engine: Engine) -> Weights:
    """The fp32 weights that the optimiser holds."""
    return gather(engine, [(f.name, f.places, f.view(f.owner).cpu().clone()) for f in fragments(engine.deepspeed)])


def gather(engine: Engine, pieces: Pieces) -> Weights:
    """Put all ranks' pieces together on the main rank."""
    world = engine.world
    of_ranks: list[Pieces] | None = [[]] * world.size if world.is_main else None
    needless = replicated(engine.deepspeed) and world.rank >= engine.copies
    dist.gather_object([] if needless else pieces, of_ranks)
    whole: Weights = {}
    for name, places, values in (piece for of_rank in of_ranks or [] for piece in of_rank):
        shape = parameter_shapes(engine.deepspeed)[name]
        whole.setdefault(name, torch.zeros(shape)).view(-1)[places] = values
    return whole
