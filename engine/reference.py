"""Training written out: whole fp32 tensors, one process, no DeepSpeed. What the engine is measured against."""

from typing import Any

import torch
from torch import Tensor

from config.optimizer_schema import OptimizerSection
from config.schema import RunConfig
from data.batch import Batch
from engine.muon import COEFFICIENTS, EPS, NEWTON_SCHULZ_STEPS, update_scale
from engine.objective import add_temperature, choose_objective, count_targets
from engine.ownership import ownership
from engine.schedule import lr_factor
from engine.start_from import start_from
from model import build, init_weights, set_task_head
from model.adapters import add_adapter


class Reference:
    """The training that a recipe describes, on the CPU or any other device, a line at a time."""

    def __init__(self, config: RunConfig, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.model = build(config.model, kernel="reference")
        set_task_head(self.model, config.objective)
        init_weights(self.model, config.model, config.run.seed)
        add_temperature(self.model, config.objective)
        if config.run.start_from:
            start_from(self.model, config.model, config.run.start_from)
        add_adapter(self.model, config)
        self.model.to(device)
        self.objective = choose_objective(config.objective, alone=True)
        self.owners = ownership(self.model, config.optimizer)
        self.state: dict[str, dict[str, Tensor]] = {}

    def gradients(self, micro_batches: list[Batch]) -> tuple[float, dict[str, Tensor]]:
        """Loss of the global batch and its gradient for each parameter, unclipped."""
        self.model.train()
        self.model.zero_grad()
        targets, total = count_targets(micro_batches), 0.0
        for batch in micro_batches:
            losses = self.objective(self.model, batch, self.device)
            loss = torch.stack([losses[part].total / max(count, 1) for part, count in targets.items()]).sum()
            loss.backward()
            total += loss.item()
        return total, {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in self.trained().items()}

    def trained(self) -> dict[str, Tensor]:
        """Parameters by name, without frozen ones."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def clip(self, gradients: dict[str, Tensor]) -> float:
        """Scale the gradients in place to the recipe's largest norm; returns their norm before."""
        norm = torch.stack([g.double().norm() for g in gradients.values()]).norm().item()
        largest = self.config.optimizer.grad_clip
        for gradient in gradients.values():
            gradient *= min(1.0, largest / (norm + 1e-6)) if largest else 1.0
        return norm

    @torch.no_grad()
    def update(self, index: int, gradients: dict[str, Tensor]) -> None:
        """Step `index`, from 0."""
        factor, settings = lr_factor(self.config.schedule, index), self.config.optimizer
        for owner in self.owners:
            for name, p in owner.parameters.items():
                state = self.state.setdefault(name, {})
                decay = owner.weight_decay
                update(p, gradients[name], state, owner.rule, index + 1, owner.lr * factor, decay, settings)

    def step(self, index: int, micro_batches: list[Batch]) -> tuple[float, float]:
        """(loss, gradient norm before clipping) of step `index`."""
        loss, gradients = self.gradients(micro_batches)
        norm = self.clip(gradients)
        self.update(index, gradients)
        return loss, norm


def update(
    p: Tensor,
    g: Tensor,
    state: dict[str, Tensor],
    rule: str,
    t: int,
    lr: float,
    decay: float,
    settings: OptimizerSection,
) -> None:
    """Update one whole parameter in place at its t-th step, t from 1. `state` holds its moments, at first nothing."""

    def moment(name: str, beta: float, value: Any) -> Tensor:
        state[name] = beta * state.get(name, torch.zeros_like(p)) + value
        return state[name]

    if rule in ("sgd", "rmsprop"):
        g = g + decay * p
        if rule == "rmsprop":
            v = moment("v", settings.alpha, (1 - settings.alpha) * g**2)
            g = g / (v.sqrt() + settings.eps)
        p -= lr * moment("m", settings.momentum, g)
        return
    if rule == "adamw":
        m = moment("m", settings.beta1, (1 - settings.beta1) * g) / (1 - settings.beta1**t)
        v = moment("v", settings.beta2, (1 - settings.beta2) * g**2) / (1 - settings.beta2**t)
        direction = m / (v.sqrt() + settings.eps)
    elif rule == "lion":
        before = state.get("m", torch.zeros_like(p))
        direction = torch.sign(settings.beta1 * before + (1 - settings.beta1) * g)
        moment("m", settings.beta2, (1 - settings.beta2) * g)
    else:
        beta = settings.muon_momentum
        m = moment("m", beta, (1 - beta) * g)
        direction = newton_schulz((1 - beta) * g + beta * m) * update_scale(p.shape, settings.muon_scale)
    mask = direction * p >= 0 if settings.cautious_decay else 1.0
    p -= lr * (direction + decay * mask * p)


def newton_schulz(g: Tensor) -> Tensor:
    """The odd polynomial a x + b (x x^T) x + c (x x^T)^2 x, five times, of g over its Frobenius norm."""
    a, b, c = COEFFICIENTS
    x = g / g.norm().clamp(min=EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        x = a * x + b * x @ (x.T @ x) + c * x @ (x.T @ x) @ (x.T @ x)
    return x
