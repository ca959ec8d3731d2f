"""Seconds of one micro-batch's forward and backward passes on one rank, by kind of work.

Letters: N tokens, D width, Q = H x E all queries' numbers, K those of the keys, F feed-forward width, V vocabulary; r and m
bytes of a number in the residual stream and in matrix products. Under tensor parallelism Q, K and F are a rank's slices.
"""

from dataclasses import dataclass
from typing import NamedTuple

from config.bert_schema import BertConfig
from config.block_memory import FP32
from config.contrastive_schema import Similarity
from config.objective_schema import MaskedLM, RowShape, row_shape
from config.schema import RunConfig
from config.supervised_schema import Labelled, Regression
from config.t5_schema import T5Config
from config.transformer_schema import Recompute, TransformerConfig
from launch.plan.device import Device


@dataclass(frozen=True)
class Passes:
    """Something of the forward and of the backward pass: seconds, bytes or kernels."""

    forward: float
    backward: float

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, factor: float) -> "Passes":
        return Passes(self.forward * factor, self.backward * factor)

    @property
    def total(self) -> float:
        return self.forward + self.backward


NOTHING = Passes(0, 0)


@dataclass(frozen=True)
class Numerics:
    """Bytes of a number, and how blocks are run."""

    matmul: int
    residual: int
    compiled: bool


@dataclass(frozen=True)
class MicroBatch:
    """Seconds of the blocks and of the head, and the kernels that the host starts."""

    matmul: Passes
    attention: Passes
    elementwise: Passes
    head: float
    kernels: Passes
    """Of the blocks."""

    @property
    def forward(self) -> float:
        return self.matmul.forward + self.attention.forward + self.elementwise.forward + self.head

    @property
    def backward(self) -> float:
        """Without what is recomputed in it."""
        return self.matmul.backward + self.attention.backward + self.elementwise.backward

    def recomputing(self, policy: Recompute) -> float:
        """Of blocks' forward passes that the backward pass does again: none, all but products and attention, or whole."""
        return {"none": 0.0, "selective": self.elementwise.forward, "full": self.forward - self.head}[policy]


class Layer(NamedTuple):
    """Blocks that are alike."""

    blocks: int
    tokens: float
    """Of a micro-batch, on this rank."""
    keys: float
    """That an average query sees."""
    sources: float = 0
    """Tokens that keys and values of a cross-attention are made of; 0 without one."""
    source_keys: float = 0


def micro_batch(config: RunConfig, device: Device, numerics: Numerics) -> MicroBatch:
    model, slices = config.model, config.engine.tensor_parallel
    matmul = attention = elementwise = kernels = NOTHING
    traffic, launches = _element_wise(model, numerics, slices)
    for layer in _layers(config):
        matmul += _products(model, device, numerics.matmul, layer, slices) * layer.blocks
        attention += _attention(model, device, layer, slices) * layer.blocks
        elementwise += (
            Passes(
                device.memory_seconds(layer.tokens * traffic.forward, launches.forward),
                device.memory_seconds(layer.tokens * traffic.backward, launches.backward),
            )
            * layer.blocks
        )
        products = 6 + model.gated + (4 if layer.sources else 0)
        kernels += (launches + Passes(products, 2 * products)) * layer.blocks
    if config.engine.kernel == "reference":
        elementwise += _materialised_scores(config, device)
    return MicroBatch(matmul, attention, elementwise, _head(config, device, numerics), kernels)


def _layers(config: RunConfig) -> list[Layer]:
    model, shape = config.model, row_shape(config.objective, config.data.row_length)
    rows = config.batch.micro_batch_size * shape.rows
    tokens = rows * shape.length / config.engine.sequence_parallel
    if isinstance(model, T5Config):
        encoder = Layer(model.num_layers, tokens, shape.length)
        target = rows * shape.decoder
        return [encoder, Layer(model.decoder_layers, target, shape.decoder / 2, tokens, shape.length)]
    if isinstance(model, BertConfig):
        local = sum(model.is_local(i) for i in range(model.num_layers))
        window = min(2 * (model.local_window or 0) + 1, shape.length)
        layers = [Layer(local, tokens, window), Layer(model.num_layers - local, tokens, shape.length)]
        return [layer for layer in layers if layer.blocks]
    return [Layer(model.num_layers, tokens, causal_keys(shape.length, model.sliding_window))]


def causal_keys(length: int, window: int | None) -> float:
    """Keys that a query of a row sees on average: all before it, or the window's newest."""
    window = min(window or length, length)
    return window - window * window / (2 * length)


