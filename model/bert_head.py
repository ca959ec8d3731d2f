"""BERT's heads: the masked tokens, and whether a row's two texts belong together.

Letters: B rows, T row length, N = B x T tokens, M predicted tokens, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import BertConfig
from model.block import activate
from model.head import IGNORE, Head, Loss
from model.norm import make_norm

GRANULE = 64
"""Predicted tokens are filled up to a multiple of this."""


class BertHead(Head):
    """Logits norm(activation(transform(h))) W^T + b of the tokens; from the pooled first token, two logits of the pair."""

    def __init__(self, config: BertConfig, *, chunk_tokens: int, weight_VD: Tensor | None = None):
        super().__init__(config, chunk_tokens=chunk_tokens, weight_VD=weight_VD, bias=True)
        width = config.hidden_size
        self.activation = config.activation
        self.transform = nn.Linear(width, width, bias=config.bias)
        self.norm = make_norm(config)
        self.pooler = nn.Linear(width, width) if config.pooler else None
        self.pairs = nn.Linear(width, 2) if config.pooler else None

    def forward(self, hidden_BTD: Tensor, labels_BT: Tensor | None = None) -> Loss | Tensor:
        return super().forward(self.norm(activate(self.transform(hidden_BTD), self.activation)), labels_BT)

    def pair_logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores [B, 2] of the labels 0 and 1 of each row."""
        assert self.pooler is not None and self.pairs is not None, "pairs need model.pooler"
        return self.pairs(torch.tanh(self.pooler(hidden_BTD[:, 0])))

    def pair_loss(self, hidden_BTD: Tensor, labels_B: Tensor) -> Loss:
        """Cross-entropy of each row's label, 0 or 1; rows with IGNORE do not count."""
        total = F.cross_entropy(self.pair_logits(hidden_BTD).float(), labels_B, ignore_index=IGNORE, reduction="sum")
        return Loss(total, (labels_B != IGNORE).sum())


def select_targets(labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Places [M] in the flattened batch of the tokens with a label, and the labels [M]: the head, up to half of the work
    of a small model, is needed at these 15 to 30 % alone.

    M is a multiple of GRANULE and never 0, the last ones being unlabelled: matrix products like such shapes, a compiled
    loss sees few of them, and a rank without targets still takes part in ZeRO 3's gathering of the head.
    """
    labels_N = labels_BT.flatten()
    index_M = (labels_N != IGNORE).nonzero().squeeze(1)
    missing = -len(index_M) % GRANULE if len(index_M) else GRANULE
    return F.pad(index_M, (0, missing)), F.pad(labels_N[index_M], (0, missing), value=IGNORE)
