"""What is alive while a model is built, measured in a process of its own."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config.derive import derive
from config.device import cpu_info
from config.ds_json import deepspeed_json
from engine.dist import connect
from engine.weights import fill_weights, sharded_construction
from model import build
from tests.tiny import tiny_config


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made under it that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._watch(leaf.untyped_storage())
        return result

    def _watch(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or not size:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def bytes_while_building(cases: list[dict[str, Any]]) -> list[int]:
    """Peak bytes of tensors alive while each case's model is built and filled."""
    world = connect(60)
    peaks = []
    for case in cases:
        config = tiny_config(**case)
        ds_json = deepspeed_json(config, derive(config, world.size), "fp32", cpu_info())
        with LiveBytes() as live:
            with sharded_construction(ds_json):
                model = build(config.model)
            fill_weights(model, config.model, config.run.seed)
        peaks.append(live.peak)
    return peaks
