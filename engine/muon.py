"""Muon: momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon), over ZeRO's shards.

Momentum is element-wise and lives where ZeRO keeps the weights' fp32 shards, so it is saved and moved like any other
moment. Only the orthogonalisation needs whole matrices: each matrix has a home rank, to which its pieces travel and
from which the orthogonalised pieces come back (as in Liu et al., arXiv:2502.16982, section 2.3, at every ZeRO stage).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from engine.element_wise import AdamW, decay_

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
EPS = 1e-7
MOMENTUM = "momentum_buffer"

Scale = Literal["match_rms", "spectral"]


def orthogonalize(matrix_RC: Tensor) -> Tensor:
    """About U V^T of the matrix's U S V^T, by Newton-Schulz in the matrix's own precision; singular values come out
    between 0.7 and 1.2. Coefficients and the five steps are Jordan's."""
    a, b, c = COEFFICIENTS
    wide = matrix_RC.shape[0] <= matrix_RC.shape[1]
    x = matrix_RC if wide else matrix_RC.T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def update_scale(shape: Sequence[int], scale: Scale) -> float:
    """Factor on the orthogonalised update of a [rows, columns] weight. match_rms: 0.2 sqrt(max(rows, columns)), an
    update as large as AdamW's (arXiv:2502.16982, section 2.2); spectral: sqrt(max(1, rows / columns)), Jordan's."""
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if scale == "match_rms" else math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True)
class Piece:
    """A run of elements of one flattened matrix within a rank's flat tensor."""

    name: str
    start: int
    """First element within the matrix."""
    numel: int
    offset: int
    """First element within the flat tensor."""


class Exchange:
    """Sends the pieces of one flat tensor to their matrices' home ranks, and the orthogonalised pieces back.

    `pieces_of` holds every rank's pieces; with one entry nothing travels. Matrices are spread over the ranks by the
    cost of their products.
    """

    def __init__(self, pieces_of: Sequence[Sequence[Piece]], rank: int, shapes: Mapping[str, Sequence[int]]):
        self.shapes = shapes
        ranks = len(pieces_of)
        names = sorted({piece.name for pieces in pieces_of for piece in pieces}, key=lambda n: (-cost(shapes[n]), n))
        home, load = {}, [0] * ranks
        for name in names:
            home[name] = load.index(min(load))
            load[home[name]] += cost(shapes[name])
        self.travels = ranks > 1
        self.sent = [[piece for piece in pieces_of[rank] if home[piece.name] == other] for other in range(ranks)]
        self.received = [[piece for piece in pieces if home[piece.name] == rank] for pieces in pieces_of]

    def orthogonalize(self, flat: Tensor, scale: Scale, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The flat tensor with every piece replaced by its part of the scaled, orthogonalised matrix."""
        outgoing = [flat.narrow(0, piece.offset, piece.numel) for pieces in self.sent for piece in pieces]
        pieces = self._swap(torch.cat([*outgoing, flat[:0]]).to(device, dtype), self.sent, self.received)
        pieces = self._swap(self._orthogonalize_mine(pieces, scale), self.received, self.sent)
        result = torch.zeros_like(flat)
        for piece, value in zip(_flat(self.sent), pieces.split([p.numel for p in _flat(self.sent)]), strict=True):
            result.narrow(0, piece.offset, piece.numel).copy_(value)
        return result

    def _swap(self, values: Tensor, outgoing: list[list[Piece]], incoming: list[list[Piece]]) -> Tensor:
        if not self.travels:
            return values
        sizes, counts = ([sum(p.numel for p in pieces) for pieces in side] for side in (incoming, outgoing))
        arrived = values.new_empty(sum(sizes))
        dist.all_to_all_single(arrived, values, sizes, counts)
        return arrived

    def _orthogonalize_mine(self, values: Tensor, scale: Scale) -> Tensor:
        arrived = _flat(self.received)
        matrices = {p.name: values.new_empty(math.prod(self.shapes[p.name])) for p in arrived}
        for piece, value in zip(arrived, values.split([p.numel for p in arrived]), strict=True):
            matrices[piece.name].narrow(0, piece.start, piece.numel).copy_(value)
        for name, flat in matrices.items():
            shape = self.shapes[name]
            flat.copy_((orthogonalize(flat.view(*shape)) * update_scale(shape, scale)).reshape(-1))
        return torch.cat([*(matrices[p.name].narrow(0, p.start, p.numel) for p in arrived), values[:0]])


class Muon(AdamW):
    """Muon for groups with `rule: muon`, AdamW for the others. `locate` must be called before the first step.

    `matrices` are the names Muon owns; the Newton-Schulz products run in `dtype`. Nesterov momentum; decoupled weight
    decay at the unscaled rate.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        matrices: frozenset[str],
        momentum: float,
        scale: Scale,
        dtype: torch.dtype,
        **adam: Any,
    ):
        super().__init__(groups, **adam)
        self.matrices, self.momentum, self.scale, self.dtype = matrices, momentum, scale, dtype
        self._exchanges: dict[Tensor, Exchange] = {}
        self._device = torch.device("cpu")

    def locate(self, exchanges: dict[Tensor, Exchange], device: torch.device) -> None:
        """Say which flat tensor holds which pieces of which matrices, and where the products run."""
        self._exchanges, self._device = exchanges, device

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        groups = self.param_groups
        for group in groups:
            if group["rule"] == "muon":
                for p in group["params"]:
                    if p.grad is not None:
                        self._step_shard(p, p.grad, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if group["rule"] == "adamw"]
        super().step(closure)
        self.param_groups = groups

    def _step_shard(self, p: Tensor, grad: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if MOMENTUM not in state:
            state[MOMENTUM] = torch.zeros_like(p)
        state[MOMENTUM].lerp_(grad, 1 - self.momentum)
        nesterov = grad.lerp(state[MOMENTUM], self.momentum)
        update = self._exchanges[p].orthogonalize(nesterov.view(-1), self.scale, self.dtype, self._device)
        update = update.view_as(p)
        if self.cautious:
            decay_(p, update, lr * weight_decay)
        else:
            p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr)


def cost(shape: Sequence[int]) -> int:
    """Multiplications of one Newton-Schulz step, up to a factor."""
    return math.prod(shape) * min(shape)


def _flat(pieces: list[list[Piece]]) -> list[Piece]:
    return [piece for some in pieces for piece in some]
