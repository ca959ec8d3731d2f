"""Saving and resuming a training state that ZeRO 1 has cut among many ranks, all of them threads of this process."""

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.growth import Cost, Row, counting, watching_files
from benchmarks.many_ranks import ManyRanks
from engine.checkpoint import RunState, load, newest_intact, save
from engine.dist import World

PARAMETERS, PARAMETER_SIZE = 64, 16_384


class Parameter:
    """What engine/fragments.py asks of a parameter under ZeRO 1."""

    requires_grad = True

    def __init__(self, number: int, first: int, end: int) -> None:
        """This rank has elements `first` to `end` of all parameters laid one behind the other."""
        self.shape = [PARAMETER_SIZE]
        begin = number * PARAMETER_SIZE
        low, high = max(first, begin), min(end, begin + PARAMETER_SIZE)
        self._hp_mapping = low < high and SimpleNamespace(
            lp_fragment_address=SimpleNamespace(start=low - begin, numel=high - low),
            hp_fragment_address=SimpleNamespace(start=low - first),
        )


def sharded_engine(world: World) -> Any:
    """A DeepSpeed engine's state at ZeRO 1, as the rank of `world` has it: weights and AdamW's moments."""
    total = PARAMETERS * PARAMETER_SIZE
    first, end = (total * rank // world.size for rank in (world.rank, world.rank + 1))
    parameters = {f"p{number:02}": Parameter(number, first, end) for number in range(PARAMETERS)}
    owner = torch.arange(first, end, dtype=torch.float32)
    state: dict[Tensor, dict[str, Tensor]] = {owner: {"exp_avg": owner + 0.25, "exp_avg_sq": owner + 0.5}}
    zero = SimpleNamespace(
        bit16_groups=[list(parameters.values())],
        single_partition_of_fp32_groups=[owner],
        param_names={parameter: name for name, parameter in parameters.items()},
        update_lp_params=lambda: None,
    )
    return SimpleNamespace(
        optimizer=zero,
        basic_optimizer=SimpleNamespace(state=state, defaults={}),
        module=SimpleNamespace(named_parameters=lambda: parameters.items()),
        zero_optimization_stage=lambda: 1,
        autotp_size=lambda: 1,
    )


def checkpoint_rows(root: Path, ranks: tuple[int, ...]) -> list[Row]:
    """Save and resume by the number of ranks, which is that of files; of the main rank and of the last."""
    rows = [
        Row("save, rank 0", "ranks", "O(n)"),
        Row("save, another rank", "ranks", "O(log n)"),
        Row("resume, rank 0", "ranks", "O(n)"),
        Row("resume on half the ranks, the last", "ranks", "O(n)"),
    ]
    for n in ranks:
        folder = root / f"checkpoints_{n}"
        folder.mkdir()
        saved, resumed = run(n, folder, save_state), run(n, folder, resume_state)
        fewer = run(max(1, n // 2), folder, resume_state)
        for row, cost in zip(rows, (saved[0], saved[-1], resumed[0], fewer[-1]), strict=True):
            row.costs[n] = cost
    return rows


def run(size: int, folder: Path, function: Any) -> list[Cost]:
    """What `function(folder, engine, world)` costs each rank; of its time only what it computes, as threads wait for
    each other. Functions are counted on the first and the last rank."""
    ranks = ManyRanks(size)

    def one_rank(world: World) -> Cost:
        engine, rank = sharded_engine(world), world.rank
        began = time.thread_time()
        with counting() if rank in (0, size - 1) else nullcontext({"calls": 0, "files": 0}) as counted:
            function(folder, engine, world)
        milliseconds = 1e3 * (time.thread_time() - began)
        return Cost(milliseconds, **counted, exchanges=ranks.exchanges[rank], received=ranks.received[rank])

    with watching_files():
        return ranks.run(one_rank)


def save_state(folder: Path, engine: Any, world: World) -> None:
    save(folder, engine, RunState(step=1), {"recipe.yaml": "run: {}\n"}, world, keep_last=1)


def resume_state(folder: Path, engine: Any, world: World) -> None:
    """Verify, then read back exactly what was saved."""
    (owner,) = engine.optimizer.single_partition_of_fp32_groups
    expected = owner.clone()
    owner.zero_()
    checkpoint = newest_intact(folder, world, print)
    assert checkpoint is not None
    load(checkpoint, engine, world)
    assert torch.equal(owner, expected)
