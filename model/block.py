"""One Transformer block.

Letters: B rows, T row length, D width, F feed-forward width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import TransformerConfig
from model.attention import Attention
from model.cache import LayerCache
from model.kernels import Kernel
from model.layout import Layout
from model.norm import make_norm
from model.position import Rotary
from model.spec import AttentionSpec


def activate(x: Tensor, name: str) -> Tensor:
    """Feed-forward activation, of the gate if there is one (Shazeer 2020, arXiv:2002.05202).

    Squared ReLU: So et al. 2021, arXiv:2109.08668.
    """
    match name:
        case "gelu" | "geglu":
            return F.gelu(x)
        case "gelu_tanh" | "geglu_tanh":
            return sigmoid_gelu(x) if torch.compiler.is_compiling() else F.gelu(x, approximate="tanh")
        case "swiglu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
    raise AssertionError(f"unknown activation {name}")


def sigmoid_gelu(x: Tensor) -> Tensor:
    """GELU's tanh form by 1 + tanh(u) = 2 sigmoid(2u): fused on a CPU, a sigmoid takes a third of the time of a tanh."""
    return x * torch.sigmoid(math.sqrt(8 / math.pi) * x * (1 + 0.044715 * x * x))


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.activation = config.activation
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_width, bias=config.bias) if config.gated else None
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_width, bias=config.bias)
        self.down_proj = nn.Linear(config.ffn_width, config.hidden_size, bias=config.bias)
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        up_BTF = self.up_proj(x_BTD)
        if self.gate_proj is None:
            return self.down_proj(self.dropout(activate(up_BTF, self.activation)))
        return self.down_proj(self.dropout(activate(self.gate_proj(x_BTD), self.activation) * up_BTF))


class Block(nn.Module):
    """Attention, then feed-forward, each a residual branch with dropout on its output.

    Pre-norm: x + branch(norm(x)). Post-norm: norm(x + branch(x)).
    """

    def __init__(self, config: TransformerConfig, kernel: Kernel, spec: AttentionSpec):
        super().__init__()
        self.post_norm = config.post_norm
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, kernel, spec)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None = None,
        layout: Layout | None = None,
        cache: LayerCache | None = None,
        bias_HTS: Tensor | None = None,
    ) -> Tensor:
        x_BTD = self._add(x_BTD, self.attention_norm, self.attention, rotary, layout, cache, bias_HTS)
        return self._add(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _add(self, x_BTD: Tensor, norm: nn.Module, branch: nn.Module, *inputs: Any) -> Tensor:
        if self.post_norm:
            return norm(x_BTD + self.dropout(branch(x_BTD, *inputs)))
        return x_BTD + self.dropout(branch(norm(x_BTD), *inputs))
