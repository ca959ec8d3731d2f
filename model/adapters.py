"""Parameter-efficient training: small modules inside a frozen model. LoRA and AdaLoRA are peft's, Houlsby's are here.

Letters: ... any leading dimensions, D width, M bottleneck.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ConfigError, RunConfig, TransformerConfig
from config.adapter_schema import AdaLoRA, Houlsby, LoRA, NoAdapter, target_matrices
from config.supervised_schema import HEADED

ADAPTER = "default"
"""peft's name of the one adapter in a model."""
BRANCH_OUTPUTS = ("output_proj", "down_proj")
"""The last matrix of each residual branch."""


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))), at first nearly the identity (arXiv:1902.00751, figure 2 and section 3.6)."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x_D: Tensor) -> Tensor:
        return x_D + self.up(F.gelu(self.down(x_D)))


class Bottlenecked(nn.Module):
    """A frozen linear layer with a bottleneck after it."""

    def __init__(self, base_layer: nn.Linear, size: int):
        super().__init__()
        self.base_layer = base_layer
        self.adapter = Bottleneck(base_layer.out_features, size).to(base_layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(self.base_layer(x))


def add_adapter(model: nn.Module, config: RunConfig) -> Any:
    """Freeze the model, but for a task's new head and a learnable temperature, and put the recipe's adapter into it, with
    initial weights that depend on the seed alone.

    Returns peft's tuner, which allocates AdaLoRA's ranks; None if peft has no part in it. Raises ConfigError if peft is
    needed and not installed.
    """
    adapter = config.adapter
    if isinstance(adapter, NoAdapter):
        return None
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        tuner = None
        if isinstance(adapter, Houlsby):
            _add_bottlenecks(model, adapter)
        else:
            tuner = _tuner(model, adapter, config.model, config.schedule.steps)
            module: Any  # of peft's classes, or any other
            for module in model.modules():
                if hasattr(module, "cast_input_dtype_enabled"):
                    module.cast_input_dtype_enabled = False  # autocast does it, with fewer copies
    new = ("temperature.", "lm_head.") if isinstance(config.objective, HEADED) else ("temperature.",)
    for name, parameter in model.named_parameters():
        if name.startswith(new):
            parameter.requires_grad_(True)
    return tuner


def merge_adapter(model: nn.Module) -> None:
    """Add updates of low rank to their frozen matrices, in place: the model is a plain one again. Bottlenecks stay."""
    for parent in list(model.modules()):
        layer: Any  # of peft's classes, or any other
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "get_base_layer"):
                layer.merge()
                setattr(parent, name, layer.get_base_layer())
    model.requires_grad_(True)


def _add_bottlenecks(model: nn.Module, adapter: Houlsby) -> None:
    parents = [(parent, name) for parent in model.modules() for name in BRANCH_OUTPUTS if hasattr(parent, name)]
    for parent, name in parents:
        setattr(parent, name, Bottlenecked(getattr(parent, name), adapter.bottleneck))


def _tuner(model: nn.Module, adapter: LoRA | AdaLoRA, config: TransformerConfig, steps: int) -> Any:
    try:
        import peft
    except ImportError:
        raise ConfigError(f"adapter.name {adapter.name} needs peft: pip install -e '.[finetune]'") from None
    shared: dict[str, Any] = {
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": list(target_matrices(adapter, config)),
    }
    if isinstance(adapter, LoRA):
        return peft.LoraModel(model, peft.LoraConfig(r=adapter.rank, **shared), ADAPTER)
    settings = peft.AdaLoraConfig(
        init_r=adapter.rank,
        target_r=adapter.target_rank,
        tinit=adapter.initial_steps,
        tfinal=adapter.final_steps,
        deltaT=adapter.every_steps,
        beta1=adapter.sensitivity_decay,
        beta2=adapter.uncertainty_decay,
        total_step=steps,
        **shared,
    )
    return peft.AdaLoraModel(model, {ADAPTER: settings}, ADAPTER)
