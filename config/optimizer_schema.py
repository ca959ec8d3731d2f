"""Settings of the optimisers, and which of them each one reads."""

from typing import Literal

from pydantic import model_validator

from config.section import Fraction, NonNegativeFloat, PositiveFloat, Section

USED_BY = {
    "adam_lr": ("muon",),
    "cautious_decay": ("adamw", "muon"),
    "beta1": ("adamw", "muon", "lion"),
    "beta2": ("adamw", "muon", "lion"),
    "eps": ("adamw", "muon", "rmsprop"),
    "momentum": ("sgd", "rmsprop"),
    "muon_momentum": ("muon",),
    "muon_scale": ("muon",),
    "alpha": ("rmsprop",),
}
"""Optimisers that read a setting, for those that not all of them read."""


class OptimizerSection(Section):
    """Optimiser."""

    name: Literal["adamw", "muon", "sgd", "rmsprop", "lion"] = "adamw"
    """Update rule. muon: orthogonalised momentum at rate `lr` for the matrices inside blocks, adamw for the rest."""
    lr: PositiveFloat
    """Peak learning rate."""
    adam_lr: PositiveFloat | None = None
    """Peak learning rate of what muon leaves to adamw. Default: lr."""
    embedding_lr_ratio: PositiveFloat = 1.0
    """Factor on the learning rate of embeddings, of a head that is tied to them too."""
    head_lr_ratio: PositiveFloat = 1.0
    """Factor on the learning rate of output heads and poolers."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay (L2 for sgd and rmsprop, as in torch.optim) of matrices; vectors (norms, biases) are not decayed."""
    decay_embeddings: bool = True
    """Apply the weight decay to embeddings."""
    cautious_decay: bool = False
    """Decay a weight only where its update moves it towards zero too (adamw, muon)."""
    beta1: Fraction = 0.9
    """Decay of the first moment (adamw, muon's adamw, lion)."""
    beta2: Fraction = 0.95
    """Decay of the second moment (adamw, muon's adamw), of the momentum (lion)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator (adamw, muon's adamw, rmsprop)."""
    momentum: Fraction = 0.9
    """Momentum (sgd, rmsprop)."""
    muon_momentum: Fraction = 0.95
    """Nesterov momentum of muon's matrices."""
    muon_scale: Literal["match_rms", "spectral"] = "match_rms"
    """Size of muon's update. match_rms: 0.2 sqrt(max(rows, columns)), as large as adamw's, so that its learning rates
    and decays carry over. spectral: sqrt(max(1, rows / columns)), Jordan's, for learning rates about 0.02."""
    alpha: Fraction = 0.99
    """Smoothing of the squared gradient (rmsprop)."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""

    @model_validator(mode="after")
    def _refuse_what_has_no_effect(self) -> "OptimizerSection":
        for setting, rules in USED_BY.items():
            value = getattr(self, setting)
            if self.name not in rules and value != type(self).model_fields[setting].default:
                raise ValueError(
                    f"optimizer.{setting} {value} has no effect on optimizer.name {self.name}, only on "
                    f"{', '.join(rules)}: remove it"
                )
        return self
