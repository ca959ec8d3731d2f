"""What ranks send each other in one optimiser step, as DeepSpeed 0.19 does it; counted in tests/launch/test_plan_traffic.py.

DeepSpeed adds gradients up at stages 1 and 2 by all-reduces, each rank then keeping its shard
(`use_multi_rank_bucket_allreduce`), at stage 2 after each micro-batch. Stage 3 scatters them after each micro-batch; it
gathers each block's weights before its forward pass, and again before its backward pass unless they come into use again
within `stage3_max_reuse_distance` numbers.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from config.block_memory import FP32
from config.objective_schema import row_shape
from config.zero_memory import States

QUANTIZED_WEIGHT, QUANTIZED_GRADIENT = 1.0, 0.5
"""Bytes of a number that travels quantised (ZeRO++, arXiv:2306.10209, sections 3.1 and 3.3)."""
PRODUCTS = 7
"""Matrices of a block that stage 3 gathers one by one if it does not prefetch."""


class Traffic(NamedTuple):
    """One kind of message in an optimiser step."""

    name: str
    operation: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    size: float
    """Bytes of the whole tensors: those that are added up, gathered, scattered or exchanged."""
    messages: float
    group: Literal["replicas", "all", "neighbours", "node", "heads"]
    """Ranks with the same slices; all of them; those that share rows; those of `zero_hpz_partition_size`, which is a node;
    one of each node."""
    hidden_by: Literal["nothing", "forward", "backward"]
    """Work during which it is under way."""


def step_traffic(states: States) -> Iterator[Traffic]:
    config, derived = states.config, states.derived
    if derived.world_size > config.engine.tensor_parallel:
        yield from _stage_3(states) if states.stage == 3 else _stages_0_to_2(states)
    if config.engine.tensor_parallel > 1:
        yield _tensor_parallel(states)
    if config.engine.sequence_parallel > 1:
        yield _sequence_parallel(states)
    if config.optimizer.name == "muon" and states.stage > 0 and derived.world_size > 1:
        size = _product_bytes(states) * (derived.parameters.attention + derived.parameters.ffn)
        yield Traffic("matrices to be orthogonalised", "all_to_all", 2 * size / derived.world_size, 2, "all", "nothing")


def _product_bytes(states: States) -> int:
    """Of a number in matrix products."""
    return 2 if states.computes_low else FP32


def travelling_bytes(states: States) -> int:
    """Of all weights: under autocast those of linear layers travel in bf16."""
    if states.stage == 0 or _product_bytes(states) == states.number:
        return states.number * states.whole
    counts = states.derived.parameters
    linear = (counts.attention + counts.ffn) // states.config.engine.tensor_parallel
    return 2 * linear + FP32 * (states.whole - linear)


def gradient_bytes(states: States) -> int:
    """Of all gradients, which travel as their weights do; an adapter's belong to linear layers."""
    if states.trained == states.whole:
        return travelling_bytes(states)
    return (states.number if states.stage == 0 else _product_bytes(states)) * states.trained


def _stages_0_to_2(states: States) -> Iterator[Traffic]:
    zero, stage = states.zero, states.stage
    times = states.derived.accumulation_steps if stage == 2 else 1
    buckets = times * max(states.trained / float(zero.get("reduce_bucket_size", 5e8)), 1)
    size = times * gradient_bytes(states)
    hidden: Literal["nothing", "backward"] = "backward" if zero.get("overlap_comm") and stage == 2 else "nothing"
    yield Traffic("gradients", "all_reduce", size, buckets, "replicas", hidden)
    if stage > 0:
        yield Traffic("updated weights", "all_gather", states.number * states.trained, 2, "replicas", "nothing")


def _stage_3(states: States) -> Iterator[Traffic]:
    zero, micro, numbers = states.zero, states.derived.accumulation_steps, states.whole
    size = numbers * QUANTIZED_WEIGHT if zero.get("zero_quantized_weights") else travelling_bytes(states)
    matrix = numbers / (PRODUCTS * states.config.model.num_layers)
    calls = max(numbers / max(matrix, float(zero.get("stage3_prefetch_bucket_size", 5e7))), 1)
    yield Traffic("weights, forward", "all_gather", micro * size, micro * calls, "replicas", "forward")
    again = 1 - _kept_weights(states) / numbers
    if again > 0:
        near: Literal["node", "replicas"] = "node" if int(zero.get("zero_hpz_partition_size", 1)) > 1 else "replicas"
        yield Traffic("weights, backward", "all_gather", micro * again * size, micro * again * calls, near, "backward")
    buckets = micro * max(states.trained / float(zero.get("reduce_bucket_size", 5e8)), 1)
    size = micro * gradient_bytes(states)
    hidden: Literal["nothing", "backward"] = "backward" if zero.get("overlap_comm") else "nothing"
    if not zero.get("zero_quantized_gradients"):
        yield Traffic("gradients", "reduce_scatter", size, buckets, "replicas", hidden)
        return
    size = QUANTIZED_GRADIENT * micro * states.trained
    near_ranks = min(int(zero.get("zero_hpz_partition_size", 1)), states.derived.world_size)
    yield Traffic("gradients, within nodes", "all_to_all", size, buckets, "node", hidden)
    yield Traffic("gradients, between nodes", "all_to_all", size / near_ranks, buckets, "heads", hidden)


def _kept_weights(states: States) -> float:
    """Weights of a rank's last blocks, between whose forward and backward (or second forward) pass fewer numbers are used
    than stage 3 looks ahead."""
    visits = 3 if states.config.engine.activation_checkpointing == "full" else 2
    return float(states.zero.get("stage3_max_reuse_distance", 1e9)) / visits


def _row_tokens(states: States) -> float:
    """Tokens of this rank in an optimiser step, in blocks."""
    config = states.config
    shape = row_shape(config.objective, config.data.row_length)
    rows = config.batch.micro_batch_size * shape.rows * states.derived.accumulation_steps
    return rows * shape.length / config.engine.sequence_parallel


def _tensor_parallel(states: States) -> Traffic:
    """Sums over slices in each block: of both branches' outputs, again where they are recomputed, and of the gradients that
    the products of queries, keys, values and feed-forward inputs pass on, each by itself (arXiv:1909.08053, section 3)."""
    config = states.config
    forward = 2 + 2 * (config.engine.activation_checkpointing == "full")
    sums = (forward + 4 + config.model.gated) * config.model.num_layers
    size = _row_tokens(states) * config.model.hidden_size * _product_bytes(states)
    return Traffic(
        "sums over slices", "all_reduce", sums * size, sums * states.derived.accumulation_steps, "neighbours", "nothing"
    )


def _sequence_parallel(states: States) -> Traffic:
    """Ulysses (arXiv:2309.14509): queries, keys, values there, outputs back, and their gradients the other way."""
    config, model = states.config, states.config.model
    passes = 2 + (config.engine.activation_checkpointing == "full")
    width = model.head_width * (2 * model.num_heads + 2 * model.kv_heads)
    size = _row_tokens(states) * width * _product_bytes(states)
    exchanges = passes * model.num_layers
    calls = 4 * exchanges * states.derived.accumulation_steps
    return Traffic("heads for tokens", "all_to_all", exchanges * size, calls, "neighbours", "nothing")
