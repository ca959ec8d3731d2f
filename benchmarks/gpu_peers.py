"""One training step on one device: by the engine, and by plain PyTorch with the same model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_clock import DEVICE
from benchmarks.step_peers import synthetic_tokens
from config import RunConfig
from data.batch import Batch, mask_documents
from model import build, choose_kernel, compile_blocks, init_weights
from model.layout import Layout

Step = Callable[[], Any]
"""Takes one optimiser step and returns the loss."""
DOCUMENT = 300
"""Tokens of each document under document masking."""


def micro_batches(config: RunConfig) -> list[Batch]:
    """One global batch of random tokens, cut into documents if they are masked."""
    rows, micro = synthetic_tokens(config), config.batch.micro_batch_size
    parts = [rows[first : first + micro] for first in range(0, len(rows), micro)]
    if config.data.document_masking:
        return [mask_documents(part, np.arange(DOCUMENT, part[:, 1:].size, DOCUMENT)) for part in parts]
    return [Batch(part[:, :-1].copy(), part[:, 1:].copy(), None, config.data.row_length) for part in parts]


def groundwork(config: RunConfig) -> Step:
    """The engine that train.py drives."""
    from engine.build import build_engine
    from engine.dist import connect

    engine, _ = build_engine(config, connect(config.engine.communication_timeout))
    batches = micro_batches(config)
    return lambda: engine.step(0, batches).loss


def plain_torch(config: RunConfig) -> Step:
    """The same model, torch's fused AdamW and autocast, without DeepSpeed."""
    from engine.ownership import ownership

    in_bf16, settings = config.engine.precision == "bf16_autocast", config.optimizer
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    kernel = choose_kernel(config.model, DEVICE, dtype, config.data.document_masking, config.engine.kernel)
    with DEVICE:
        model = build(config.model, kernel=kernel, loss_chunk_tokens=config.engine.loss_chunk_tokens)
    init_weights(model, config.model, config.run.seed)
    if config.engine.compile == "on":
        compile_blocks(model)
    groups = [owner.group() for owner in ownership(model, settings)]
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
    batches = micro_batches(config)
    scale = 1 / sum(int((batch.labels_BT >= 0).sum()) for batch in batches)

    def step() -> Tensor:
        mean = torch.zeros((), device=DEVICE)
        for batch in batches:
            rows, length = batch.tokens_BT.shape
            bounds = batch.cu_seqlens
            layout = None if bounds is None else Layout.from_cu_seqlens(bounds, rows, length, DEVICE)
            tokens_BT, labels_BT = (torch.from_numpy(x).to(DEVICE) for x in (batch.tokens_BT, batch.labels_BT))
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=in_bf16):
                loss = model(tokens_BT, labels_BT, layout=layout)
            (loss.total * scale).backward()
            mean += loss.total.detach() * scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return mean

    return step
