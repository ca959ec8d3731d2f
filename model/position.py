"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split form of Llama.

Letters: B rows, T row length, H heads, E head size.
"""

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, float32 [B or 1, T, 1, E / 2]: they broadcast over heads."""


def rotary_table(positions: Tensor, head_size: int, theta: float) -> Rotary:
    """Cosines and sines of position x theta^(-2i / E) for positions [T] or [B, T].

    Computed afresh in float32 at each forward pass (it is tiny): a buffer would be rounded when a model is cast to bf16.
    """
    exponents = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32) / head_size
    angles = positions.float().unsqueeze(-1) * (1.0 / theta**exponents)
    angles = angles.view(-1, positions.shape[-1], 1, head_size // 2)
    return angles.cos(), angles.sin()


def rotate(x_BTHE: Tensor, rotary: Rotary) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its angle, in float32."""
    cos, sin = rotary
    first, second = x_BTHE.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
