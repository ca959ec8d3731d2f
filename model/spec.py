"""What an attention layer computes, apart from its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """Which keys a query sees and how scores become weights: softmax(cap(scale q k^T + bias)) v."""

    causal: bool = True
    """No key after the query."""
    window: int | None = None
    """Causal: a query at i sees keys j with i - window < j <= i. Else: keys with |i - j| <= window."""
    softcap: float | None = None
    """Scores become c * tanh(scores / c) (Gemma 2, arXiv:2408.00118)."""
    scale: float | None = None
    """Factor of q k^T. Default: 1 / sqrt(E)."""
