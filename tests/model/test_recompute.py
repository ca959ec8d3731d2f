"""Selective activation checkpointing where attention draws its own dropout, as kernels on GPUs do."""

import pytest
import torch
from torch import nn

from model.recompute import run_block

LIBRARY = torch.library.Library("groundwork_test", "FRAGMENT")
LIBRARY.define("dropping_attention(Tensor x, float dropout_p) -> Tensor")


@torch.library.impl(LIBRARY, "dropping_attention", "CompositeExplicitAutograd")
def dropping_attention(x, dropout_p):
    """Stands in for a fused kernel: draws in one operation, whose gradient is that of its input here."""
    return x + dropout_p * torch.rand_like(x) if dropout_p else x.clone()


torch.library.register_autograd(
    "groundwork_test::dropping_attention", lambda context, gradient: (gradient, None), lib=LIBRARY
)


class Block(nn.Module):
    def __init__(self, dropout_p: float):
        super().__init__()
        self.projection, self.dropout, self.dropout_p = nn.Linear(16, 16), nn.Dropout(0.5), dropout_p

    def forward(self, x):
        return self.dropout(torch.ops.groundwork_test.dropping_attention(self.projection(x), self.dropout_p)).square()


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_what_is_drawn_after_attention_is_drawn_again(dropout_p):
    torch.manual_seed(0)
    block, x = Block(dropout_p), torch.randn(4, 16, requires_grad=True)
    gradients = {}
    for how in ("none", "selective"):
        torch.manual_seed(1)
        (gradients[how],) = torch.autograd.grad(run_block(block, how, x).sum(), x)
    torch.testing.assert_close(gradients["selective"], gradients["none"], rtol=0, atol=0)
