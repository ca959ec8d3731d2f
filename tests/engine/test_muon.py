"""Muon, cautious decay and rates of one's own at every ZeRO stage follow the reference; checkpoints move between them."""

import pytest

from engine.reference import Reference
from tests.ranks import run_ranks
from tests.tiny import ROWS, global_batch, tiny_config
from tests.workers.steps import load_all, save_all, train_all

pytestmark = pytest.mark.slow
STEPS = 5
LEARNING = 8
"""Steps that are enough to learn something, as well."""
HALF = 3
"""Steps before a checkpoint, and after it."""
STAGES = ["zero0", "zero1", "zero2", "zero3"]
MUON = {"name": "muon", "lr": 2e-2, "adam_lr": 1e-2, "weight_decay": 0.1}
SPECTRAL = {**MUON, "lr": 5e-2, "muon_scale": "spectral", "grad_clip": 0.3}
RATES = {"embedding_lr_ratio": 0.5, "head_lr_ratio": 2.0, "decay_embeddings": False, "cautious_decay": True}
CASES = [{"optimizer": MUON, "engine": {"ds_config": stage}} for stage in (*STAGES, "zero2_offload", "zero3_offload")]
CASES += [{"optimizer": {**SPECTRAL, **RATES}, "engine": {"ds_config": stage}} for stage in ("zero0", "zero2", "zero3")]
CASES += [{"optimizer": {"lr": 3e-3, **RATES}, "engine": {"ds_config": stage}} for stage in ("zero0", "zero1", "zero3")]
CASES += [{"optimizer": MUON, "model": {"bias": True, "tied_embeddings": True}, "engine": {"ds_config": "zero1"}}]


def largest_difference(curve, expected) -> float:
    return max(abs(a - b) for pair in zip(curve, expected, strict=True) for a, b in zip(*pair, strict=True))


def reference_curve(case: dict, steps: int) -> list[tuple[float, float]]:
    reference = Reference(tiny_config(**{**case, "batch": {"micro_batch_size": ROWS}}))
    return [reference.step(index, [global_batch(index)]) for index in range(steps)]


@pytest.mark.parametrize(("world_size", "cases"), [(1, CASES[::2]), (2, CASES)])
def test_every_stage_follows_the_reference(world_size, cases):
    curves = run_ranks(world_size, train_all, cases, STEPS)
    for case, *ranks in zip(cases, *curves, strict=True):
        assert all(curve == ranks[0] for curve in ranks), f"ranks disagree: {case}"
        difference = largest_difference(ranks[0], reference_curve(case, STEPS))
        assert difference <= 1e-5, f"{case}: {difference:.1e}"


def test_bf16_muon_stays_near_fp32_and_learns():
    cases = [
        {"optimizer": MUON, "engine": {"ds_config": stage, "precision": precision}}
        for stage, precision in [("zero0", "bf16_autocast"), ("zero1", "bf16"), ("zero3", "bf16")]
    ]
    for case, curve in zip(cases, run_ranks(1, train_all, cases, LEARNING)[0], strict=True):
        expected = reference_curve(case, LEARNING)
        assert max(abs(a[0] - b[0]) for a, b in zip(curve, expected, strict=True)) < 0.03, case
        assert curve[-1][0] < curve[0][0] - 0.3, case


@pytest.mark.parametrize("saved_by", [1, 2])
def test_momentum_continues_bitwise_at_the_same_topology_and_closely_at_any_other(tmp_path, saved_by):
    saved = [{"optimizer": MUON, "engine": {"ds_config": stage}} for stage in STAGES]
    originals = run_ranks(saved_by, save_all, str(tmp_path), saved, HALF)[0]
    same = run_ranks(saved_by, load_all, str(tmp_path), list(enumerate(saved)), HALF)[0]
    assert same == originals
    moves = [(i, {"optimizer": MUON, "engine": {"ds_config": to}}) for i in range(len(STAGES)) for to in STAGES]
    for (number, case), curve in zip(
        moves, run_ranks(3 - saved_by, load_all, str(tmp_path), moves, HALF)[0], strict=True
    ):
        difference = largest_difference(curve, originals[number])
        assert difference <= 1e-5, f"{STAGES[number]} → {case}: {difference:.1e}"
