"""What is minimised: a function from the model and a batch to Loss(total, count)."""

import numpy as np
import torch
from torch import nn

from data.batch import IGNORE, Batch
from model.head import Loss
from model.layout import Layout


def causal_lm(model: nn.Module, batch: Batch, device: torch.device) -> Loss:
    """Sum of next-token cross-entropies over the valid targets of one micro-batch."""
    tokens_BT, labels_BT = to_device(batch.tokens_BT, device), to_device(batch.labels_BT, device)
    return model(tokens_BT, labels_BT, layout=layout_of(batch, device))


def layout_of(batch: Batch, device: torch.device) -> Layout | None:
    """Document boundaries as the model wants them; None for plain causal rows."""
    if batch.cu_seqlens is None:
        return None
    rows, length = batch.tokens_BT.shape
    return Layout.from_cu_seqlens(batch.cu_seqlens, rows, length, device)


def count_targets(batches: list[Batch]) -> int:
    """Targets that count towards the loss."""
    return sum(int(np.count_nonzero(batch.labels_BT != IGNORE)) for batch in batches)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
