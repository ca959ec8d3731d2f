"""Which update rule, learning rate and weight decay own which parameters."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from config.optimizer_schema import OptimizerSection


@dataclass(frozen=True)
class Ownership:
    """Parameters that are updated alike: one group of the optimiser."""

    rule: str
    """adamw, muon, sgd, rmsprop or lion."""
    lr: float
    """Peak learning rate; the schedule multiplies it."""
    weight_decay: float
    parameters: dict[str, nn.Parameter]

    def group(self) -> dict[str, Any]:
        """As torch.optim takes it. Our optimisers read `rule`, the engine reads `peak_lr` at every step."""
        return {
            "params": list(self.parameters.values()),
            "rule": self.rule,
            "lr": self.lr,
            "peak_lr": self.lr,
            "weight_decay": self.weight_decay,
        }

    @property
    def title(self) -> str:
        numel = sum(getattr(p, "ds_numel", p.numel()) for p in self.parameters.values())
        return f"{self.rule} lr {self.lr:g} decay {self.weight_decay:g}: {numel:,} parameters"

    def __str__(self) -> str:
        patterns = Counter(re.sub(r"\.\d+\.", ".*.", name) for name in self.parameters)
        names = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in patterns.items())
        return f"{self.title}, {names}"


def ownership(model: nn.Module, settings: OptimizerSection) -> list[Ownership]:
    """Every trainable parameter once, a tied one under its first name. Muon owns the matrices inside blocks, AdamW the
    rest: embeddings, heads, norms and biases are not maps between hidden states (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon). Projections are separate matrices here, so none is fused with another's."""
    owners: dict[tuple[str, float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = _owner(name, len(getattr(parameter, "ds_shape", parameter.shape)), settings)
            owners.setdefault(owner, {})[name] = parameter
    return [Ownership(*owner, parameters) for owner, parameters in owners.items()]


def _owner(name: str, dimensions: int, settings: OptimizerSection) -> tuple[str, float, float]:
    """(rule, peak learning rate, weight decay) of a parameter."""
    embedding, head = "embed" in name, "lm_head" in name
    hidden_matrix = dimensions == 2 and "blocks." in name and not embedding and not head
    muon = settings.name == "muon"
    lr = settings.lr if hidden_matrix or not muon else settings.adam_lr or settings.lr
    lr *= settings.embedding_lr_ratio if embedding else settings.head_lr_ratio if head else 1.0
    decayed = dimensions >= 2 and (settings.decay_embeddings or not embedding)
    rule = "adamw" if muon and not hidden_matrix else settings.name
    return rule, lr, settings.weight_decay if decayed else 0.0
