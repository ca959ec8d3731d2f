"""Initial weights under ZeRO 3: a model that is sharded while it is built, so that no process ever holds it whole."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.model_schema import ModelConfig
from model import init_weights, initial_elements

Elements = Callable[[str, int, int, int], Tensor | None]
"""From a parameter's name, its number of elements and two places in it: the elements from the first place on, up to the
second; fewer or None leave the others as they are."""


def sharded_construction(ds_json: dict[str, Any]) -> AbstractContextManager[Any]:
    """Under ZeRO 3, a context in which each parameter is cut into the ranks' shards as soon as its module is built."""
    if ds_json["zero_optimization"]["stage"] < 3:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.Init(config_dict_or_path=ds_json)


@torch.no_grad()
def fill_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter with its initial value; of a sharded one only this rank's shard is drawn, and nothing is sent."""
    if not any(hasattr(parameter, "ds_tensor") for parameter in model.parameters()):
        return init_weights(model, config, seed)
    fill_elements(model, lambda name, numel, *places: initial_elements(name, numel, config, seed, *places))


@torch.no_grad()
def fill_elements(model: nn.Module, elements: Elements) -> None:
    """Fill parameters, whole or sharded, with what `elements` gives for the places that this rank holds."""
    parameter: Any  # of DeepSpeed's, with attributes of its own
    for name, parameter in model.named_parameters():
        shard, start, numel = parameter.view(-1), 0, parameter.numel()
        if hasattr(parameter, "ds_tensor"):
            shard, numel = parameter.ds_tensor, parameter.ds_numel
            start = shard.ds_numel * dist.get_rank(parameter.ds_process_group)
            shard[max(numel - start, 0) :].zero_()  # the last shard may reach over the end
            parameter.ds_secondary_tensor = (
                None  # hpZ's copy of what was there before; the first gathering makes another
            )
        stop = min(start + shard.numel(), numel)
        values = elements(name, numel, start, stop) if start < stop else None
        if values is not None:
            shard[: len(values)].copy_(values)
