"""Rows shared by ranks train, validate and generate as one process does."""

import pytest

from config import load_recipe
from config.errors import ConfigError
from tests.ranks import run_ranks
from tests.workers.steps import train_and_evaluate

STEPS = 3
SHARED = {"sequence_parallel": 2}
SHAPES: list[dict] = [
    {},
    {"data": {"document_masking": True}},
    {"model": {"preset": "gpt2"}},
    {"model": {"preset": "qwen3", "num_kv_heads": 1}, "data": {"document_masking": True}},
    {"model": {"preset": "mistral", "sliding_window": 5, "num_heads": 6, "head_size": 8, "num_kv_heads": 3}},
]


@pytest.mark.slow
def test_two_ranks_that_share_rows_follow_one_process():
    plain = [{**shape, "engine": {"ds_config": "zero0"}} for shape in SHAPES]
    expected = run_ranks(1, train_and_evaluate, plain, STEPS)[0]
    cases = [(i, {**shape, "engine": {"ds_config": "zero2", **SHARED}}) for i, shape in enumerate(SHAPES)]
    cases += [(1, {**SHAPES[1], "engine": {"ds_config": f"zero{stage}", **SHARED}}) for stage in (0, 1, 3)]
    for more in ({"kernel": "reference"}, {"activation_checkpointing": "selective"}):
        cases.append((1, {**SHAPES[1], "engine": {"ds_config": "zero3", **SHARED, **more}}))
    ranks = run_ranks(2, train_and_evaluate, [case for _, case in cases], STEPS)
    assert ranks[0] == ranks[1]
    for (number, case), (curve, held_out, sample) in zip(cases, ranks[0], strict=True):
        one_curve, one_held_out, one_sample = expected[number]
        differences = [abs(a - b) for pair in zip(curve, one_curve, strict=True) for a, b in zip(*pair, strict=True)]
        assert max(differences) <= 1e-5, f"{case}: {differences}"
        assert held_out == pytest.approx(one_held_out, abs=1e-5), f"{case}: {held_out} and {one_held_out}"
        assert sample == one_sample


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.sequence_parallel=3"], "engine.sequence_parallel 3 does not divide model.num_heads 4"),
        (["engine.sequence_parallel=4", "data.row_length=62"], "engine.sequence_parallel 4 does not divide data.row_length 62"),
        (["engine.sequence_parallel=2", "objective.name=contrastive"], "does not work with objective.name contrastive"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("gpt_debug", overrides)
