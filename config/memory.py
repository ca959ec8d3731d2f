"""Memory of one rank, part by part, by formula.

Model states follow ZeRO (arXiv:1910.02054, section 5) as DeepSpeed 0.19 implements it; activations follow Korthikanti
et al. (arXiv:2205.05198, section 4) with attention that does not keep its scores. An estimate: the allocator's
fragmentation, the CUDA context (about 0.5 GB) and temporary tensors come on top.
"""

from dataclasses import dataclass
from typing import Any

from config.derive import Derived, ParameterCounts
from config.schema import OptimizerSection, RunConfig

FP32 = 4
"""Bytes of one number."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, by part."""

    device: dict[str, int]
    host: dict[str, int]
    """What offload keeps in the host's memory; empty without it."""


def estimate_memory(config: RunConfig, derived: Derived, ds_json: dict[str, Any]) -> Memory:
    zero = ds_json["zero_optimization"]
    low = ds_json["bf16"]["enabled"] or ds_json["fp16"]["enabled"]
    autocast = ds_json["torch_autocast"]["enabled"]
    count, ranks, stage = derived.parameters.total, derived.world_size, zero["stage"]
    number = 2 if low else FP32

    def share(sharded_from: int) -> int:
        return -(-count // ranks) if stage >= sharded_from else count

    weights = number * share(3)
    gradients = number * share(2)
    kept = moments(config.optimizer, derived.parameters) + (count if stage > 0 or low else 0)
    optimizer = FP32 * (-(-kept // ranks) if stage else kept)
    offloaded = {
        name: size
        for name, size, key in (("weights", weights, "offload_param"), ("optimiser", optimizer, "offload_optimizer"))
        if (zero.get(key) or {}).get("device", "none") == "cpu"
    }
    if "optimiser" in offloaded and stage > 1:
        offloaded["gradients"], gradients = FP32 * share(2), 0
    parts = {
        "weights": 0 if "weights" in offloaded else weights,
        "gradients": gradients,
        "optimiser": 0 if "optimiser" in offloaded else optimizer,
        "bf16 copies of weights": 2 * _matrix_weights(config, derived) if autocast else 0,
        "communication buffers": _buffers(config, derived, zero, number),
        "activations": activation_bytes(config, matmul=2 if low or autocast else FP32, residual=number),
        "logits and head": _head(config, 2 if low or autocast else FP32),
    }
    return Memory({name: size for name, size in parts.items() if size}, offloaded)


def moments(optimizer: OptimizerSection, counts: ParameterCounts) -> int:
    """fp32 numbers that the update rule keeps in all: muon one for each weight of its matrices (the few biases and
    norms counted with them have two), adamw two."""
    with_momentum = optimizer.momentum > 0
    if optimizer.name == "muon":
        return 2 * counts.total - counts.attention - counts.ffn
    return (
        counts.total * {"adamw": 2, "lion": 1, "sgd": int(with_momentum), "rmsprop": 1 + with_momentum}[optimizer.name]
    )


def activation_bytes(config: RunConfig, matmul: int, residual: int) -> int:
    """Activations that one micro-batch keeps for its backward pass.

    Per token and block: the inputs of both norms (2D) in the residual's precision; the inputs of the attention's and
    the feed-forward's products (2D), queries, keys, values and the attention's output in the products' precision; the
    feed-forward's 2F, or 4F when gated; masks of dropout. With GPT's D = HE = KE, F = 4D, 2 bytes and dropout that is
    the paper's 34·s·b·h. QK-norm adds its inputs; the reference kernel adds the attention's probabilities. With
    activation checkpointing each block keeps its input alone, and one block is whole at a time. Compiled blocks come
    close to this; uncompiled ones keep an extra copy in each RMSNorm and for each product under autocast, up to 1.6
    times as much.

    Args:
        matmul: bytes of a number in matrix products.
        residual: bytes of a number in the residual stream.
    """
    model = config.model
    tokens, dropout = config.batch.micro_batch_size * config.data.row_length, model.dropout > 0
    queries, keys = model.num_heads * model.head_width, model.kv_heads * model.head_width
    attention = 2 * queries + 2 * keys + (queries + keys if model.qk_norm else 0)
    ffn = (4 if model.gated else 2) * model.ffn_width
    one_block = (
        2 * model.hidden_size * residual
        + (2 * model.hidden_size + attention + ffn) * matmul
        + 2 * model.hidden_size * dropout
    )
    if config.engine.kernel == "reference":
        one_block += model.num_heads * config.data.row_length * (matmul + (matmul + 1) * dropout)
    if config.engine.activation_checkpointing:
        return tokens * (model.num_layers * model.hidden_size * residual + one_block)
    return tokens * model.num_layers * one_block


def _matrix_weights(config: RunConfig, derived: Derived) -> int:
    """Weights that autocast keeps a second time: of matrix products, not of the embedding's lookup."""
    return derived.parameters.attention + derived.parameters.ffn + config.model.vocab_size * config.model.hidden_size


def _buffers(config: RunConfig, derived: Derived, zero: dict[str, Any], number: int) -> int:
    """Bucket in which gradients are reduced (two when communication overlaps), and what stage 3 gathers ahead."""
    if zero["stage"] == 0:
        return 0
    size = int(zero.get("reduce_bucket_size", 5e8)) * number * (2 if zero.get("overlap_comm") else 1)
    if zero["stage"] == 3:
        largest = max(derived.parameters.largest_block, config.model.vocab_size * config.model.hidden_size)
        ahead = int(zero.get("stage3_prefetch_bucket_size", 5e7))
        size += min(largest + ahead, derived.parameters.total) * number
    return size


def _head(config: RunConfig, matmul: int) -> int:
    """Logits and their gradient of one chunk, its log-probabilities and the head's gradient in fp32."""
    model, batch = config.model, config.batch
    tokens = min(config.engine.loss_chunk_tokens, batch.micro_batch_size * config.data.row_length)
    return model.vocab_size * (tokens * (2 * matmul + FP32) + model.hidden_size * FP32)
