"""Parameters and FLOPs of a model by closed form, equal to what is built and counted (tests/config/test_count.py).

Letters: L blocks, D width, H query heads, K key-value heads, E head size, F feed-forward width, V vocabulary, T row
length, S row length of an encoder.
"""

from dataclasses import dataclass

from config.bert_schema import BertConfig
from config.contrastive_schema import Similarity
from config.objective_schema import MaskedLM, ObjectiveConfig, RowShape
from config.supervised_schema import HEADED, Labelled, Regression, TokenClassification
from config.t5_schema import T5Config
from config.transformer_schema import TransformerConfig

FLOPS_CONVENTION = "6 x weights in matrix products, with the head, without the embedding; + 12 L H E T"


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters by part; a tied head counts once, with the embedding."""

    embedding: int
    """Token embedding, V x D."""
    positions: int
    """Learned tables of positions, token types and relative distances."""
    attention: int
    """Query, key, value and output projections and QK-norms of all blocks."""
    ffn: int
    """Feed-forward layers of all blocks."""
    norms: int
    """Normalisations of the embedding, of all blocks and after them."""
    head: int
    """V x D unless tied, and BERT's bias, transform and pooler."""
    largest_block: int
    """Of one block: what ZeRO 3 gathers at a time."""

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Blocks and final norm: without the embedding tables and the head (Kaplan et al., arXiv:2001.08361)."""
        return self.attention + self.ffn + self.norms


def count_parameters(model: TransformerConfig, objective: ObjectiveConfig | None = None) -> ParameterCounts:
    """By formula, with the head that the objective puts in place of the language model's, if any. Linear layers carry
    biases if `bias` is set, a LayerNorm does too; QK-norms are RMSNorms of one head's size."""
    width, decoder_layers = model.hidden_size, model.decoder_layers if isinstance(model, T5Config) else 0
    layers, norm = model.num_layers + decoder_layers, _norm(model)
    attention, ffn = _attention_parameters(model), _ffn_parameters(model)
    positions = model.max_positions * width if model.position == "learned" else 0
    head = 0 if model.tied_embeddings else model.vocab_size * width
    norms = (2 * layers + 1) * norm  # BERT: the embedding's, instead of the final one or the first block's
    if isinstance(model, BertConfig):
        positions += model.token_types * width
        head += _bert_head(model)
    if isinstance(model, T5Config):
        positions = 2 * model.relative_buckets * model.num_heads
        norms += (decoder_layers + 1) * norm  # of cross-attention, and after the decoder
    if isinstance(objective, HEADED):
        head = _task_head(model, objective)
    return ParameterCounts(
        embedding=model.vocab_size * width,
        positions=positions,
        attention=(layers + decoder_layers) * attention,
        ffn=layers * ffn,
        norms=norms,
        head=head,
        largest_block=attention * (2 if decoder_layers else 1) + ffn + norm * (3 if decoder_layers else 2),
    )


def sample_flops(model: TransformerConfig, objective: ObjectiveConfig, shape: RowShape) -> int:
    """Forward and backward FLOPs of one training sample: 6 for each weight that takes part in a matrix product and each
    token (2 forward, 4 backward; embedding lookup, norms and biases take none) and 12·H·E for each query and key of a
    block: all keys of the row, not halved for causality (PaLM, arXiv:2204.02311, appendix B), or those of its window. A
    head works on the tokens that are predicted. Recomputation is not counted."""
    source, target = shape.length, shape.decoder
    blocks = sum(block_flops(model, source, _keys(model, i, source)) for i in range(model.num_layers))
    if isinstance(model, T5Config):
        # Cross-attention takes queries from the target, keys and values from the source.
        queries, keys = (6 * weights for weights in _attention_weights(model))
        cross = target * queries + source * keys + target * source * _scores(model)
        blocks += model.decoder_layers * (block_flops(model, target, target) + cross)
    predicted = target or source
    if isinstance(objective, MaskedLM):
        predicted = round(objective.mask_rate * shape.text)
    if isinstance(objective, Similarity | Labelled | Regression):
        predicted = 0  # or a few labels, next to nothing
    return shape.rows * blocks + head_flops(model, predicted)


def block_flops(model: TransformerConfig, tokens: int, keys: int) -> int:
    """Of `tokens` tokens of one row in one block of self-attention and feed-forward."""
    ffn = model.hidden_size * model.ffn_width * (3 if model.gated else 2)
    return tokens * (6 * (sum(_attention_weights(model)) + ffn) + keys * _scores(model))


def head_flops(model: TransformerConfig, tokens: int) -> int:
    """Of the logits of `tokens` tokens."""
    transform = model.hidden_size if isinstance(model, BertConfig) else 0
    return 6 * tokens * model.hidden_size * (model.vocab_size + transform)


def _attention_weights(model: TransformerConfig) -> tuple[int, int]:
    """Weights of the query and output projections, and of the key and value projections."""
    width = 2 * model.hidden_size * model.head_width
    return width * model.num_heads, width * model.kv_heads


def _scores(model: TransformerConfig) -> int:
    return 12 * model.num_heads * model.head_width


def _keys(model: TransformerConfig, layer: int, length: int) -> int:
    """Most keys that a query of this block sees."""
    window = getattr(model, "sliding_window", None)
    if isinstance(model, BertConfig) and model.is_local(layer):
        window = 2 * (model.local_window or 0) + 1
    return min(length, window or length)


def _norm(model: TransformerConfig) -> int:
    return model.hidden_size * (2 if model.bias and model.norm == "layernorm" else 1)


def _attention_parameters(model: TransformerConfig) -> int:
    biases = model.head_width * (model.num_heads + 2 * model.kv_heads) + model.hidden_size
    return sum(_attention_weights(model)) + biases * model.bias + 2 * model.head_width * model.qk_norm


def _ffn_parameters(model: TransformerConfig) -> int:
    inputs = 2 if model.gated else 1
    biases = inputs * model.ffn_width + model.hidden_size
    return model.hidden_size * model.ffn_width * (inputs + 1) + biases * model.bias


def _task_head(model: TransformerConfig, objective: Labelled | Regression) -> int:
    """The layer before the scores, if the architecture has one (see model/task_head.py), and the scores."""
    width, alone = model.hidden_size, not isinstance(objective, TokenClassification)
    outputs = len(objective.labels) if isinstance(objective, Labelled) else 1
    if not isinstance(model, BertConfig):
        return outputs * (width + (not alone))
    if model.position == "rotary":
        return width * (width + model.bias) + _norm(model) + outputs * (width + 1)
    return alone * width * (width + 1) + outputs * (width + 1)


def _bert_head(model: BertConfig) -> int:
    """The logits' bias, the transform and its norm, the pooler and the two logits of a pair."""
    width = model.hidden_size
    transform = width * (width + model.bias) + _norm(model)
    pooler = width * (width + 1) + 2 * (width + 1) if model.pooler else 0
    return model.vocab_size + transform + pooler
