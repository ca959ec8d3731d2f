"""What is minimised: a function from the model and a batch to the parts of the loss, each a Loss(total, count).

Letters: B rows, T row length, D width, N rows of all ranks.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.objective_schema import Contrastive, ObjectiveConfig
from config.supervised_schema import HEADED
from data.batch import IGNORE, Batch
from engine.dist import gather_rows
from model.head import Loss
from model.layout import Layout
from model.task_head import TaskLoss

Objective = Callable[[nn.Module, Batch, torch.device], Mapping[str, Loss | TaskLoss]]
TEMPERATURE = "temperature.log_scale"
"""Name of the one parameter that belongs to an objective, not to the model."""
STEEPEST = math.log(100)
"""Similarities are scaled by at most 100, so that a learnable temperature stays above 0.01 (CLIP, arXiv:2103.00020,
section 2.5)."""


def choose_objective(config: ObjectiveConfig, alone: bool = False) -> Objective:
    """The function that a recipe's objective names. `alone`: this process holds the whole batch, whatever ranks there are."""
    if isinstance(config, Contrastive):
        return contrastive(config, alone)
    if isinstance(config, HEADED):
        return labelled
    language = {"causal_lm": causal_lm, "instruction": causal_lm, "masked_lm": masked_lm}
    return language.get(config.name, sequence_to_sequence)


def causal_lm(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
    """Next-token cross-entropies."""
    tokens_BT, labels_BT = to_device(batch.tokens_BT, device), to_device(batch.labels_BT, device)
    return {"lm": model(tokens_BT, labels_BT, layout=layout_of(batch, device))}


def masked_lm(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
    """Cross-entropies of hidden tokens ("mlm") and, where rows are pairs, of their class ("pairs")."""
    return model(
        to_device(batch.tokens_BT, device),
        to_device(batch.labels_BT, device),
        layout=layout_of(batch, device),
        token_types_BT=to_device(batch.token_types_BT, device),
        pair_labels_B=to_device(batch.pair_labels_B, device),
    )


def labelled(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, TaskLoss]:
    """The loss of a task's head under the objective's name."""
    (part,) = batch.parts
    tokens_BT, labels_BT = to_device(batch.tokens_BT, device), to_device(batch.labels_BT, device)
    types = {} if batch.token_types_BT is None else {"token_types_BT": to_device(batch.token_types_BT, device)}
    loss = model(tokens_BT, labels_BT, layout=layout_of(batch, device), **types)
    return {part: loss["mlm"] if isinstance(loss, dict) else loss}


def sequence_to_sequence(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
    """Cross-entropies of what a decoder writes about a source."""
    source_BS, lengths_B = batch.source_BS, batch.source_lengths_B
    assert source_BS is not None
    layout = None if lengths_B is None else Layout.padded(lengths_B, source_BS.shape[1], device)
    tokens_BT, labels_BT = to_device(batch.tokens_BT, device), to_device(batch.labels_BT, device)
    return {"lm": model(to_device(source_BS, device), tokens_BT, labels_BT, source_layout=layout)}


def contrastive(config: Contrastive, alone: bool) -> Objective:
    """InfoNCE (arXiv:1807.03748): each anchor's positive against the positives of all rows of all ranks.

    The negatives are those of one micro-batch over all ranks: accumulation adds anchors to a step, but no negatives.
    """

    def objective(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
        tokens_BT, lengths_B = to_device(batch.tokens_BT, device), to_device(batch.lengths_B, device)
        hidden_BTD = model(tokens_BT, layout=layout_of(batch, device))
        temperature: Tensor | float = config.temperature
        if config.learnable_temperature:
            hidden_BTD, temperature = hidden_BTD
        vector_BD = F.normalize(pool(hidden_BTD.float(), lengths_B, config.pooling), dim=1)
        anchor_BD, positive_BD = vector_BD.chunk(2)
        assert batch.pair_labels_B is not None
        counts_B = to_device(batch.pair_labels_B != IGNORE, device)
        return {"contrastive": info_nce(anchor_BD, positive_BD, counts_B, temperature, alone)}

    return objective


def info_nce(
    anchor_BD: Tensor, positive_BD: Tensor, counts_B: Tensor, temperature: Tensor | float, alone: bool = False
) -> Loss:
    """Cross-entropies of each anchor's own positive among those of all ranks, or of this one `alone`. Rows that do not
    count are no candidates."""
    candidate_ND, counts_N, first = positive_BD, counts_B, 0
    if not alone:
        (candidate_ND, first), (counts_N, _) = gather_rows(positive_BD), gather_rows(counts_B)
    scores_BN = (anchor_BD @ candidate_ND.T / temperature).masked_fill(~counts_N, -torch.inf)
    own_B = torch.arange(first, first + len(anchor_BD), device=anchor_BD.device)
    total = F.cross_entropy(scores_BN, own_B.masked_fill(~counts_B, IGNORE), ignore_index=IGNORE, reduction="sum")
    return Loss(total, counts_B.sum())


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


def add_temperature(model: nn.Module, config: ObjectiveConfig) -> None:
    """Give the model the parameter that a learnable temperature is. It then returns (hidden states, temperature), so that
    ZeRO 3 gathers the parameter with the others."""
    if isinstance(config, Contrastive) and config.learnable_temperature:
        model.temperature = Temperature(config.temperature)
        model.register_forward_hook(lambda module, args, hidden_BTD: (hidden_BTD, module.temperature()))


def layout_of(batch: Batch, device: torch.device) -> Layout | None:
    """Which tokens belong together; None for rows that are one sequence."""
    rows, length = batch.tokens_BT.shape
    if batch.lengths_B is not None:
        return Layout.padded(batch.lengths_B, length, device)
    if batch.cu_seqlens is None:
        return None
    return Layout.from_cu_seqlens(batch.cu_seqlens, rows, length, device)


def count_targets(batches: list[Batch]) -> dict[str, int]:
    """Targets that count towards each part of the loss."""
    counts: dict[str, int] = {}
    for batch in batches:
        for part, count in batch.targets().items():
            counts[part] = counts.get(part, 0) + count
    return counts


def to_device(array: np.ndarray | None, device: torch.device) -> Any:
    """The tensor of an array; None for what a batch does not have."""
    if array is None:
        return None
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
