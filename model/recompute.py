"""Activation checkpointing: what of a block is computed again in the backward pass instead of being kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

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
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=keep_what_is_dear)


def keep_what_is_dear() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Contexts of a block's forward pass and of computing it again.

    torch's own (`create_selective_checkpoint_contexts`) want every operation to come again, which those are not that gather
    a weight under ZeRO 3, and do not notice where a product is written over behind a view, as AdaLoRA's layers do.
    """
    kept: list[Any] = []
    return _Keep(kept), _Reuse(kept)


class _Keep(TorchDispatchMode):
    """Keeps the results of dear operations in their order; None for one that is written over later."""

    def __init__(self, kept: list[Any]):
        super().__init__()
        self.kept = kept

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # as torch's own; else nothing inside could be compiled, as flex attention is

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if written := _written(func, args, kwargs or {}):
            self.kept[:] = [kept if written.isdisjoint(_memory(kept)) else None for kept in self.kept]
        if _is_dear(func, args, kwargs or {}):
            self.kept.append(
                out.detach() if torch.is_tensor(out) else [x.detach() if torch.is_tensor(x) else x for x in out]
            )
        return out


class _Reuse(_Keep):
    """Gives the results kept in place of computing them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = self.kept.pop(0) if _is_dear(func, args, kwargs or {}) else None
        return func(*args, **(kwargs or {})) if kept is None else kept


def _is_dear(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Products and attention; norms, activations, rotations and casts are cheap. Attention with dropout has to come again,
    or what is drawn after it would be drawn otherwise."""
    name = operator.__name__.split(".")[0]
    if "attention" in name or "attn" in name:
        return not _values(operator, args, kwargs).get("dropout_p")
    return name in PRODUCTS


def _written(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> set[int]:
    """Memory that an operation writes into, but for its results."""
    schema = getattr(operator, "_schema", None)
    if schema is None or not schema.is_mutable:
        return set()
    values = _values(operator, args, kwargs)
    names = [argument.name for argument in schema.arguments if argument.is_write]
    return set().union(*(_memory(values.get(name)) for name in names))


def _values(operator: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an operation was given, by name."""
    return {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)} | kwargs


def _memory(values: Any) -> set[int]:
    """Addresses of the memory behind a tensor, or behind those in a list."""
    listed = values if isinstance(values, list | tuple) else [values]
    return {value.untyped_storage().data_ptr() for value in listed if torch.is_tensor(value)}
