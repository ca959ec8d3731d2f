"""InfoNCE (arXiv:1807.03748): vectors of texts, each anchor's positive among the candidates of all ranks.

Letters: B anchors, R rows of a micro-batch (B anchors, B positives, then hard negatives), M candidates of this rank, N of
all ranks, T row length, D width.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.contrastive_schema import Similarity
from data.batch import IGNORE, Batch
from engine.dist import gather_rows
from model.head import Loss

STEEPEST = math.log(100)
"""Similarities are scaled by at most 100, so that a learnable temperature stays above 0.01 (CLIP, arXiv:2103.00020,
section 2.5)."""


class Candidates(NamedTuple):
    """Positives and hard negatives."""

    vector_ND: Tensor
    counts_N: Tensor
    """False for a filler, which is no candidate."""
    text_N: Tensor | None
    """Number of the text, where duplicates are masked."""
    anchor_N: Tensor | None
    """Number of the text whose positive it is; -1 for a hard negative."""


def candidates_of(vector_RD: Tensor, batch: Batch) -> Candidates:
    """The candidates of a micro-batch: the positive of anchor b is number b."""
    assert batch.pair_labels_B is not None
    anchors, device = len(batch.pair_labels_B), vector_RD.device
    counts_B = torch.from_numpy(batch.pair_labels_B != IGNORE).to(device)
    counts_M = counts_B.repeat(len(vector_RD) // anchors - 1)
    if batch.text_ids_B is None:
        return Candidates(vector_RD[anchors:], counts_M, None, None)
    text_R = torch.from_numpy(batch.text_ids_B).to(device)
    anchor_M = text_R.new_full(counts_M.shape, -1)
    anchor_M[:anchors] = text_R[:anchors]
    return Candidates(vector_RD[anchors:], counts_M, text_R[anchors:], anchor_M)


def of_all_ranks(mine: Candidates) -> tuple[Candidates, int]:
    """Those of all ranks, equally many of each, and the number of this rank's first one."""
    (vector_ND, first), (counts_N, _) = gather_rows(mine.vector_ND), gather_rows(mine.counts_N)
    if mine.text_N is None or mine.anchor_N is None:
        return Candidates(vector_ND, counts_N, None, None), first
    return Candidates(vector_ND, counts_N, gather_rows(mine.text_N)[0], gather_rows(mine.anchor_N)[0]), first


def info_nce(
    anchor_BD: Tensor, own_B: Tensor, candidates: Candidates, temperature: Tensor | float, config: Similarity
) -> Loss:
    """Cross-entropies of each anchor's own positive, candidate `own_B`, by cosine similarity: the weighted mean over the
    first elements of all vectors for each width in `config.dimensions` (Matryoshka, arXiv:2205.13147, equation 1)."""
    excluded_BN, counts_B = _excluded(own_B, candidates), candidates.counts_N[own_B]
    target_B = own_B.masked_fill(~counts_B, IGNORE)
    widths = config.dimensions or (anchor_BD.shape[1],)
    weights = config.dimension_weights or (1.0,) * len(widths)
    total = anchor_BD.new_zeros(())
    for width, weight in zip(widths, weights, strict=True):
        anchors, others = (F.normalize(vector[:, :width], dim=1) for vector in (anchor_BD, candidates.vector_ND))
        scores_BN = (anchors @ others.T / temperature).masked_fill(excluded_BN, -torch.inf)
        entropies = F.cross_entropy(scores_BN, target_B, ignore_index=IGNORE, reduction="sum")
        total = total + weight / sum(weights) * entropies
    return Loss(total, counts_B.sum())


def _excluded(own_B: Tensor, candidates: Candidates) -> Tensor:
    """Candidates that an anchor is not compared with [B or 1, N]: fillers and, if numbered, other copies of its positive
    and positives of its copies."""
    filler_1N = ~candidates.counts_N[None]
    if candidates.text_N is None or candidates.anchor_N is None:
        return filler_1N
    same_BN = candidates.text_N == candidates.text_N[own_B][:, None]
    same_BN |= candidates.anchor_N == candidates.anchor_N[own_B][:, None]
    same_BN[torch.arange(len(own_B), device=own_B.device), own_B] = False
    return filler_1N | same_BN


def pool(hidden_BTD: Tensor, lengths_B: Tensor, pooling: str) -> Tensor:
    """One vector for each row [B, D], from its tokens before the padding."""
    if pooling == "cls":
        return hidden_BTD[:, 0]
    if pooling == "last":
        return hidden_BTD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]
    real_BT1 = (torch.arange(hidden_BTD.shape[1], device=lengths_B.device) < lengths_B[:, None]).unsqueeze(2)
    return (hidden_BTD * real_BT1).sum(1) / lengths_B[:, None]


class Temperature(nn.Module):
    """A learnable temperature, kept as the logarithm of its inverse. At the limit only gradients that lead back pass."""

    def __init__(self, initial: float):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-math.log(initial)]))

    def forward(self) -> Tensor:
        log_scale = self.log_scale.float()
        beyond = (log_scale - STEEPEST).clamp(min=0).detach()
        held = log_scale - beyond
        if held.requires_grad:
            held.register_hook(lambda grad: grad.masked_fill((beyond > 0) & (grad < 0), 0))
        return torch.exp(-held)
