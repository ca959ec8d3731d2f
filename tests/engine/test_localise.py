"""Values that stop being finite are planted, and what is named must be where they were planted."""

import re

import pytest

from config.device import cpu_info
from tests.conftest import train
from tests.ranks import run_ranks
from tests.workers.faults import FAULTS, find_all, overflow_twice

EXPECTED = {
    "weight": r"the output of blocks.1.feed_forward.up_proj \(\w+ 2×16×128, .*\); its weight has 1 of 4,096 values",
    "overflow": r"the output of blocks.0.attention.output_proj \(\w+ 2×16×32, 512 of 1,024 values",
    "between": r"what blocks.1.attention computes as the input of blocks.1.attention.output_proj ",
    "gradient": r"the gradient of the output of blocks.1.attention.output_proj .*; the gradient of the output of "
    r"blocks.1.attention was the last finite one",
}
ROWS = {"overflow": [1]}
PLAIN = [{"ds_config": f"zero{stage}"} for stage in range(4)]
OTHER = [
    {"ds_config": "zero1", "precision": "bf16"},
    {"ds_config": "zero2", "precision": "bf16"},
    {"ds_config": "zero0", "precision": "bf16_autocast", "activation_checkpointing": "full"},
    {"ds_config": "zero3", "activation_checkpointing": "selective"},
]


def check(cases, results, ranks: int) -> None:
    for (engine, fault), (message, findings, weights_stayed) in zip(cases, results, strict=True):
        where = f"{engine} {fault} on {ranks} ranks: {findings}"
        assert ("gradient norm" if fault == "gradient" else "loss") in message, where
        guilty = [ranks - 1] if fault == "gradient" else list(range(ranks))
        assert [finding.rank for finding in findings] == guilty, where
        for finding in findings:
            assert re.match(EXPECTED[fault], finding.what), where
            assert finding.micro_batch == 0 and finding.rows == ROWS.get(fault, [0, 1]), where
        assert weights_stayed, where


def test_the_module_the_rank_and_the_rows_are_named_on_two_ranks():
    cases = [(engine, fault) for engine in PLAIN for fault in ("overflow", "gradient")]
    first, second = run_ranks(2, find_all, cases)
    check(cases, first, 2)
    assert first == second, "every rank knows the same"


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "engines"), [(1, PLAIN), (2, OTHER)])
def test_every_fault_is_named_at_every_stage_in_low_precision_and_with_recomputation(ranks, engines):
    cases = [(engine, fault) for engine in engines for fault in FAULTS]
    check(cases, run_ranks(ranks, find_all, cases)[0], ranks)


@pytest.mark.skipif(not cpu_info().fp16, reason="this CPU does not compute in fp16")
def test_an_overflow_is_routine_until_the_loss_scale_cannot_fall():
    for skipped, message, weights_stayed in run_ranks(1, overflow_twice, [1, 2, 3])[0]:
        assert skipped and weights_stayed and "the gradient norm is inf at step 2" in message


def test_a_run_says_which_rows_it_failed_on(recipe, tmp_path):
    failing = ("schedule.name=constant", "optimizer.lr=1e30", "optimizer.grad_clip=0")
    result = train(recipe, *failing)
    assert result.returncode == 3
    words = r"first not finite: the (gradient of the )?output of \S+ \(float32 [\d×]+, .*\n  on rank 0, micro-batch 1 of 4; its modules: (\S+)\n"
    found = re.search(
        words + r"  row: sample 8, \S+/prepared/train-00000.bin from token [\d,]+ in document \d+ on\n", result.stderr
    )
    assert found, result.stderr
    assert "step 2 begins at cursor 8" in result.stderr
    table = (tmp_path / "runs/tiny/inspect/failed_step_00000002.rank_0.txt").read_text()
    assert str(tmp_path) in found[2] and "NOT FINITE" in table
