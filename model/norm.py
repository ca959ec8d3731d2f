"""Normalisation layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from config import TransformerConfig


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467), in the precision of its weight.

    Under autocast a bf16 input meets an fp32 weight; torch's own layer would then leave its fused kernel with a warning.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), self.normalized_shape, self.weight, self.eps)


def make_norm(config: TransformerConfig) -> nn.Module:
    """The norm of the residual stream that the config names."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)
