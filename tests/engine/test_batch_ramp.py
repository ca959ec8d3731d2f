"""A growing batch trains as the reference does, and goes on after a stop with the same steps."""

import shutil

import pytest

from tests.conftest import losses, metrics, train
from tests.ranks import run_ranks
from tests.workers.checks import check_all

# Rows of 32 tokens: two steps of 2 rows, two of 4, then 8.
RAMP = "batch.ramp=[{until_tokens: 100, global_batch_size: 2}, {until_tokens: 384, global_batch_size: 4}]"


@pytest.mark.slow
def test_accumulation_changes_between_steps_at_every_stage(recipe):
    stages = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    cases = [[RAMP, "batch.micro_batch_size=1", f"engine.ds_config={stage}"] for stage in stages]
    for case, verdict in zip(cases, run_ranks(2, check_all, str(recipe), cases)[0], strict=True):
        assert verdict.failures == [], f"{case}\n{verdict.text}"


def test_a_run_that_stops_within_a_ramp_goes_on_with_the_same_steps(recipe):
    first = train(recipe, RAMP)
    assert first.returncode == 0, first.stderr
    run = recipe.parent / "runs" / "tiny"
    whole = losses(run)
    tokens = [record["tokens"] for record in metrics(run) if "loss" in record]
    seconds = [record["seconds"] for record in metrics(run) if "loss" in record]
    assert tokens[:6] == [64, 128, 256, 384, 640, 896] and len(whole) == 12
    for step in ("step_00000008", "step_00000012"):
        shutil.rmtree(run / "checkpoints" / step)
    again = train(recipe, RAMP)
    assert again.returncode == 0, again.stderr
    assert losses(run) == whole
    timed = [record["seconds"] for record in metrics(run) if "loss" in record]
    assert timed[:4] == seconds[:4] and timed[4:] != seconds[4:], "the run did not go on after step 4"
