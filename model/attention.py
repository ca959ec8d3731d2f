"""Attention with grouped key-value heads: of a sequence to itself, or to another one.

Letters: B rows, T row length, S source length, D width, H query heads, K key-value heads, E head size.
"""

from typing import Any

from torch import Tensor, nn

from config import TransformerConfig
from model.cache import LayerCache
from model.kernels import Kernel
from model.layout import Layout
from model.norm import RMSNorm
from model.position import Rotary, rotate
from model.spec import AttentionSpec


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, kernel: Kernel, spec: AttentionSpec):
        super().__init__()
        width, self.head_size = config.hidden_size, config.head_width
        self.q_proj = nn.Linear(width, config.num_heads * self.head_size, bias=config.bias)
        self.k_proj = nn.Linear(width, config.kv_heads * self.head_size, bias=config.bias)
        self.v_proj = nn.Linear(width, config.kv_heads * self.head_size, bias=config.bias)
        self.output_proj = nn.Linear(config.num_heads * self.head_size, width, bias=config.bias)
        self.q_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_size, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.dropout = config.dropout
        self.kernel = kernel
        self.spec = spec

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary | None = None,
        layout: Layout | None = None,
        cache: LayerCache | None = None,
        bias_HTS: Tensor | None = None,
    ) -> Tensor:
        """Attention output [B, T, D]; a token sees the tokens of its document that the spec lets it see."""
        q_BTHE = self.queries(x_BTD, rotary)
        k_BTKE, v_BTKE = self.keys_values(x_BTD, rotary)
        if cache is not None:
            k_BTKE, v_BTKE = cache.append(k_BTKE, v_BTKE)
        return self.mix(q_BTHE, k_BTKE, v_BTKE, layout=layout, bias_HTS=bias_HTS)

    def queries(self, x_BTD: Tensor, rotary: Rotary | None = None) -> Tensor:
        q_BTHE = self.q_norm(self.q_proj(x_BTD).unflatten(-1, (-1, self.head_size)))
        return q_BTHE if rotary is None else rotate(q_BTHE, rotary)

    def keys_values(self, x_BSD: Tensor, rotary: Rotary | None = None) -> tuple[Tensor, Tensor]:
        v_BSKE = self.v_proj(x_BSD).unflatten(-1, (-1, self.head_size))
        k_BSKE = self.k_norm(self.k_proj(x_BSD).unflatten(-1, (-1, self.head_size)))
        if rotary is not None:
            k_BSKE = rotate(k_BSKE, rotary)
        return k_BSKE.to(v_BSKE.dtype), v_BSKE

    def mix(self, q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, **context: Any) -> Tensor:
        """Values weighted by scores, all heads joined: [B, T, D]."""
        dropout = self.dropout if self.training else 0.0
        out_BTHE = self.kernel.attend(
            q_BTHE.to(v_BSKE.dtype), k_BSKE, v_BSKE, spec=self.spec, dropout=dropout, **context
        )
        return self.output_proj(out_BTHE.flatten(2))


class CrossAttention(Attention):
    """Queries from one sequence, keys and values from another."""

    def forward(  # type: ignore[override]
        self, x_BTD: Tensor, source_BSD: Tensor | None, source_layout: Layout | None, cache: LayerCache | None
    ) -> Tensor:
        """Attention output [B, T, D]. Without `source_BSD`, its keys and values are those in the cache."""
        if source_BSD is None:
            assert cache is not None
            k_BSKE, v_BSKE = cache.stored()
        else:
            k_BSKE, v_BSKE = self.keys_values(source_BSD)
            if cache is not None:
                cache.append(k_BSKE, v_BSKE)
        return self.mix(self.queries(x_BTD), k_BSKE, v_BSKE, layout=None, keys=source_layout)
