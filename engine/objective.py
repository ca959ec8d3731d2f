"""What is minimised: a function from the model and a batch to the parts of the loss, each a Loss(total, count).

Letters: B rows, R rows of B samples that have several, T row length, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from config.contrastive_schema import Similarity
from config.objective_schema import ObjectiveConfig
from config.supervised_schema import HEADED
from data.batch import Batch
from engine.similarity import Temperature, candidates_of, info_nce, of_all_ranks, pool
from model.head import Loss
from model.layout import Layout
from model.task_head import TaskLoss

Objective = Callable[[nn.Module, Batch, torch.device], Mapping[str, Loss | TaskLoss]]
TEMPERATURE = "temperature.log_scale"
"""Name of the one parameter that belongs to an objective, not to the model."""


def choose_objective(config: ObjectiveConfig, alone: bool = False) -> Objective:
    """The function that a recipe's objective names. `alone`: this process holds the whole batch, whatever ranks there are."""
    if isinstance(config, Similarity):
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


def contrastive(config: Similarity, alone: bool) -> Objective:
    """Each anchor's positive among the candidates of one micro-batch of all ranks, or of this one `alone`."""

    def objective(model: nn.Module, batch: Batch, device: torch.device) -> dict[str, Loss]:
        vector_RD, temperature = embed(model, batch, device, config)
        mine = candidates_of(vector_RD, batch)
        candidates, first = (mine, 0) if alone else of_all_ranks(mine)
        assert batch.pair_labels_B is not None
        anchor_BD = vector_RD[: len(batch.pair_labels_B)]
        own_B = torch.arange(first, first + len(anchor_BD), device=device)
        return {"contrastive": info_nce(anchor_BD, own_B, candidates, temperature, config)}

    return objective


def embed(model: nn.Module, batch: Batch, device: torch.device, config: Similarity) -> tuple[Tensor, Tensor]:
    """Vectors of a micro-batch's rows [R, D], not normalised, and the temperature [1], both in fp32."""
    tokens_RT, lengths_R = to_device(batch.tokens_BT, device), to_device(batch.lengths_B, device)
    hidden_RTD = model(tokens_RT, layout=layout_of(batch, device))
    temperature = torch.full((1,), config.temperature, device=device)
    if config.learnable_temperature:
        hidden_RTD, temperature = hidden_RTD
    return pool(hidden_RTD.float(), lengths_R, config.pooling), temperature


def add_temperature(model: nn.Module, config: ObjectiveConfig) -> None:
    """Give the model the parameter that a learnable temperature is, in the others' precision. It then returns (hidden states,
    temperature), so that ZeRO 3 gathers the parameter with the others."""
    if isinstance(config, Similarity) and config.learnable_temperature:
        model.temperature = Temperature(config.temperature).to(next(model.parameters()).dtype)
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
