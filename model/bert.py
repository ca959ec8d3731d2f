"""The BERT family: embedding, blocks that see both ways, head. BERT and ModernBERT are settings of it.

Letters: B rows, T row length, N = B x T tokens, M predicted tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn

from config import BertConfig, Recompute
from model.bert_head import BertHead, select_targets
from model.block import Block
from model.head import Loss
from model.kernels import Kernel
from model.layout import Layout
from model.norm import make_norm
from model.position import Rotary, rotary_table
from model.recompute import run_block
from model.spec import AttentionSpec


class Bert(nn.Module):
    def __init__(
        self, config: BertConfig, kernel: Kernel, *, loss_chunk_tokens: int, activation_checkpointing: Recompute
    ):
        super().__init__()
        self.config = config
        self.kernel = kernel
        self.activation_checkpointing = activation_checkpointing
        width, learned = config.hidden_size, config.position == "learned"
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_positions, width) if learned else None
        self.embed_token_types = nn.Embedding(config.token_types, width) if config.token_types else None
        self.embed_norm = make_norm(config)
        self.embed_dropout = nn.Dropout(config.dropout)
        everything = AttentionSpec(causal=False, softcap=config.attention_softcap)
        near = AttentionSpec(causal=False, softcap=config.attention_softcap, window=config.local_window)
        self.specs = [near if config.is_local(i) else everything for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(Block(config, kernel, spec) for spec in self.specs)
        if config.post_norm:
            self.final_norm: nn.Module = nn.Identity()
        else:
            self.blocks[0].attention_norm = nn.Identity()  # its input is normalised by embed_norm
            self.final_norm = make_norm(config)
        tied_weight = self.embed_tokens.weight if config.tied_embeddings else None
        self.lm_head = BertHead(config, chunk_tokens=loss_chunk_tokens, weight_VD=tied_weight)

    def forward(
        self,
        tokens_BT: Tensor,
        labels_BT: Tensor | None = None,
        layout: Layout | None = None,
        token_types_BT: Tensor | None = None,
        pair_labels_B: Tensor | None = None,
    ) -> dict[str, Loss] | Tensor:
        """Losses of the masked tokens ("mlm", where `labels_BT` is not IGNORE) and of the rows' pairs of texts ("pairs",
        0 or 1 for each row), or hidden states [B, T, D] without any labels.

        With a `layout`, documents of a row do not see each other. `token_types_BT` (default: all 0) tell the first text
        of a row from the second, in a model that has a table for them.
        """
        # Before the blocks, so that a GPU's count of the targets is waited for while it has nothing else to do.
        targets = None if labels_BT is None else select_targets(labels_BT)
        x_BTD = self.encode(tokens_BT, layout, token_types_BT)
        losses: dict[str, Loss] = {}
        if targets is not None:
            index_M, labels_M = targets
            losses["mlm"] = self.lm_head(x_BTD.flatten(0, 1).index_select(0, index_M), labels_M)
        if pair_labels_B is not None:
            losses["pairs"] = self.lm_head.pair_loss(x_BTD, pair_labels_B)
        return losses or x_BTD

    def encode(self, tokens_BT: Tensor, layout: Layout | None, token_types_BT: Tensor | None) -> Tensor:
        """Hidden states [B, T, D]."""
        positions = self._positions(tokens_BT, layout)
        x_BTD = self._embed(tokens_BT, positions, token_types_BT)
        views = {
            spec: (self._rotary(positions, spec), self.kernel.prepare(spec, x_BTD, layout)) for spec in set(self.specs)
        }
        for block, spec in zip(self.blocks, self.specs, strict=True):
            rotary, seen = views[spec]
            x_BTD = run_block(block, self.activation_checkpointing, x_BTD, rotary, seen)
        return self.final_norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores [B, T, V] of the original tokens from hidden states."""
        return self.lm_head(hidden_BTD)

    def _positions(self, tokens_BT: Tensor, layout: Layout | None) -> Tensor:
        if layout is not None:
            return layout.positions_BT
        length, longest = tokens_BT.shape[1], self.config.max_positions
        assert length <= longest, f"{length} tokens, but max_positions is {longest}"
        return torch.arange(length, device=tokens_BT.device)

    def _embed(self, tokens_BT: Tensor, positions: Tensor, token_types_BT: Tensor | None) -> Tensor:
        x_BTD = self.embed_tokens(tokens_BT)
        if self.embed_token_types is not None:
            x_BTD = x_BTD + self.embed_token_types(
                torch.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
            )
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(positions)
        return self.embed_dropout(self.embed_norm(x_BTD))

    def _rotary(self, positions: Tensor, spec: AttentionSpec) -> Rotary | None:
        if self.config.position != "rotary":
            return None
        local_theta = self.config.local_rope_theta if spec.window is not None else None
        return rotary_table(positions, self.config.head_width, local_theta or self.config.rope_theta)
