"""What a kernel is: a function that attends, and what it has ready before the blocks run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from model.layout import Layout
from model.spec import AttentionSpec

Attend = Callable[..., Tensor]
"""attend(q_BTHE, k_BSKE, v_BSKE, *, spec, layout, dropout, bias_HTS=None, keys=None) -> [B, T, H, E], in the dtype of v.

Self-attention: S = T, or the last T of S cached tokens and no layout. Cross-attention: spec is bidirectional, `keys` is
the keys' layout or None if all are seen. `bias_HTS` is added to the scaled scores.
"""

Prepare = Callable[[AttentionSpec, Tensor, Layout | None, Layout | None], Layout | None]


class Connection(NamedTuple):
    """An imported kernel."""

    attend: Attend
    features: frozenset[str]
    """Of FEATURES, those that the installed version has."""


FEATURES = ("bidirectional", "cross", "window", "softcap", "scale", "bias", "dropout")
"""What a model may ask for besides causal rows, grouped heads and documents, which every kernel has."""


def as_it_is(spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None) -> Layout | None:
    return layout if keys is None else keys


@dataclass(frozen=True)
class Kernel:
    """A kernel that works here."""

    name: str
    attend: Attend
    prepare_mask: Prepare = as_it_is

    def prepare(
        self, spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None = None
    ) -> Layout | None:
        """The layout, or in cross-attention the keys', with the mask that this kernel needs for queries of x.

        Once for all blocks with this spec; a kernel given a layout without it works it out in each.
        """
        return self.prepare_mask(spec, x_BTD, layout, keys)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Backend:
    """What a kernel supports. The defaults are those of the GPU kernels."""

    name: str
    """What a recipe calls it."""
    source: str
    """Where it comes from, for people."""
    connect: Callable[[], Connection]
    """Imports it; fails if the package is missing or broken."""
    gpus: tuple[int, ...] = (8, 9, 10, 11, 12)
    """Major compute capabilities; empty: any device."""
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    largest_head: int | None = 256
    """Largest head size, which is then a multiple of 8."""
    pays_for: frozenset[str] = frozenset()
    """Left to itself, the choice takes it only for one of these, FEATURES or documents; empty: always."""
    prepare: Prepare = as_it_is
