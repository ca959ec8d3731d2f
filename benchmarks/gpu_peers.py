"""One training step on one device: by the engine, and by plain PyTorch with the same model."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_clock import DEVICE
from benchmarks.step_peers import synthetic_tokens
from config import RunConfig, TransformerConfig
from data.batch import Batch, mask_documents
from model import build, choose_kernel, compile_blocks, init_weights

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


@functools.lru_cache(maxsize=1)
def first_weights(config: TransformerConfig, seed: int) -> dict[str, Tensor]:
    """Drawn once for all steps of a model, on the CPU: a billion normal numbers take a while."""
    model = build(config)
    init_weights(model, config, seed)
    return model.state_dict()


def plain_torch(config: RunConfig) -> Step:
    """The same model, torch's fused AdamW and autocast, without DeepSpeed."""
    from engine.objective import causal_lm
    from engine.ownership import ownership

    in_bf16, settings = config.engine.precision == "bf16_autocast", config.optimizer
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    kernel = choose_kernel(config.model, DEVICE, dtype, config.data.document_masking, config.engine.kernel)
    with DEVICE:
        model = build(config.model, kernel=kernel, loss_chunk_tokens=config.engine.loss_chunk_tokens)
    model.load_state_dict(first_weights(config.model, config.run.seed))
    if config.engine.compile == "on":
        compile_blocks(model)
    groups = [owner.group() for owner in ownership(model, settings)]
    optimizer = torch.optim.AdamW(groups, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True)
    batches = micro_batches(config)
    scale = 1 / sum(batch.targets()["lm"] for batch in batches)

    def step() -> Tensor:
        mean = torch.zeros((), device=DEVICE)
        for batch in batches:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=in_bf16):
                loss = causal_lm(model, batch, DEVICE)["lm"]
            (loss.total * scale).backward()
            mean += loss.total.detach() * scale
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return mean

    return step
