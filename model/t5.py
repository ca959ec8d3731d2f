"""The T5 family: an encoder that reads a source, a decoder that writes the target, one embedding for both.

Letters: B rows, S source length, T target length, D width, H heads, V vocabulary.
"""

from torch import Tensor, nn

from config import Recompute, T5Config
from model.attention import CrossAttention
from model.block import Block
from model.cache import KVCache, LayerCache
from model.head import Head, Loss
from model.kernels import Kernel
from model.layout import Layout
from model.norm import make_norm
from model.position import Rotary
from model.recompute import run_block
from model.relative import RelativeBias
from model.spec import AttentionSpec


class T5(nn.Module):
    def __init__(
        self, config: T5Config, kernel: Kernel, *, loss_chunk_tokens: int, activation_checkpointing: Recompute
    ):
        super().__init__()
        self.config = config
        self.kernel = kernel
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_dropout = nn.Dropout(config.dropout)
        self.encoder = Stack(config, kernel, Block, config.num_layers, causal=False)
        self.decoder = Stack(config, kernel, DecoderBlock, config.decoder_layers, causal=True)
        for stack in (self.encoder, self.decoder):
            stack.activation_checkpointing = activation_checkpointing
        tied_weight = self.embed_tokens.weight if config.tied_embeddings else None
        self.lm_head = Head(config, chunk_tokens=loss_chunk_tokens, weight_VD=tied_weight)
        # T5 1.0: the embedding's spread is 1, so a head that shares it needs smaller inputs.
        self.output_scale = config.hidden_size**-0.5 if config.tied_embeddings else 1.0

    def forward(
        self,
        source_BS: Tensor | None,
        tokens_BT: Tensor,
        labels_BT: Tensor | None = None,
        source_layout: Layout | None = None,
        layout: Layout | None = None,
        cache: KVCache | None = None,
    ) -> Loss | Tensor:
        """Loss of the decoder against `labels_BT` (IGNORE where nothing is predicted), or its hidden states [B, T, D].

        `tokens_BT` are what the decoder reads: the target shifted right after a start token. Layouts are of padded rows
        (`Layout.padded`): padding of the source is not seen. With a `cache`, the tokens continue the cached ones, and
        only the first call has a source.
        """
        source_BSD = None if source_BS is None else self.encode(source_BS, source_layout)
        x_BTD = self.embed_dropout(self.embed_tokens(tokens_BT))
        if source_layout is not None:
            source_layout = self.kernel.prepare(attention_spec(self.config, causal=False), x_BTD, None, source_layout)
        x_BTD = self.decoder(x_BTD, layout, cache, source_BSD, source_layout) * self.output_scale
        return x_BTD if labels_BT is None else self.lm_head(x_BTD, labels_BT)

    def encode(self, source_BS: Tensor, source_layout: Layout | None = None) -> Tensor:
        """The encoder's hidden states [B, S, D]."""
        return self.encoder(self.embed_dropout(self.embed_tokens(source_BS)), source_layout)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores [B, T, V] of the next token from the hidden states of `forward`."""
        return self.lm_head(hidden_BTD)


class Stack(nn.Module):
    """Blocks that share a table of relative positions, and a norm."""

    def __init__(self, config: T5Config, kernel: Kernel, block: type[Block], num_layers: int, *, causal: bool):
        super().__init__()
        self.kernel = kernel
        self.activation_checkpointing: Recompute = "none"
        self.spec = attention_spec(config, causal)
        self.relative_embed = RelativeBias(
            config.relative_buckets, config.num_heads, max_distance=config.relative_max_distance, causal=causal
        )
        self.blocks = nn.ModuleList(block(config, kernel, self.spec) for _ in range(num_layers))
        self.final_norm = make_norm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, layout: Layout | None, cache: KVCache | None = None, *source) -> Tensor:
        """Hidden states [B, T, D]; `source` are further arguments of every block."""
        length = x_BTD.shape[1]
        bias_HTS = self.relative_embed(length, length + (cache.length if cache else 0))
        layout = self.kernel.prepare(self.spec, x_BTD, layout)
        for i, block in enumerate(self.blocks):
            context = (None, layout, cache.layers[i] if cache else None, bias_HTS, *source)
            x_BTD = run_block(block, self.activation_checkpointing, x_BTD, *context)
        return self.dropout(self.final_norm(x_BTD))


class DecoderBlock(Block):
    """A block that attends to the source between its two branches."""

    def __init__(self, config: T5Config, kernel: Kernel, spec: AttentionSpec):
        super().__init__(config, kernel, spec)
        self.cross_attention_norm = make_norm(config)
        self.cross_attention = CrossAttention(config, kernel, attention_spec(config, causal=False))

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None = None,
        layout: Layout | None = None,
        cache: LayerCache | None = None,
        bias_HTS: Tensor | None = None,
        source_BSD: Tensor | None = None,
        source_layout: Layout | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), rotary, layout, cache, bias_HTS))
        source_cache = cache.source if cache else None
        seen_BTD = self.cross_attention(self.cross_attention_norm(x_BTD), source_BSD, source_layout, source_cache)
        x_BTD = x_BTD + self.dropout(seen_BTD)
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


def attention_spec(config: T5Config, causal: bool) -> AttentionSpec:
    """T5 does not scale its scores: the initial weights of the queries make up for it, unless QK-norm resets them."""
    return AttentionSpec(causal, softcap=config.attention_softcap, scale=None if config.qk_norm else 1.0)
