"""DeepSpeed's curves against plain torch: another optimiser step, another loss, one process."""

import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from config.device import cpu_info
from model import build, init_weights
from tests.ranks import run_ranks
from tests.tiny import VOCAB, global_batch, tiny_config
from tests.workers.steps import train_all

STEPS = 4
LEARNING = 6
"""Steps that are enough to learn something, as well."""
STAGES = ["zero0", "zero1", "zero2", "zero3"]
OPTIMIZERS = {
    "adamw": {"name": "adamw", "lr": 1e-2, "weight_decay": 0.1},
    "sgd": {"name": "sgd", "lr": 0.3, "weight_decay": 0.01},
    "rmsprop": {"name": "rmsprop", "lr": 3e-3, "weight_decay": 0.01},
    "lion": {"name": "lion", "lr": 1e-3, "weight_decay": 0.1},
}


@functools.cache
def plain_torch_curve(name: str) -> list[tuple[float, float]]:
    """The same training written without DeepSpeed, without chunks, without micro-batches and without our optimisers."""
    config = tiny_config(optimizer=OPTIMIZERS[name])
    settings = config.optimizer
    model = build(config.model, kernel="reference")
    init_weights(model, config.model, config.run.seed)
    named = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in named.items()}
    decays = {name: settings.weight_decay if p.ndim > 1 else 0.0 for name, p in named.items()}
    groups = [{"params": [p], "weight_decay": decays[name]} for name, p in named.items()]
    steppers = {
        "adamw": lambda: torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        "rmsprop": lambda: torch.optim.RMSprop(groups, alpha=0.99, eps=1e-8, momentum=0.9),
    }
    stepper = steppers[settings.name]() if settings.name in steppers else None
    curve = []
    for step in range(STEPS):
        batch = global_batch(step)
        hidden = model(torch.from_numpy(batch.tokens_BT))
        labels = torch.from_numpy(batch.labels_BT)
        loss = F.cross_entropy(model.logits(hidden).view(-1, VOCAB), labels.reshape(-1), ignore_index=-100)
        model.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * max(step - 2, 0) / 6))
        lr = settings.lr * ((step + 1) / 2 if step < 2 else cosine)
        if stepper:
            for group in stepper.param_groups:
                group["lr"] = lr
            stepper.step()
        else:
            for name, p in named.items():
                lion_update(p, momentum[name], lr, decays[name])
        curve.append((loss.item(), norm.item()))
    return curve


@torch.no_grad()
def lion_update(p: torch.Tensor, m: torch.Tensor, lr: float, decay: float) -> None:
    """Algorithm 2 of arXiv:2302.06675, a line at a time."""
    direction = torch.sign(0.9 * m + (1 - 0.9) * p.grad)
    m.copy_(0.95 * m + (1 - 0.95) * p.grad)
    p.copy_(p - lr * (direction + decay * p))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_stage_and_optimizer_follows_plain_torch(world_size):
    cases = [{"optimizer": OPTIMIZERS["adamw"], "engine": {"ds_config": stage}} for stage in STAGES]
    cases += [
        {"optimizer": settings, "engine": {"ds_config": stage}}
        for name, settings in OPTIMIZERS.items()
        if name != "adamw"
        for stage in ("zero0", "zero1", "zero3")
    ]
    curves = run_ranks(world_size, train_all, cases, STEPS)
    for case, *ranks in zip(cases, *curves, strict=True):
        assert all(curve == ranks[0] for curve in ranks), f"ranks disagree: {case}"
        expected = plain_torch_curve(case["optimizer"]["name"])
        differences = [
            max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(ranks[0], expected, strict=True)
        ]
        assert max(differences) <= 1e-5, f"{case}: largest difference {max(differences):.1e} in {differences}"


def test_low_precision_stays_near_fp32_and_stages_agree():
    cases = [{"engine": {"ds_config": "zero0"}}]
    cases += [{"engine": {"ds_config": s, "precision": "bf16_autocast"}} for s in STAGES]
    cases += [{"engine": {"ds_config": s, "precision": "bf16"}} for s in STAGES[1:]]
    if cpu_info().fp16:
        cases += [{"engine": {"ds_config": s, "precision": "fp16"}} for s in STAGES[1:]]
    (reference, *curves) = run_ranks(1, train_all, cases, LEARNING)[0]
    for case, curve in zip(cases[1:], curves, strict=True):
        difference = max(abs(a[0] - b[0]) for a, b in zip(curve, reference, strict=True))
        assert difference < 0.03, f"{case}: {difference}"
        assert curve[-1][0] < curve[0][0] - 0.2, f"{case} does not learn: {curve}"


def test_offload_activation_checkpointing_and_micro_batches_change_nothing():
    cases = [
        {"engine": {"ds_config": "zero0"}},
        {"engine": {"ds_config": "zero2_offload"}},
        {"engine": {"ds_config": "zero3_offload"}},
        {"engine": {"ds_config": "zero1", "activation_checkpointing": "full"}},
        {"engine": {"ds_config": "zero3", "activation_checkpointing": "full"}},
        {"engine": {"ds_config": "zero2", "activation_checkpointing": "selective"}},
        {"engine": {"ds_config": "zero3", "activation_checkpointing": "selective"}},
        {"engine": {"ds_config": "zero2"}, "batch": {"micro_batch_size": 8}},
        {"engine": {"ds_config": "zero2", "loss_chunk_tokens": 5}, "batch": {"micro_batch_size": 1}},
        {"engine": {"ds_config": "zero1", "kernel": "reference"}},
    ]
    (reference, *curves) = run_ranks(1, train_all, cases, STEPS)[0]
    for case, curve in zip(cases[1:], curves, strict=True):
        difference = max(abs(a - b) for pair in zip(curve, reference, strict=True) for a, b in zip(*pair, strict=True))
        assert difference <= 1e-5, f"{case}: {difference}"


def test_what_is_kept_is_kept_beside_weights_that_are_gathered(tmp_path):
    """Two ranks on which no weight stays gathered, as those of this model would by default."""
    sharded = tmp_path / "sharded.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_model_persistence_threshold": 0}
    sharded.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": zero}))
    cases = [{"engine": {"ds_config": "zero0"}}]
    cases += [{"engine": {"ds_config": str(sharded), "activation_checkpointing": how}} for how in ("none", "selective")]
    (reference, *curves) = run_ranks(2, train_all, cases, 3)[0]
    for case, curve in zip(cases[1:], curves, strict=True):
        difference = max(abs(a - b) for pair in zip(curve, reference, strict=True) for a, b in zip(*pair, strict=True))
        assert difference <= 1e-5, f"{case}: {difference}"