def _products(model: TransformerConfig, device: Device, size: int, layer: Layer, slices: int) -> Passes:
    """Of the matrix products of one block."""
    width, ffn = model.hidden_size, model.ffn_width // slices
    queries, keys = (model.head_width * heads // slices for heads in (model.num_heads, model.kv_heads))
    shapes = [(layer.tokens, width, queries), (layer.tokens, queries, width), *[(layer.tokens, width, keys)] * 2]
    shapes += [(layer.tokens, width, ffn)] * (1 + model.gated) + [(layer.tokens, ffn, width)]
    if layer.sources:
        shapes += [(layer.tokens, width, queries), (layer.tokens, queries, width), *[(layer.sources, width, keys)] * 2]
    return sum((Passes(*device.linear_seconds(*shape, size)) for shape in shapes), NOTHING)


def _attention(model: TransformerConfig, device: Device, layer: Layer, slices: int) -> Passes:
    """Of one block: 4 FLOPs a query, key and number of a head, forward."""
    seconds = NOTHING
    for keys in (layer.keys, layer.source_keys):
        if keys:
            flops = 4 * layer.tokens * keys * model.num_heads * model.head_width / slices
            seconds += Passes(*device.attention_seconds(flops, model.head_width, keys))
    return seconds


def _element_wise(model: TransformerConfig, numerics: Numerics, slices: int) -> tuple[Passes, Passes]:
    """Bytes a token and kernels of one block's norms, residual sums, rotary, QK-norms, activation, casts and biases."""
    width, ffn = model.hidden_size, model.ffn_width // slices
    heads = (model.num_heads + model.kv_heads) * model.head_width // slices
    rotary, gated, biased = model.position == "rotary", model.gated, model.bias
    m, r = numerics.matmul, numerics.residual
    outputs = width * 2 + heads + model.kv_heads * model.head_width // slices + ffn * (1 + gated)
    dropout = Passes(2 * (2 * m + 1) * width, 2 * (2 * m + 1) * width) if model.dropout else NOTHING
    bias = Passes(0, m * outputs * biased)
    if numerics.compiled:
        # Fused by the compiler: the sum with the norm after it, rotary with QK-norm, and the activation with its product.
        norms = Passes(2 * (r + m) * width, 2 * (3 * r + m) * width)
        turned = Passes(2 * m * heads, (2 + model.qk_norm) * m * heads) if rotary or model.qk_norm else NOTHING
        active = Passes(3 * m * ffn, 5 * m * ffn) if gated else Passes(2 * m * ffn, 3 * m * ffn)
        return norms + turned + active + dropout + bias, Passes(5, 7)
    inputs = 4 + gated if r != m else 0  # under autocast each product casts its input, and each gradient is cast back
    norms = Passes(4 * r * width, 6 * r * width) + Passes(2 * (2 * r + m) * width, 6 * r * width)
    casts = Passes(inputs * (r + m) * width, inputs * (4 * r + m) * width)
    turned = Passes((3 * m + 32) * heads, (3 * m + 36) * heads) if rotary else NOTHING
    normed = Passes((m + 12) * heads, (m + 20) * heads) if model.qk_norm else NOTHING
    active = Passes(5 * m * ffn, 9 * m * ffn) if gated else Passes(2 * m * ffn, 3 * m * ffn)
    forward = 5 + gated + inputs + 18 * rotary + 4 * model.qk_norm
    return norms + casts + turned + normed + active + dropout + bias, Passes(forward, 2 * forward + 5 * biased)


def _materialised_scores(config: RunConfig, device: Device) -> Passes:
    """Of attention that writes its scores: softmax, mask and product read and write them about eight times in fp32."""
    heads = config.model.num_heads / config.engine.tensor_parallel
    row = config.data.row_length
    scores = sum(layer.blocks * layer.tokens * row * heads for layer in _layers(config))
    return Passes(8 * FP32 * scores / device.bandwidth, 12 * FP32 * scores / device.bandwidth)


def predicted_tokens(config: RunConfig, shape: RowShape) -> int:
    """Tokens of one sample that the head works on."""
    if isinstance(config.objective, Similarity | Labelled | Regression):
        return 0
    if isinstance(config.objective, MaskedLM):
        return round(config.objective.mask_rate * shape.text)
    return shape.decoder or shape.length


def _head(config: RunConfig, device: Device, numerics: Numerics) -> float:
    """Of the three products of each chunk (model/head.py computes gradients in the forward pass), of the logits' softmax
    and gradient, and of adding up the weights' gradient in fp32."""
    model, m = config.model, numerics.matmul
    shape = row_shape(config.objective, config.data.row_length)
    tokens = config.batch.micro_batch_size * predicted_tokens(config, shape) / config.engine.sequence_parallel
    if not tokens:
        return 0.0
    chunks = max(round(tokens / config.engine.loss_chunk_tokens), 1)
    products = sum(device.linear_seconds(tokens / chunks, model.hidden_size, model.vocab_size, m))
    softmax = 3 * m if numerics.compiled else 2 * m + 16
    adding = (m + 2 * FP32) * model.hidden_size * model.vocab_size if chunks > 1 else 0
    per_chunk = device.memory_seconds(tokens / chunks * softmax * model.vocab_size + adding, 6)
    return chunks * (products + per_chunk)
