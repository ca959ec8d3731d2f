"""Memory of one rank, part by part, by formula.

Model states follow ZeRO (arXiv:1910.02054, section 5) as DeepSpeed 0.19 implements it; activations follow Korthikanti
et al. (arXiv:2205.05198, section 4) with attention that does not keep its scores. An estimate: the allocator's
fragmentation, the CUDA context (about 0.5 GB) and temporary tensors come on top.
"""

from dataclasses import dataclass
from typing import Any

from config.count import ParameterCounts
from config.derive import Derived
from config.objective_schema import RowShape, row_shape
from config.optimizer_schema import OptimizerSection
from config.schema import RunConfig
from config.t5_schema import T5Config

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
    stage, number = zero["stage"], 2 if low else FP32
    weights = number * _held(config, derived, stage, sharded_from=3)
    gradients = number * _held(config, derived, stage, sharded_from=2)
    kept = moments(config.optimizer, derived.parameters) / derived.parameters.total + (stage > 0 or low)
    optimizer = int(FP32 * _held(config, derived, stage, sharded_from=1) * kept)
    offloaded = {
        name: size
        for name, size, key in (("weights", weights, "offload_param"), ("optimiser", optimizer, "offload_optimizer"))
        if (zero.get(key) or {}).get("device", "none") == "cpu"
    }
    if "optimiser" in offloaded and stage > 1:
        offloaded["gradients"], gradients = FP32 * _held(config, derived, stage, sharded_from=2), 0
    parts = {
        "weights": 0 if "weights" in offloaded else weights,
        "weights within a node (hpZ)": _secondary_weights(derived, zero, number),
        "gradients": gradients,
        "optimiser": 0 if "optimiser" in offloaded else optimizer,
        "bf16 copies of weights": 2 * _matrix_weights(config, derived) if autocast else 0,
        "communication buffers": _buffers(config, derived, zero, number),
        "activations": activation_bytes(config, matmul=2 if low or autocast else FP32, residual=number),
        "logits and head": _head(config, 2 if low or autocast else FP32),
    }
    return Memory({name: size for name, size in parts.items() if size}, offloaded)


