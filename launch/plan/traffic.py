"""What ranks send each other in one optimiser step, as DeepSpeed 0.19 does it; counted in tests/launch/test_plan_traffic.py.

DeepSpeed adds gradients up at stages 1 and 2 by all-reduces, each rank then keeping its shard
(`use_multi_rank_bucket_allreduce`), at stage 2 after each micro-batch. Stage 3 scatters them after each micro-batch; it
gathers each block's weights before its forward pass, and again before its backward pass unless they come into use again
within `stage3_max_reuse_distance` numbers.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from config.block_memory import FP32
from config.count import ParameterCounts
from config.derive import Derived
from config.objective_schema import row_shape
from config.schema import RunConfig
from config.t5_schema import T5Config

QUANTIZED_WEIGHT, QUANTIZED_GRADIENT = 1.0, 0.5
"""Bytes of a number that travels quantised (ZeRO++, arXiv:2306.10209, sections 3.1 and 3.3)."""


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


def step_traffic(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Iterator[Traffic]:
    stage = ds_json["zero_optimization"]["stage"]
    slices = config.engine.tensor_parallel
    if derived.world_size > slices:
        yield from _stage_3(config, derived, ds_json) if stage == 3 else _stages_0_to_2(config, derived, ds_json)
    if slices > 1:
        yield _tensor_parallel(config, derived, ds_json)
    if config.engine.sequence_parallel > 1:
        yield _sequence_parallel(config, derived, ds_json)
    if config.optimizer.name == "muon" and stage > 0 and derived.world_size > 1:
        size = _number_bytes(ds_json, autocast=2) * (derived.parameters.attention + derived.parameters.ffn)
        yield Traffic("matrices to be orthogonalised", "all_to_all", 2 * size / derived.world_size, 2, "all", "nothing")


def _number_bytes(ds_json: dict[str, Any], autocast: int) -> int:
    """Of a weight; under autocast, where weights are fp32 and products bf16, the given ones."""
    if ds_json["torch_autocast"]["enabled"]:
        return autocast
    return 2 if ds_json["bf16"]["enabled"] or ds_json["fp16"]["enabled"] else FP32


def rank_parameters(counts: ParameterCounts, slices: int) -> int:
    """Weights of a rank before ZeRO shards them: with its slice of each block's matrices."""
    return counts.total - (counts.attention + counts.ffn) * (slices - 1) // slices


def travelling_bytes(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> int:
    """Of all gradients, and of all weights at stage 3: under autocast those of linear layers travel in bf16."""
    total = rank_parameters(derived.parameters, config.engine.tensor_parallel)
    if not ds_json["torch_autocast"]["enabled"] or ds_json["zero_optimization"]["stage"] == 0:
        return _number_bytes(ds_json, autocast=FP32) * total
    linear = (derived.parameters.attention + derived.parameters.ffn) // config.engine.tensor_parallel
    return 2 * linear + FP32 * (total - linear)


def _stages_0_to_2(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Iterator[Traffic]:
    zero = ds_json["zero_optimization"]
    stage, overlap = zero["stage"], bool(zero.get("overlap_comm"))
    numbers = rank_parameters(derived.parameters, config.engine.tensor_parallel)
    times = derived.accumulation_steps if stage == 2 else 1
    bucket = float(zero.get("reduce_bucket_size", 5e8))
    size = times * travelling_bytes(config, derived, ds_json)
    hidden: Literal["nothing", "backward"] = "backward" if overlap and stage == 2 else "nothing"
    yield Traffic("gradients", "all_reduce", size, times * max(numbers / bucket, 1), "replicas", hidden)
    if stage > 0:
        weights = _number_bytes(ds_json, autocast=FP32) * numbers
        yield Traffic("updated weights", "all_gather", weights, 2, "replicas", "nothing")


def _stage_3(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Iterator[Traffic]:
    zero, micro = ds_json["zero_optimization"], derived.accumulation_steps
    numbers = rank_parameters(derived.parameters, config.engine.tensor_parallel)
    size = (
        numbers * QUANTIZED_WEIGHT if zero.get("zero_quantized_weights") else travelling_bytes(config, derived, ds_json)
    )
    calls = 2 * max(config.model.num_layers, numbers / float(zero.get("stage3_prefetch_bucket_size", 5e7)))
    yield Traffic("weights, forward", "all_gather", micro * size, micro * calls, "replicas", "forward")
    again = 1 - _kept_weights(config, zero) / numbers
    if again > 0:
        near: Literal["node", "replicas"] = "node" if int(zero.get("zero_hpz_partition_size", 1)) > 1 else "replicas"
        yield Traffic("weights, backward", "all_gather", micro * again * size, micro * again * calls, near, "backward")
    buckets = micro * max(numbers / float(zero.get("reduce_bucket_size", 5e8)), 1)
    size = micro * travelling_bytes(config, derived, ds_json)
    hidden: Literal["nothing", "backward"] = "backward" if zero.get("overlap_comm") else "nothing"
    if not zero.get("zero_quantized_gradients"):
        yield Traffic("gradients", "reduce_scatter", size, buckets, "replicas", hidden)
        return
    size = QUANTIZED_GRADIENT * micro * numbers
    near_ranks = min(int(zero.get("zero_hpz_partition_size", 1)), derived.world_size)
    yield Traffic("gradients, within nodes", "all_to_all", size, buckets, "node", hidden)
    yield Traffic("gradients, between nodes", "all_to_all", size / near_ranks, buckets, "heads", hidden)


def _kept_weights(config: RunConfig, zero: dict[str, Any]) -> float:
    """Weights of a rank's last blocks, between whose forward and backward (or second forward) pass fewer numbers are used
    than stage 3 looks ahead."""
    visits = 3 if config.engine.activation_checkpointing == "full" else 2
    return float(zero.get("stage3_max_reuse_distance", 1e9)) / visits


def _row_tokens(config: RunConfig, derived: Derived) -> float:
    """Tokens of this rank in an optimiser step, in blocks."""
    shape = row_shape(config.objective, config.data.row_length)
    rows = config.batch.micro_batch_size * shape.rows * derived.accumulation_steps
    return rows * shape.length / config.engine.sequence_parallel


def _tensor_parallel(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Traffic:
    """Sums over slices in each block: of both branches' outputs, again where they are recomputed, and of the gradients that
    the products of queries, keys, values and feed-forward inputs pass on, each by itself (arXiv:1909.08053, section 3)."""
    forward = 2 + 2 * (config.engine.activation_checkpointing == "full")
    sums = (forward + 4 + config.model.gated) * config.model.num_layers
    size = _row_tokens(config, derived) * config.model.hidden_size * _number_bytes(ds_json, autocast=2)
    return Traffic(
        "sums over slices", "all_reduce", sums * size, sums * derived.accumulation_steps, "neighbours", "nothing"
    )


def _sequence_parallel(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Traffic:
    """Ulysses (arXiv:2309.14509): queries, keys, values there, outputs back, and their gradients the other way."""
    model, passes = config.model, 2 + (config.engine.activation_checkpointing == "full")
    width = model.head_width * (2 * model.num_heads + 2 * model.kv_heads)
    size = _row_tokens(config, derived) * width * _number_bytes(ds_json, autocast=2)
    layers = model.num_layers + (model.decoder_layers if isinstance(model, T5Config) else 0)
    calls = 4 * passes * layers * derived.accumulation_steps
    return Traffic("heads for tokens", "all_to_all", passes * layers * size, calls, "neighbours", "nothing")
