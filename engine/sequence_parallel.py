"""Ulysses sequence parallelism (arXiv:2309.14509): neighbouring ranks share rows, each holding a part of their tokens.

Everything but attention looks at one token at a time. For attention an all-to-all trades the part of the row with all
heads for the whole row with a part of the heads, and another one trades back. To ZeRO all ranks are data parallel:
each of them adds the gradients of its tokens.

Letters: B rows, T row length, P ranks that share rows, H query heads, K key-value heads, E head size.
"""

import functools
import inspect
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config import Choice
from model import Kernel, Layout


@functools.cache
def sequence_group(size: int) -> dist.ProcessGroup:
    """This rank's group of `size` neighbours; all ranks call it together."""
    starts = range(0, dist.get_world_size(), size)
    groups = [dist.new_group(list(range(start, start + size))) for start in starts]
    return groups[dist.get_rank() // size]


def share_attention(choice: Choice[Kernel], size: int) -> Choice[Kernel]:
    """The kernel with both exchanges around it, for rows of which this rank holds one of `size` parts."""
    from deepspeed.sequence.layer import DistributedAttention

    kernel, group = choice.value, sequence_group(size)
    exchange = DistributedAttention(kernel.attend, group, scatter_idx=2, gather_idx=1)

    def attend(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, *, layout: Layout | None, **options: Any) -> Tensor:
        if layout is None or q_BTHE.shape[1] == layout.document_ids_BT.shape[1]:
            return kernel.attend(q_BTHE, k_BTKE, v_BTKE, layout=layout, **options)
        copies = copies_of_kv_heads(k_BTKE.shape[2], size)
        k_BTKE, v_BTKE = (x.repeat_interleave(copies, dim=2) if copies > 1 else x for x in (k_BTKE, v_BTKE))
        if has_whole_rows(layout):
            layout = None
        return exchange(q_BTHE, k_BTKE, v_BTKE, 0, layout=layout, **options)

    # Not traced: the compiler would take the exchange apart, and with it its gradient.
    shared = Kernel(kernel.name, torch.compiler.disable(attend))
    return Choice(shared, f"{choice.reason}; {size} ranks share a row, each attends with a part of the heads")


def copies_of_kv_heads(kv_heads: int, size: int) -> int:
    """How often key-value heads are repeated so that each rank gets those that its query heads need."""
    return next(copies for copies in range(1, size + 1) if kv_heads * copies % size == 0)


def has_whole_rows(layout: Layout) -> bool:
    """Whether each row is one document."""
    return len(layout.cu_seqlens) - 1 == len(layout.document_ids_BT)


def share_rows(model: nn.Module, size: int) -> None:
    """Give the model this rank's part of each row whenever it is called with labels; its positions stay those of the row."""
    signature, index = inspect.signature(model.forward), dist.get_rank() % size

    def part(tensor_BT: Tensor) -> Tensor:
        return tensor_BT.chunk(size, dim=1)[index].contiguous()

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = signature.bind(*args, **kwargs).arguments
        if call.get("labels_BT") is None:
            return args, kwargs
        rows, length = call["labels_BT"].shape
        layout = call.get("layout") or Layout.from_cu_seqlens(
            [0, rows * length], rows, length, call["labels_BT"].device
        )
        parts = {name: part(x) for name, x in call.items() if name.endswith("_BT") and x is not None}
        return (), {**call, **parts, "layout": replace(layout, positions_BT=part(layout.positions_BT))}

    model.register_forward_pre_hook(cut, with_kwargs=True)
