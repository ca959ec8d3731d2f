"""Batch arithmetic and what else follows from a recipe and a number of ranks."""

from dataclasses import dataclass

from config.adapter_schema import adapter_parameters
from config.batch_ramp import rows_after
from config.contrastive_schema import Similarity
from config.count import ParameterCounts, count_parameters, sample_flops
from config.errors import ConfigError
from config.objective_schema import row_shape
from config.parallel import data_rank_and_size
from config.schema import RunConfig
from config.supervised_schema import HEADED


@dataclass(frozen=True)
class Derived:
    """What a recipe means on `world_size` ranks."""

    world_size: int
    data_parallel: int
    """Ranks, or groups of ranks, that read different rows."""
    accumulation_steps: int
    """Forward and backward passes of each rank in one optimiser step."""
    tokens_per_row: int
    """Tokens of text. What an objective adds to a row (special tokens, padding) is not counted."""
    tokens_per_step: int
    """After the ramp, as accumulation_steps."""
    total_rows: int
    parameters: ParameterCounts
    """Of the model, without an adapter's."""
    adapter: int
    """Parameters of the adapter."""
    trained: int
    """Parameters that have gradients and moments: an adapter's with a task's new head, or else all."""
    flops_per_token: int
    """Forward and backward for one token of text; see config/count.py."""
    batch_equation: str

    @property
    def total_tokens(self) -> int:
        return self.total_rows * self.tokens_per_row

    @property
    def total_flops(self) -> int:
        return self.flops_per_token * self.total_tokens


def derive(config: RunConfig, world_size: int) -> Derived:
    """Raises ConfigError, with choices that work, if the ranks and micro-batches do not divide the global batch."""
    batch, rows, micro = config.batch, config.batch.global_batch_size, config.batch.micro_batch_size
    shape = row_shape(config.objective, config.data.row_length)
    length = shape.text
    _, readers = data_rank_and_size(config.engine, 0, world_size)
    sizes = {f"batch.ramp.{i}.global_batch_size": phase.global_batch_size for i, phase in enumerate(batch.ramp)}
    for setting, size in {**sizes, "batch.global_batch_size": rows}.items():
        if size % (micro * readers):
            raise ConfigError(_indivisible(setting, size, micro, readers, world_size // readers))
    if isinstance(config.objective, Similarity):
        _check_negatives(config.objective, micro * readers, min([rows, *sizes.values()]))
    accumulation = rows // (micro * readers)
    parameters = count_parameters(config.model, config.objective)
    adapter = adapter_parameters(config.adapter, config.model)
    head = parameters.head if isinstance(config.objective, HEADED) else 0
    return Derived(
        world_size=world_size,
        data_parallel=readers,
        accumulation_steps=accumulation,
        tokens_per_row=length,
        tokens_per_step=rows * length,
        total_rows=rows_after(batch, config.schedule.steps, length),
        parameters=parameters,
        adapter=adapter,
        trained=adapter + head if adapter else parameters.total,
        flops_per_token=sample_flops(config.model, config.objective, shape) // length,
        batch_equation=f"{rows:,} rows = {micro:,} micro × {accumulation:,} accumulation × "
        f"{_readers_in_words(readers, world_size // readers)}; "
        f"× {length:,} tokens = {rows * length:,} tokens a step"
        + "".join(f"; {p.global_batch_size:,} rows up to token {p.until_tokens:,}" for p in batch.ramp),
    )


def _check_negatives(objective: Similarity, micro_rows: int, global_rows: int) -> None:
    """Raises ConfigError if an anchor of some step has nothing to be told from."""
    if (micro_rows if objective.negatives_from == "micro_batch" else global_rows) > 1:
        return
    if not getattr(objective, "hard_negatives", 0):
        raise ConfigError(
            f"one row in a {objective.negatives_from} of all ranks leaves its anchor no negative: "
            "raise batch.micro_batch_size, or set objective.negatives_from to global_batch and every "
            "global_batch_size to 2 or more"
        )


def ranks_in_words(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size:,} ranks"


def _readers_in_words(readers: int, together: int) -> str:
    if together == 1:
        return ranks_in_words(readers)
    return f"{readers:,} {'group' if readers == 1 else 'groups'} of {together} ranks"


def _indivisible(setting: str, rows: int, micro: int, readers: int, together: int) -> str:
    """`readers` groups of `together` ranks read different rows."""
    product = micro * readers
    below = rows // product * product
    fixes = [f"{setting} to {_either([n for n in (below, below + product) if n])}"]
    if rows % readers == 0:
        fixes.append(f"batch.micro_batch_size to {_either(_nearest_divisors(rows // readers, micro))}")
    if rows % micro == 0:
        numbers = [n * together for n in _nearest_divisors(rows // micro, readers)]
        fixes.append(f"the number of ranks to {_either(numbers)}")
    return (
        f"{setting} {rows} is not a multiple of batch.micro_batch_size {micro} × "
        f"{_readers_in_words(readers, together)} = {product}: set {', or '.join(fixes)}"
    )


def _nearest_divisors(number: int, near: int) -> list[int]:
    """The closest divisors of a number on both sides of `near`."""
    below = next((n for n in range(min(near, number), 0, -1) if number % n == 0), None)
    above = next((n for n in range(near, number + 1) if number % n == 0), None)
    return [n for n in dict.fromkeys((below, above)) if n]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))
