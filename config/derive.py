"""Batch arithmetic, parameter counts and FLOPs: everything that follows from a recipe and a number of ranks."""

from dataclasses import dataclass

from config.errors import ConfigError
from config.gpt_schema import GPTConfig
from config.objective_schema import row_shape
from config.parallel import data_rank_and_size
from config.schema import RunConfig

FLOPS_CONVENTION = "6 x weights in matrix products, with the head, without the embedding; + 12 L H E T"


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters by part; a tied head counts once, with the embedding."""

    embedding: int
    """Token embedding, V x D."""
    positions: int
    """Learned position table; 0 under rotary positions."""
    attention: int
    """Query, key, value and output projections and QK-norms of all blocks."""
    ffn: int
    """Feed-forward layers of all blocks."""
    norms: int
    """Normalisations of all blocks and the final one."""
    head: int
    """V x D, or 0 if tied."""
    largest_block: int
    """Of one block: what ZeRO 3 gathers at a time."""

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Blocks and final norm: without the embedding tables and the head (Kaplan et al., arXiv:2001.08361)."""
        return self.attention + self.ffn + self.norms


@dataclass(frozen=True)
class Derived:
    """What a recipe means on `world_size` ranks."""

    world_size: int
    data_parallel: int
    """Ranks, or groups of ranks, that read different rows."""
    accumulation_steps: int
    """Forward and backward passes of each rank in one optimiser step."""
    tokens_per_step: int
    """Tokens of text. What an objective adds to a row (special tokens, padding) is not counted."""
    total_tokens: int
    parameters: ParameterCounts
    flops_per_token: int
    """Forward and backward for one token of text; see FLOPS_CONVENTION."""
    batch_equation: str

    @property
    def total_flops(self) -> int:
        return self.flops_per_token * self.total_tokens


def derive(config: RunConfig, world_size: int) -> Derived:
    """Raises ConfigError, with choices that work, if the ranks and micro-batches do not divide the global batch."""
    rows, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    shape = row_shape(config.objective, config.data.row_length)
    length = shape.text
    _, readers = data_rank_and_size(config.engine, 0, world_size)
    if rows % (micro * readers):
        raise ConfigError(_indivisible(rows, micro, readers, world_size // readers))
    accumulation = rows // (micro * readers)
    return Derived(
        world_size=world_size,
        data_parallel=readers,
        accumulation_steps=accumulation,
        tokens_per_step=rows * length,
        total_tokens=rows * length * config.schedule.steps,
        parameters=count_parameters(config.model),
        flops_per_token=flops_per_token(config.model, shape.length) * shape.rows * shape.length // length,
        batch_equation=f"{rows:,} rows = {micro:,} micro × {accumulation:,} accumulation × "
        f"{_readers_in_words(readers, world_size // readers)}; "
        f"× {length:,} tokens = {rows * length:,} tokens a step",
    )


def ranks_in_words(world_size: int) -> str:
    return "1 rank" if world_size == 1 else f"{world_size:,} ranks"


def _readers_in_words(readers: int, together: int) -> str:
    if together == 1:
        return ranks_in_words(readers)
    return f"{readers:,} {'group' if readers == 1 else 'groups'} of {together} ranks"


def _indivisible(rows: int, micro: int, readers: int, together: int) -> str:
    """`readers` groups of `together` ranks read different rows."""
    product = micro * readers
    below = rows // product * product
    fixes = [f"batch.global_batch_size to {_either([n for n in (below, below + product) if n])}"]
    if rows % readers == 0:
        fixes.append(f"batch.micro_batch_size to {_either(_nearest_divisors(rows // readers, micro))}")
    if rows % micro == 0:
        numbers = [n * together for n in _nearest_divisors(rows // micro, readers)]
        fixes.append(f"the number of ranks to {_either(numbers)}")
    return (
        f"batch.global_batch_size {rows} is not a multiple of batch.micro_batch_size {micro} × "
        f"{_readers_in_words(readers, together)} = {product}: set {', or '.join(fixes)}"
    )


def _nearest_divisors(number: int, near: int) -> list[int]:
    """The closest divisors of a number on both sides of `near`."""
    below = next((n for n in range(min(near, number), 0, -1) if number % n == 0), None)
    above = next((n for n in range(near, number + 1) if number % n == 0), None)
    return [n for n in dict.fromkeys((below, above)) if n]


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def count_parameters(model: GPTConfig) -> ParameterCounts:
    """By formula, equal to the built model's. Linear layers carry biases if `bias` is set (the head never does), a
    LayerNorm does too; QK-norms are RMSNorms of one head's size."""
    width, layers = model.hidden_size, model.num_layers
    q_width, kv_width = model.num_heads * model.head_width, model.kv_heads * model.head_width
    up = 2 if model.gated else 1
    norm = width * (2 if model.bias and model.norm == "layernorm" else 1)
    attention = (
        width * (2 * q_width + 2 * kv_width)
        + (q_width + 2 * kv_width + width if model.bias else 0)
        + (2 * model.head_width if model.qk_norm else 0)
    )
    ffn = width * model.ffn_width * (up + 1) + (up * model.ffn_width + width if model.bias else 0)
    return ParameterCounts(
        embedding=model.vocab_size * width,
        positions=model.max_positions * width if model.position == "learned" else 0,
        attention=layers * attention,
        ffn=layers * ffn,
        norms=(2 * layers + 1) * norm,
        head=0 if model.tied_embeddings else model.vocab_size * width,
        largest_block=attention + ffn + 2 * norm,
    )


def flops_per_token(model: GPTConfig, row_length: int) -> int:
    """Forward and backward FLOPs of one training token: 6 for each weight that takes part in a matrix product (2
    forward, 4 backward; the head is one, tied or not; embedding lookup, norms and biases are not) and 12·L·H·E·T for
    attention scores and values over the full row, not halved for causality (PaLM, arXiv:2204.02311, appendix B).
    Recomputation is not counted."""
    attention = model.hidden_size * 2 * (model.num_heads + model.kv_heads) * model.head_width
    ffn = model.hidden_size * model.ffn_width * (3 if model.gated else 2)
    weights = model.num_layers * (attention + ffn) + model.vocab_size * model.hidden_size
    return 6 * weights + 12 * model.num_layers * model.num_heads * model.head_width * row_length
