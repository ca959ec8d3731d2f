"""What goes through each module of a model, shown in the order in which it happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["weight", "input", "output", "gradient", "weight gradient"]
"""gradient: that of the loss with respect to an output."""

See = Callable[[Kind, str, Tensor], None]
"""Gets the kind of a tensor, the name of its module, or of the parameter, and the tensor."""

SILENT = (nn.ModuleList, nn.Identity, nn.Dropout)


@contextmanager
def probed(model: nn.Module, see: See) -> Iterator[None]:
    """Show `see` every tensor of the training passes inside the context.

    Hooks do not reach into compiled blocks, so these run eagerly. What activation checkpointing computes once more in
    the backward pass is not shown again. Under ZeRO 3 weights are shown as they are gathered.
    """
    handles = []
    for name, module in model.named_modules():
        if name and not isinstance(module, SILENT):
            handles.append(module.register_forward_pre_hook(_before(name, see), with_kwargs=True))
            handles.append(module.register_forward_hook(_after(name, see)))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    handles += [p.register_hook(partial(see, "weight gradient", name)) for name, p in trained]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _before(name: str, see: See) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if module.training and not _recomputing():
            for parameter, weight in module.named_parameters(recurse=False):
                see("weight", f"{name}.{parameter}", weight)
            for tensor in _floating((*inputs, *named.values())):
                see("input", name, tensor)

    return hook


def _after(name: str, see: See) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module.training and not _recomputing():
            for tensor in _floating(outputs):
                see("output", name, tensor)
                if tensor.requires_grad:
                    tensor.register_hook(partial(see, "gradient", name))

    return hook


def _recomputing() -> bool:
    """Whether this runs inside a backward pass, as torch.utils.checkpoint itself asks."""
    return torch._C._current_graph_task_id() != -1


def _floating(value: Any) -> list[Tensor]:
    values = value if isinstance(value, tuple | list) else [value]
    return [v for v in values if torch.is_tensor(v) and v.is_floating_point()]
