"""Matrices sliced over ranks train, validate, generate and are saved as one process does."""

import pytest
import torch

from config import load_recipe
from config.errors import ConfigError
from engine.fragments import Columns
from tests.ranks import run_ranks
from tests.workers.steps import load_all, save_all, train_and_evaluate

STEPS = 3
HALF = 2
"""Steps before a checkpoint, and after it."""
SLICED = {"tensor_parallel": 2}
SHAPES: list[dict] = [
    {},
    {"data": {"document_masking": True}, "model": {"preset": "qwen3"}},
    {"model": {"preset": "gpt2"}},
]


def cases_on(*settings: dict) -> list[tuple[int, dict]]:
    return [(i, {**shape, "engine": {**s}}) for i, shape in enumerate(SHAPES) for s in settings]


@pytest.mark.slow
def test_two_ranks_with_slices_follow_one_process():
    plain = [{**shape, "engine": {"ds_config": "zero0"}} for shape in SHAPES]
    expected = run_ranks(1, train_and_evaluate, plain, STEPS)[0]
    cases = cases_on(*({"ds_config": f"zero{stage}", **SLICED} for stage in range(4)))
    cases.append((1, {**SHAPES[1], "engine": {"ds_config": "zero1", **SLICED, "activation_checkpointing": "full"}}))
    ranks = run_ranks(2, train_and_evaluate, [case for _, case in cases], STEPS)
    assert ranks[0] == ranks[1]
    for (number, case), (curve, held_out, sample) in zip(cases, ranks[0], strict=True):
        one_curve, one_held_out, one_sample = expected[number]
        differences = [abs(a - b) for pair in zip(curve, one_curve, strict=True) for a, b in zip(*pair, strict=True)]
        assert max(differences) <= 1e-5, f"{case}: {differences}"
        assert held_out == pytest.approx(one_held_out, abs=1e-5), f"{case}: {held_out} and {one_held_out}"
        assert sample == one_sample


@pytest.mark.slow
def test_a_checkpoint_moves_between_slices_and_whole_matrices(tmp_path):
    cases = [{**SHAPES[2 - stage % 2], "engine": {"ds_config": f"zero{stage}", **SLICED}} for stage in range(4)]
    whole = [{**case, "engine": {"ds_config": case["engine"]["ds_config"]}} for case in cases]
    sliced_curves = run_ranks(2, save_all, str(tmp_path / "sliced"), cases, HALF)[0]
    whole_curves = run_ranks(1, save_all, str(tmp_path / "whole"), whole, HALF)[0]
    moves = [(i, case) for i, case in enumerate(cases)] + [(1, cases[3]), (3, cases[1]), (0, cases[2])]
    back = [(i, case) for i, case in enumerate(whole)] + [(1, whole[3]), (3, whole[1]), (0, whole[2])]
    assert run_ranks(2, load_all, str(tmp_path / "sliced"), moves[:4], HALF)[0] == sliced_curves
    for folder, size, cases, originals in (("whole", 2, moves, whole_curves), ("sliced", 1, back, sliced_curves)):
        for (number, case), curve in zip(
            cases, run_ranks(size, load_all, str(tmp_path / folder), cases, HALF)[0], strict=True
        ):
            difference = max(abs(a[0] - b[0]) for a, b in zip(curve, originals[number], strict=True))
            assert difference <= 1e-5, f"{folder} {number} → {case}: {difference}"


def test_columns_of_a_matrix_are_found_in_the_whole():
    matrix = torch.arange(5 * 6).view(5, 6)
    for part in range(3):
        columns = Columns(part, 3, 2)
        own = matrix[:, 2 * part : 2 * part + 2].flatten()
        assert torch.equal(columns.to_whole(torch.arange(10)), own)
        assert torch.equal(columns.from_whole(own), torch.arange(10))
        assert (columns.from_whole(matrix.flatten()) >= 0).sum() == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.tensor_parallel=3"], "engine.tensor_parallel 3 does not divide model.num_heads 4"),
        (["engine.tensor_parallel=2", "model.num_kv_heads=1"], "2 does not divide model.num_kv_heads 1"),
        (["engine.tensor_parallel=2", "optimizer.name=muon"], "engine.tensor_parallel 2 does not work with optimizer.name muon"),
        (["engine.tensor_parallel=2", "engine.activation_checkpointing=selective"], "2 does not work with engine.activation_checkpointing selective"),
        (["engine.tensor_parallel=2", "objective.name=contrastive"], "2 does not work with objective.name contrastive"),
        (["engine.tensor_parallel=2", "engine.compile=on"], "2 has not been tried with engine.compile on"),
        (["engine.compile=on", "engine.activation_checkpointing=selective"], "cannot look into compiled blocks and compile is on"),
        (["engine.tensor_parallel=2", "engine.sequence_parallel=2"], "engine.sequence_parallel 2 does not work with engine.tensor_parallel 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_sliced_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("gpt_debug", overrides)
