"""Objectives on real DeepSpeed and over real process groups, run by tests in one or two fresh processes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config import RunConfig
from config.contrastive_schema import Contrastive
from config.parallel import data_rank_and_size
from data.batch import Batch
from data.stream import open_stream
from data.training import open_training
from data.validation import open_validation
from engine.build import build_engine, open_held_out
from engine.checkpoint import RunState, load, save
from engine.dist import World, connect
from engine.similarity import Candidates, info_nce, of_all_ranks
from tests.tiny import tiny_config

Curve = list[tuple[dict[str, float], float]]
"""(parts of the loss, gradient norm) of each step; at the end the held-out parts and 0."""


def contrastive_gradients(rows: int) -> tuple[float, int, list[torch.Tensor]]:
    """Loss, count and gradients of an encoder and a temperature over `rows` pairs, shared out among the ranks. The last
    row does not count."""
    world = connect(60)
    generator = torch.Generator().manual_seed(0)
    input_2RD = torch.randn(2, rows, 12, generator=generator, dtype=torch.float64)
    weight_DD = torch.randn(12, 6, generator=generator, dtype=torch.float64).requires_grad_()
    temperature = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    here = slice(world.rank * rows // world.size, (world.rank + 1) * rows // world.size)
    anchor_BD, positive_BD = input_2RD[:, here] @ weight_DD
    candidates, first = of_all_ranks(Candidates(positive_BD, torch.arange(rows)[here] < rows - 1, None, None))
    own_B = torch.arange(first, first + len(anchor_BD))
    loss = info_nce(anchor_BD, own_B, candidates, temperature, Contrastive())
    loss.total.backward()
    return loss.total.item(), int(loss.count), [weight_DD.grad, temperature.grad]


def train_objectives(cases: list[dict[str, Any]], steps: int) -> list[Curve]:
    """Each case's curve on its own stream."""
    world, curves = connect(60), []
    for case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        walk = make_stream(config, world).steps(0)
        reports = [engine.step(index, next(walk)[0]) for index in range(steps)]
        held_out = engine.validate(held_out_batches(config, world)).parts
        curves.append([*((report.parts, report.grad_norm) for report in reports), (held_out, 0.0)])
    return curves


def make_stream(config: RunConfig, world: World) -> Any:
    rank, size = data_rank_and_size(config.engine, world.rank, world.size)
    if config.data.pairs or config.data.examples:
        return open_training(config, rank, size)[0]
    where = {"rank": rank, "world_size": size}
    return open_stream(config.data, config.batch, config.objective, seed=3, vocab_size=config.model.vocab_size, **where)


def held_out_batches(config: RunConfig, world: World) -> list[Batch]:
    if config.data.pairs or config.data.examples:
        return open_held_out(config, world)
    rank, size = data_rank_and_size(config.engine, world.rank, world.size)
    return open_validation(
        config.data,
        config.objective,
        rows=13,
        micro_batch_size=config.batch.micro_batch_size,
        vocab_size=config.model.vocab_size,
        rank=rank,
        world_size=size,
    )


def train_temperature(folder: str, cases: list[dict[str, Any]], steps: int) -> list[tuple[Curve, Curve, float]]:
    """Each case's curve of `steps` steps and of as many after a checkpoint, by another engine; its temperature there."""
    world, results = connect(60), []
    for number, case in enumerate(cases):
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        stream = make_stream(config, world)
        rows = config.batch.global_batch_size
        first = [engine.step(index, stream.step(index * rows)[0]) for index in range(steps)]
        state = RunState(step=steps, cursor=steps * rows)
        path = save(Path(folder) / str(number), engine.deepspeed, state, {"recipe.yaml": "x"}, world, keep_last=1)
        again, _ = build_engine(config, world)
        load(path, again.deepspeed, world)
        second = [again.step(index, stream.step(index * rows)[0]) for index in range(steps, 2 * steps)]
        temperature = measured_temperature(again, stream.step(0)[0][0], world)
        results.append((*([(r.parts, r.grad_norm) for r in reports] for reports in (first, second)), temperature))
    return results


@torch.no_grad()
def measured_temperature(engine: Any, batch: Batch, world: World) -> float:
    """As the model gives it."""
    tokens_BT = torch.from_numpy(replace(batch).tokens_BT)
    _, temperature = engine.deepspeed(tokens_BT)
    return float(temperature)
