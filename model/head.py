"""Language-model head and its loss, computed in chunks of tokens so that all logits never exist at once.

Letters: B rows, T row length, N = B x T tokens, C tokens of a chunk, D width, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import TransformerConfig

IGNORE = -100
"""Label of a position where nothing is predicted."""

ChunkStep = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


class Loss(NamedTuple):
    """A tuple, so that DeepSpeed finds the tensors in it. Divide the sum by the count over all ranks and micro-batches."""

    total: Tensor
    """Sum of the cross-entropies of all predicted tokens, in nats, float32 scalar."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    """Number of predicted tokens, int64 scalar on the same device."""


class Head(nn.Module):
    """Logits h W^T + b, soft-capped if the config says so, and their cross-entropy."""

    def __init__(
        self, config: TransformerConfig, *, chunk_tokens: int, weight_VD: Tensor | None = None, bias: bool = False
    ):
        """`weight_VD` is the embedding's when the two are tied."""
        super().__init__()
        self.softcap = config.logit_softcap
        self.chunk_tokens = chunk_tokens
        self.chunk_step: ChunkStep = loss_and_gradient
        if weight_VD is None:
            weight_VD = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.weight = weight_VD
        self.bias = nn.Parameter(torch.empty(config.vocab_size)) if bias else None

    def forward(self, hidden_BTD: Tensor, labels_BT: Tensor | None = None) -> Loss | Tensor:
        """Loss if there are labels, else logits [B, T, V]. Tokens may as well come without rows: [N, D] and [N]."""
        if labels_BT is None:
            return cap(F.linear(hidden_BTD, self.weight, self.bias), self.softcap)
        device = hidden_BTD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype
        hidden_ND, labels_N = hidden_BTD.flatten(0, -2).to(dtype), labels_BT.flatten()
        with torch.autocast(device, enabled=False):
            if torch.is_grad_enabled():
                total = _ChunkedLoss.apply(hidden_ND, self.weight, self.bias, labels_N, self)
            else:
                total = _chunked_loss(hidden_ND, self.weight, self.bias, labels_N, self)
        return Loss(total, (labels_N != IGNORE).sum())

    def compile_chunks(self, **options: Any) -> None:
        """torch.compile the work between the matrix products, which is bound by memory bandwidth."""
        self.chunk_step = torch.compile(loss_and_gradient, **options)


def cap(logits: Tensor, softcap: float | None) -> Tensor:
    """c tanh(logits / c) in float32 (Gemma 2, arXiv:2408.00118); the logits themselves without a cap."""
    return logits if softcap is None else softcap * torch.tanh(logits.float() / softcap)


def loss_and_gradient(logits_CV: Tensor, labels_C: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token [C] in float32 and its gradient with respect to the logits [C, V] in their dtype.

    The gradient of -log softmax(z)[label] is softmax(z) - onehot(label). With z = c tanh(logits / c) the chain rule
    multiplies it by 1 - (z / c)^2.
    """
    capped_CV = cap(logits_CV, softcap)
    log_probs_CV = torch.log_softmax(capped_CV, dim=-1, dtype=torch.float32)
    rows_C = torch.arange(len(labels_C), device=labels_C.device)
    picked_C = log_probs_CV[rows_C, labels_C]
    gradient_CV = log_probs_CV.exp_().to(logits_CV.dtype)
    gradient_CV[rows_C, labels_C] = torch.expm1(picked_C).to(logits_CV.dtype)
    if softcap is not None:
        gradient_CV *= 1 - (capped_CV / softcap).square()
    return -picked_C, gradient_CV


def _chunks(hidden_ND: Tensor, labels_N: Tensor, chunk_tokens: int):
    """(hidden, label, valid) of each chunk, with zeros where the label is IGNORE."""
    valid_N = labels_N != IGNORE
    hidden_ND = hidden_ND.masked_fill(~valid_N.unsqueeze(1), 0)
    labels_N = labels_N.masked_fill(~valid_N, 0)
    count = -(-len(labels_N) // chunk_tokens)
    return zip(hidden_ND.chunk(count), labels_N.chunk(count), valid_N.chunk(count), strict=True)


def _compute_weights(weight_VD: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _chunked_loss(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, head: Head) -> Tensor:
    """Sum of the cross-entropies, without gradients."""
    weight_VD, bias_V = _compute_weights(weight_VD, bias_V, hidden_ND.dtype)
    total = hidden_ND.new_zeros((), dtype=torch.float32)
    for hidden_CD, labels_C, valid_C in _chunks(hidden_ND, labels_N, head.chunk_tokens):
        capped_CV = cap(F.linear(hidden_CD, weight_VD, bias_V), head.softcap)
        log_probs_CV = torch.log_softmax(capped_CV, dim=-1, dtype=torch.float32)
        total -= (log_probs_CV.gather(1, labels_C.unsqueeze(1)).squeeze(1) * valid_C).sum()
    return total


class _ChunkedLoss(torch.autograd.Function):
    """The same sum; its gradients are computed in the forward pass, while a chunk's logits exist.

    Nothing is recomputed in the backward pass, which only multiplies by the gradient of the scalar.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, head: Head
    ) -> Tensor:
        compute_VD, compute_V = _compute_weights(weight_VD, bias_V, hidden_ND.dtype)
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_hidden = []
        _, trains_weight, trains_bias, *_ = ctx.needs_input_grad
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if trains_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and trains_bias else None
        for hidden_CD, labels_C, valid_C in _chunks(hidden_ND, labels_N, head.chunk_tokens):
            loss_C, gradient_CV = head.chunk_step(F.linear(hidden_CD, compute_VD, compute_V), labels_C, head.softcap)
            total += (loss_C * valid_C).sum()
            grad_hidden.append((gradient_CV @ compute_VD) * valid_C.unsqueeze(1))
            if grad_weight is not None and grad_weight.dtype == hidden_ND.dtype:
                grad_weight.addmm_(gradient_CV.T, hidden_CD)
            elif grad_weight is not None:
                grad_weight += gradient_CV.T @ hidden_CD
            if grad_bias is not None:
                grad_bias += gradient_CV.T @ valid_C.to(gradient_CV.dtype)
        ctx.gradients = torch.cat(grad_hidden), grad_weight, grad_bias
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        grad_hidden, *of_weights = ctx.gradients
        del ctx.gradients  # else they would live as long as the loss, through the optimiser's step
        grad_weight, grad_bias = (
            None if grad is None else grad.mul_(grad_total).to(ctx.weight_dtype) for grad in of_weights
        )
        return grad_hidden.mul_(grad_total), grad_weight, grad_bias, None, None
