"""Optimisers, built by us and handed to DeepSpeed, so that every ZeRO stage steps with the same code.

All of them are element-wise: ZeRO flattens and shards the parameters, which would break a rule that looks at shapes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from config.schema import OptimizerSection


class Lion(torch.optim.Optimizer):
    """Sign of an interpolated momentum, with decoupled weight decay (arXiv:2302.06675, algorithm 2)."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [p.grad for p in params]  # type: ignore[misc]
            for p in params:
                if "exp_avg" not in self.state[p]:
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
            momenta = [self.state[p]["exp_avg"] for p in params]
            beta1, beta2 = group["betas"]
            directions = torch._foreach_lerp(grads, momenta, beta1)
            torch._foreach_sign_(directions)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, grads, 1 - beta2)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which are decayed, and vectors (norms and biases), which are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if _ndim(p) >= 2]
    vectors = [p for p in parameters if _ndim(p) < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "name": "matrices"},
        {"params": vectors, "weight_decay": 0.0, "name": "vectors"},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: OptimizerSection) -> torch.optim.Optimizer:
    """The optimiser the recipe names. Weight decay is decoupled for adamw and lion, L2 for sgd and rmsprop."""
    groups: Iterable[dict[str, Any]] = parameter_groups(model, settings.weight_decay)
    betas = (settings.beta1, settings.beta2)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)
    if settings.name == "lion":
        return Lion(groups, lr=settings.lr, betas=betas)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.RMSprop(
        groups, lr=settings.lr, alpha=settings.alpha, eps=settings.eps, momentum=settings.momentum
    )


def _ndim(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))
