"""Training steps on real DeepSpeed, run by tests in one or two fresh processes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from config.parallel import data_rank_and_size
from engine.build import build_engine
from engine.checkpoint import RunState, load, save
from engine.dist import connect
from engine.scores import bytes_per_target
from engine.state import FRAGMENTS, engine_facts, fragment_bytes
from model import generate
from tests.tiny import VOCAB, rank_batches, tiny_config


def train_all(cases: list[dict[str, Any]], steps: int) -> list[list[tuple[float, float]]]:
    """(loss, gradient norm) of each step, for each case's recipe sections."""
    world = connect(60)
    curves = []
    for case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        curves.append(run_steps(engine, config, 0, steps))
    return curves


def evaluate_and_save(folder: str, case: dict[str, Any], steps: int) -> tuple[dict[str, float], float, str]:
    """Held-out loss after `steps` steps, bytes a target if token n stands for n of them, and a checkpoint, loaded once."""
    world = connect(60)
    config = tiny_config(**case)
    engine, _ = build_engine(config, world)
    run_steps(engine, config, 0, steps)
    batches = rank_batches(99, 2, world.rank, world.size)
    held_out = engine.validate(batches).parts
    each: Any = SimpleNamespace(byte_lengths=np.arange(VOCAB))
    path = save(Path(folder), engine.deepspeed, RunState(step=steps), {"recipe.yaml": "x"}, world, 3, keep_best=True)
    again, _ = build_engine(config, world)
    load(path, again.deepspeed, world)
    assert again.validate(batches).parts == held_out
    return held_out, bytes_per_target(batches, each, world), str(path)


def run_steps(engine: Any, config: Any, first: int, last: int) -> list[tuple[float, float]]:
    micro = config.batch.micro_batch_size
    rank, size = data_rank_and_size(config.engine, engine.world.rank, engine.world.size)
    documents = config.data.document_masking
    reports = [engine.step(i, rank_batches(i, micro, rank, size, documents)) for i in range(first, last)]
    return [(report.loss, report.grad_norm) for report in reports]


def train_and_evaluate(
    cases: list[dict[str, Any]], steps: int
) -> list[tuple[list[tuple[float, float]], float, list[int]]]:
    """Each case's curve, held-out loss and a greedy sample after it."""
    world = connect(60)
    results = []
    for case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        curve = run_steps(engine, config, 0, steps)
        rank, size = data_rank_and_size(config.engine, world.rank, world.size)
        held_out = engine.validate(rank_batches(99, 2, rank, size, config.data.document_masking)).parts
        prompt = torch.tensor([[1, 2, 3]])
        sample = generate(engine.deepspeed.module, prompt, max_new_tokens=8, temperature=0.0, seed=0)
        results.append((curve, held_out, sample.new_tokens[0]))
    return results


def save_all(folder: str, cases: list[dict[str, Any]], steps: int) -> list[list[tuple[float, float]]]:
    """Train, save after `steps`, go on for as many; returns the second half's curves."""
    world = connect(60)
    curves = []
    for number, case in enumerate(cases):
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        run_steps(engine, config, 0, steps)
        state = RunState(step=steps, tokens=steps * 128, cursor=steps * 8)
        path = save(Path(folder) / str(number), engine.deepspeed, state, {"recipe.yaml": "x"}, world, keep_last=3)
        assert fragment_bytes(engine.deepspeed, engine_facts(engine.deepspeed)) == tensor_bytes(path)
        curves.append(run_steps(engine, config, steps, 2 * steps))
    return curves


def load_all(folder: str, cases: list[tuple[int, dict[str, Any]]], steps: int) -> list[list[tuple[float, float]]]:
    """Continue saved case `number` under another recipe; returns the curves of the steps after the checkpoint."""
    world = connect(60)
    curves = []
    for number, case in cases:
        config = tiny_config(**case)
        engine, _ = build_engine(config, world)
        path = Path(folder) / str(number) / f"step_{steps:08d}"
        load(path, engine.deepspeed, world)
        curves.append(run_steps(engine, config, steps, 2 * steps))
    return curves


def tensor_bytes(checkpoint: Path) -> int:
    """Of all tensors in a checkpoint's files, without their headers."""
    total = 0
    for path in (checkpoint / FRAGMENTS).iterdir():
        with safe_open(path, "pt") as file:
            total += sum(4 * file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118
    return total
