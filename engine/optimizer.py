"""Optimisers, built by us and handed to DeepSpeed, so that every ZeRO stage steps with the same code."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from config.optimizer_schema import OptimizerSection
from engine.dist import World, gather_objects
from engine.element_wise import AdamW, Lion
from engine.fragments import fragments, owners, parameter_shapes, replicated
from engine.muon import Exchange, Muon, Piece
from engine.ownership import Ownership


def build_optimizer(owned: list[Ownership], settings: OptimizerSection, *, bf16: bool) -> torch.optim.Optimizer:
    """The optimiser the recipe names. Weight decay is decoupled for adamw, muon and lion, L2 for sgd and rmsprop.

    `bf16`: the run computes in bf16, and Muon's products then do, too; in fp32 they stay fp32.
    """
    groups = [owner.group() for owner in owned]
    lr, betas = settings.lr, (settings.beta1, settings.beta2)
    if settings.name == "lion":
        return Lion(groups, lr=lr, betas=betas)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum)
    if settings.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=lr, alpha=settings.alpha, eps=settings.eps, momentum=settings.momentum)
    adam: dict[str, Any] = dict(lr=lr, betas=betas, eps=settings.eps, cautious=settings.cautious_decay)
    if settings.name == "adamw":
        return AdamW(groups, **adam)
    return Muon(
        groups,
        matrices=frozenset(name for owner in owned if owner.rule == "muon" for name in owner.parameters),
        momentum=settings.muon_momentum,
        scale=settings.muon_scale,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        **adam,
    )


def locate_matrices(optimizer: Muon, engine: Any, world: World) -> None:
    """Tell Muon where ZeRO put its matrices; all ranks call it together, once DeepSpeed has cut the shards."""
    pieces: dict[Tensor, list[Piece]] = defaultdict(list)
    for f in fragments(engine):
        if f.name in optimizer.matrices:
            pieces[f.owner].append(Piece(f.name, f.start, f.numel, f.offset))
    flats, shapes = owners(engine), parameter_shapes(engine)
    mine = [pieces[flat] for flat in flats]
    everyone, rank = ([mine], 0) if replicated(engine) else (gather_objects(mine), world.rank)
    exchanges = {flat: Exchange([of[i] for of in everyone], rank, shapes) for i, flat in enumerate(flats)}
    optimizer.locate(exchanges, world.device)
