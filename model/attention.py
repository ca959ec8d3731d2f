"""Self-attention with grouped key-value heads.

Letters: B rows, T row length, D width, H query heads, K key-value heads, E head size.
"""

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
        by_head = (*x_BTD.shape[:2], -1, self.head_size)
        v_BTKE = self.v_proj(x_BTD).view(by_head)
        q_BTHE = self.q_norm(self.q_proj(x_BTD).view(by_head))
        k_BTKE = self.k_norm(self.k_proj(x_BTD).view(by_head))
        if rotary is not None:
            q_BTHE, k_BTKE = rotate(q_BTHE, rotary), rotate(k_BTKE, rotary)
        q_BTHE, k_BTKE = q_BTHE.to(v_BTKE.dtype), k_BTKE.to(v_BTKE.dtype)
        if cache is not None:
            k_BTKE, v_BTKE = cache.append(k_BTKE, v_BTKE)
        dropout = self.dropout if self.training else 0.0
        out_BTHE = self.kernel.attend(
            q_BTHE, k_BTKE, v_BTKE, spec=self.spec, layout=layout, dropout=dropout, bias_HTS=bias_HTS
        )
        return self.output_proj(out_BTHE.flatten(2))
