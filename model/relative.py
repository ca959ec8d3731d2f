"""T5's relative position bias on attention scores (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

Letters: T queries, S keys, H heads, N buckets.
"""

import math

import torch
from torch import Tensor, nn


class RelativeBias(nn.Embedding):
    """A learned number for each bucket of distances and each head, [N, H]; one table serves all blocks of a stack."""

    def __init__(self, buckets: int, num_heads: int, *, max_distance: int, causal: bool):
        super().__init__(buckets, num_heads)
        self.max_distance = max_distance
        self.causal = causal

    def forward(self, queries: int, keys: int) -> Tensor:  # type: ignore[override]
        """Bias [H, T, S] in float32 of the last `queries` of a row's tokens on all `keys` of them."""
        places_S = torch.arange(keys, device=self.weight.device)
        distance_TS = places_S - places_S[-queries:].unsqueeze(1)
        buckets_TS = relative_bucket(distance_TS, self.num_embeddings, self.max_distance, causal=self.causal)
        return super().forward(buckets_TS).permute(2, 0, 1).float()


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, *, causal: bool) -> Tensor:
    """Number of the bucket of each distance key - query, from 0 to buckets - 1.

    The formula of Mesh TensorFlow's `_relative_position_bucket` (transformer_layers.py). Of n buckets, distances d below
    e = n / 2 have one each; larger ones share the rest evenly by logarithm, e + floor((n - e) log(d/e) / log(max/e)), and
    those from max_distance on the last. A causal query puts all later keys into bucket 0; else the second half of the
    buckets is for them.
    """
    if causal:
        distance = (-distance).clamp(min=0)
        offset = torch.zeros_like(distance)
    else:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = distance.abs()
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    shared = exact + (ratio * (buckets - exact)).long()
    return offset + torch.where(distance < exact, distance, shared.clamp(max=buckets - 1))