def _held(config: RunConfig, derived: Derived, stage: int, sharded_from: int) -> int:
    """Numbers of a rank when ZeRO shards them from a stage on. Tensor parallelism slices the blocks' matrices; the slices
    are sharded over the ranks that have the same one, the rest too, or at stage 3 over all ranks."""
    counts, slices = derived.parameters, config.engine.tensor_parallel
    sliced = (counts.attention + counts.ffn) // slices
    whole = counts.total - counts.attention - counts.ffn
    if stage < sharded_from:
        return sliced + whole
    ranks = derived.world_size // slices
    return -(-sliced // ranks) + -(-whole // (derived.world_size if stage == 3 else ranks))


def _secondary_weights(derived: Derived, zero: dict[str, Any], number: int) -> int:
    """ZeRO++'s second shards (arXiv:2306.10209, section 3.2), of which `zero_hpz_partition_size` ranks have all weights."""
    size = int(zero.get("zero_hpz_partition_size", 1))
    return number * -(-derived.parameters.total // size) if size > 1 else 0


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

    Per token and block: the inputs of the norms (2D) in the residual's precision; the inputs of the attention's and the
    feed-forward's products (2D), queries, keys, values and the attention's output in the products' precision; the
    feed-forward's 2F, or 4F when gated; masks of dropout. With GPT's D = HE = KE, F = 4D, 2 bytes and dropout that is
    the paper's 34·s·b·h. QK-norm adds its inputs; the reference kernel adds the attention's probabilities. T5's
    cross-attention adds a norm, a product's input, queries and output of the target, keys and values of the source.

    Of what is recomputed, selective checkpointing keeps the results of products and attention, full checkpointing each
    block's input; either has one block whole at a time. Sequence parallelism divides the tokens, tensor parallelism the
    heads and F. Compiled blocks come close to this; uncompiled ones keep an extra copy in each RMSNorm and for each
    product under autocast, up to 1.6 times as much.

    Args:
        matmul: bytes of a number in matrix products.
        residual: bytes of a number in the residual stream.
    """
    model = config.model
    shape = row_shape(config.objective, config.data.row_length)
    rows = config.batch.micro_batch_size * shape.rows
    whole, kept = _block_bytes(config, matmul, residual), _kept_bytes(config, matmul, residual)
    stacks = [(model.num_layers, rows * shape.length // config.engine.sequence_parallel)]
    if isinstance(model, T5Config):
        stacks.append((model.decoder_layers, rows * shape.decoder))
    total = sum(layers * tokens * kept for layers, tokens in stacks)
    if isinstance(model, T5Config) and config.engine.activation_checkpointing == "none":
        total += model.decoder_layers * rows * _cross_bytes(model, shape, matmul, residual)
    return total + (max(tokens for _, tokens in stacks) * whole if kept < whole else 0)


def _block_bytes(config: RunConfig, matmul: int, residual: int) -> int:
    """Of one token in one block, nothing being recomputed."""
    model, slices, dropout = config.model, config.engine.tensor_parallel, config.model.dropout > 0
    queries, keys = model.num_heads * model.head_width, model.kv_heads * model.head_width
    attention = 2 * queries + 2 * keys + (queries + keys if model.qk_norm else 0)
    ffn = (4 if model.gated else 2) * model.ffn_width
    size = 2 * model.hidden_size * residual + (2 * model.hidden_size + (attention + ffn) // slices) * matmul
    if config.engine.kernel == "reference":
        size += model.num_heads * config.data.row_length * (matmul + (matmul + 1) * dropout) // slices
    return size + 2 * model.hidden_size * dropout


def _kept_bytes(config: RunConfig, matmul: int, residual: int) -> int:
    """Of one token in one block, what is not recomputed."""
    model, slices = config.model, config.engine.tensor_parallel
    if config.engine.activation_checkpointing == "none":
        return _block_bytes(config, matmul, residual)
    if config.engine.activation_checkpointing == "full":
        return model.hidden_size * residual
    heads = 2 * (model.num_heads + model.kv_heads) * model.head_width
    ffn = (2 if model.gated else 1) * model.ffn_width
    return model.hidden_size * (residual + 2 * matmul) + (heads + ffn) // slices * matmul


def _cross_bytes(model: T5Config, shape: RowShape, matmul: int, residual: int) -> int:
    """Of the cross-attention of one row in one block."""
    target = model.hidden_size * (residual + matmul) + 2 * model.num_heads * model.head_width * matmul
    return shape.decoder * target + shape.length * 2 * model.kv_heads * model.head_width * matmul


def _matrix_weights(config: RunConfig, derived: Derived) -> int:
    """Weights that autocast keeps a second time: of matrix products, not of the embedding's lookup."""
    sliced = (derived.parameters.attention + derived.parameters.ffn) // config.engine.tensor_parallel
    return sliced + config.model.vocab_size * config.model.hidden_size


def _buffers(config: RunConfig, derived: Derived, zero: dict[str, Any], number: int) -> int:
    """Bucket in which gradients are reduced (two when communication overlaps), and what stage 3 gathers ahead."""
    if zero["stage"] == 0:
        return 0
    size = int(zero.get("reduce_bucket_size", 5e8)) * number * (2 if zero.get("overlap_comm") else 1)
    if zero["stage"] == 3:
        largest = max(
            derived.parameters.largest_block // config.engine.tensor_parallel,
            config.model.vocab_size * config.model.hidden_size,
        )
        ahead = int(zero.get("stage3_prefetch_bucket_size", 5e7))
        size += min(largest + ahead, derived.parameters.total) * number
    return size


def _head(config: RunConfig, matmul: int) -> int:
    """Logits and their gradient of one chunk, its log-probabilities and the head's gradient in fp32."""
    model, batch = config.model, config.batch
    tokens = min(config.engine.loss_chunk_tokens, batch.micro_batch_size * config.data.row_length)
    return model.vocab_size * (tokens * (2 * matmul + FP32) + model.hidden_size * FP32)
