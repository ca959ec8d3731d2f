"""Update rules that treat each element alone, so that ZeRO's flattened shards step as whole parameters would."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW; with `cautious`, weight decay acts only where it pulls the way the update does."""

    def __init__(self, params: Any, *, cautious: bool = False, **settings: Any):
        self.cautious = cautious
        super().__init__(params, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        if not self.cautious:
            super().step()
            return
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and group["weight_decay"]:
                    # The update has the sign of the first moment after this step.
                    momentum = self.state[p].get("exp_avg", torch.zeros_like(p))
                    decay_(p, momentum.lerp(p.grad, 1 - group["betas"][0]), group["lr"] * group["weight_decay"])
            group["weight_decay"] = 0.0
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


def decay_(p: Tensor, update: Tensor, rate: float) -> None:
    """Cautious weight decay: p -= rate * p where update * p >= 0 (Chen et al., arXiv:2510.12402)."""
    p.mul_(1 - rate * (update * p >= 0))
