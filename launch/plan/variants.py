"""The DeepSpeed configurations that a plan chooses among: the shipped ones and their relatives."""

import copy
from typing import Any

from config import ConfigError
from config.ds_config import DSConfig, find_ds_config, read_ds_config

PLAIN = ("zero0", "zero1", "zero2", "zero3")
OFFLOADED = ("zero2_offload", "zero3_offload")
HOST = {"device": "cpu", "pin_memory": "auto"}


def variants(recipes: str, nodes: int, gpus_per_node: int, offload: bool) -> dict[str, DSConfig]:
    """By the name or path that a recipe writes: the recipe's own first, then the shipped ones, then what they lack: the
    optimiser alone in host memory at stages 1 and 3, and second shards (ZeRO++'s hpZ) for nodes that have not 8 GPUs.

    Without `offload` only the recipe's own may use it: the host memory of a CPU rank is its memory already. zero3_plus is left out unless the recipe has it: quantised weights and gradients change what is trained.
    """
    names = [*PLAIN, *OFFLOADED * offload, *["zero3_hpz"] * (nodes > 1 and gpus_per_node == 8)]
    own = find_ds_config(recipes).resolve()
    found = {recipes: read_ds_config(recipes)}
    found |= {name: read_ds_config(name) for name in names if find_ds_config(name).resolve() != own}
    made = []
    if offload:
        made += [
            _variant("zero1", "zero1_offload", offload_optimizer=HOST),
            _variant("zero3", "zero3_offload_optimizer", offload_optimizer=HOST),
        ]
    if nodes > 1 and gpus_per_node not in (1, 8):
        made.append(_variant("zero3_hpz", f"zero3_hpz_{gpus_per_node}", zero_hpz_partition_size=gpus_per_node))
    return found | {ds_config.path.removesuffix(".json"): ds_config for ds_config in made}


def _variant(base: str, name: str, **zero: Any) -> DSConfig:
    """A shipped file with other settings in `zero_optimization`, for which a file has to be written yet."""
    values = copy.deepcopy(read_ds_config(base).values)
    values["zero_optimization"] |= copy.deepcopy(zero)
    return DSConfig(f"{name}.json", values)


def is_written(name: str) -> bool:
    """Whether a recipe can name it as it is."""
    try:
        return find_ds_config(name).is_file()
    except ConfigError:
        return False
