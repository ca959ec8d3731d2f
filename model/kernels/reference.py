"""The formula of attention written out: the truth for the other kernels."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layout import Layout, dense_mask
from model.spec import AttentionSpec


def attend_reference(
    q_BTHE: Tensor,
    k_BSKE: Tensor,
    v_BSKE: Tensor,
    *,
    spec: AttentionSpec,
    layout: Layout | None,
    dropout: float,
    bias_HTS: Tensor | None = None,
    keys: Layout | None = None,
) -> Tensor:
    """softmax(cap(scale q k^T + bias)) v in float32, with all scores in memory."""
    q, k, v = (x.transpose(1, 2).float() for x in (q_BTHE, k_BSKE, v_BSKE))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores_BHTS = q @ k.transpose(-2, -1) * (spec.scale or q.shape[-1] ** -0.5)
    if bias_HTS is not None:
        scores_BHTS = scores_BHTS + bias_HTS
    if spec.softcap is not None:
        scores_BHTS = spec.softcap * torch.tanh(scores_BHTS / spec.softcap)
    visible = dense_mask(spec, layout, keys, q.shape[2], k.shape[2], q.device)
    weights_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf).softmax(-1)
    out_BHTE = F.dropout(weights_BHTS, dropout) @ v
    return out_BHTE.transpose(1, 2).to(v_BSKE.dtype)


def with_dense_mask(spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None) -> Layout | None:
    """The layout with a dense mask; nothing for whole rows."""
    holder = keys or layout
    if holder is None:
        return None
    length = holder.document_ids_BT.shape[1]
    return replace(holder, mask_B1TS=dense_mask(spec, layout, keys, x_BTD.shape[1], length, x_BTD.device))
