"""The GPT family: token embedding, blocks, norm, head. GPT-2, Llama, Qwen3 and Mistral are settings of it.

Letters: B rows, T row length, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from config import GPTConfig, Recompute
from model.block import Block
from model.cache import KVCache
from model.head import Head, Loss
from model.kernels import Kernel
from model.layout import Layout
from model.norm import make_norm
from model.position import Rotary, rotary_table
from model.recompute import run_block
from model.spec import AttentionSpec


class GPT(nn.Module):
    def __init__(
        self, config: GPTConfig, kernel: Kernel, *, loss_chunk_tokens: int, activation_checkpointing: Recompute
    ):
        super().__init__()
        self.config = config
        self.kernel = kernel
        self.activation_checkpointing = activation_checkpointing
        learned = config.position == "learned"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.embed_dropout = nn.Dropout(config.dropout)
        self.spec = AttentionSpec(window=config.sliding_window, softcap=config.attention_softcap)
        self.blocks = nn.ModuleList(Block(config, kernel, self.spec) for _ in range(config.num_layers))
        self.final_norm = make_norm(config)
        tied_weight = self.embed_tokens.weight if config.tied_embeddings else None
        self.lm_head = Head(config, chunk_tokens=loss_chunk_tokens, weight_VD=tied_weight)

    def forward(
        self,
        tokens_BT: Tensor,
        labels_BT: Tensor | None = None,
        layout: Layout | None = None,
        cache: KVCache | None = None,
    ) -> Loss | Tensor:
        """Loss against `labels_BT` (already shifted; IGNORE where nothing is predicted), or hidden states [B, T, D].

        With a `layout`, documents of a row do not see each other. With a `cache`, the tokens continue the cached ones.
        """
        positions = self._positions(tokens_BT, layout, cache)
        x_BTD = self._embed(tokens_BT, positions)
        rotary = self._rotary(positions)
        layout = self.kernel.prepare(self.spec, x_BTD, layout)
        for i, block in enumerate(self.blocks):
            layer_cache = cache.layers[i] if cache else None
            x_BTD = run_block(block, self.activation_checkpointing, x_BTD, rotary, layout, layer_cache)
        x_BTD = self.final_norm(x_BTD)
        return x_BTD if labels_BT is None else self.lm_head(x_BTD, labels_BT)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores [B, T, V] of the next token from the hidden states of `forward`."""
        return self.lm_head(hidden_BTD)

    def _positions(self, tokens_BT: Tensor, layout: Layout | None, cache: KVCache | None) -> Tensor:
        if layout is not None:
            return layout.positions_BT
        start = cache.length if cache else 0
        assert start == 0 or tokens_BT.shape[1] == 1, "a filled cache is continued one token at a time"
        end = start + tokens_BT.shape[1]
        assert end <= self.config.max_positions, f"{end} tokens, but max_positions is {self.config.max_positions}"
        return torch.arange(start, end, device=tokens_BT.device)

    def _embed(self, tokens_BT: Tensor, positions: Tensor) -> Tensor:
        x_BTD = self.embed_tokens(tokens_BT)
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions)
        return self.embed_dropout(x_BTD)

    def _rotary(self, positions: Tensor) -> Rotary | None:
        if self.config.position != "rotary":
            return None
        return rotary_table(positions, self.config.head_width, self.config.rope_theta)
