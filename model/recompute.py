"""Activation checkpointing: what of a block is computed again in the backward pass instead of being kept."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from config import Recompute

PRODUCTS = ("mm", "addmm", "bmm")


def run_block(block: nn.Module, recompute: Recompute, *inputs: Any) -> Tensor:
    """`block(*inputs)`, keeping for the backward pass everything (none), the results of matrix products and attention
    (selective; Korthikanti et al., arXiv:2205.05198, had it the other way round, before attention stopped keeping its
    scores), or the inputs alone (full)."""
    if recompute == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    if recompute == "full":
        return checkpoint(block, *inputs, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, keep_what_is_dear)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


def keep_what_is_dear(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Save products and attention; norms, activations, rotations and casts are cheap."""
    name = operator.__name__.split(".")[0]
    dear = name in PRODUCTS or "attention" in name or "attn" in name
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
