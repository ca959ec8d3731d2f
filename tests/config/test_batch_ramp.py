"""A batch that grows: sizes follow from the cursor, steps from the sizes."""

import pytest

from config import ConfigError, derive, load_recipe
from config.batch_ramp import batch_size_at, rows_after
from config.schema import BatchSection

RAMP = "batch.ramp=[{until_tokens: 1000, global_batch_size: 8}, {until_tokens: 5000, global_batch_size: 16}]"
RECIPE = ["data.row_length=64", "batch.global_batch_size=32", "batch.micro_batch_size=4", "schedule.steps=20"]


@pytest.mark.parametrize("tokens_per_row", [1, 7, 64, 3000])
def test_rows_after_counts_the_steps_one_by_one(tokens_per_row):
    batch = BatchSection.model_validate(
        {
            "global_batch_size": 32,
            "micro_batch_size": 4,
            "ramp": [{"until_tokens": 1000, "global_batch_size": 8}, {"until_tokens": 5000, "global_batch_size": 16}],
        }
    )
    cursor = 0
    for steps in range(300):
        assert rows_after(batch, steps, tokens_per_row) == cursor
        size = batch_size_at(batch, cursor, tokens_per_row)
        expected = 8 if cursor * tokens_per_row < 1000 else 16 if cursor * tokens_per_row < 5000 else 32
        assert size == expected
        cursor += size


def test_the_plan_counts_what_the_ramp_reads():
    derived = derive(load_recipe("gpt_debug", [*RECIPE, RAMP]), 2)
    # 2 steps of 8 rows reach 1,024 tokens, 4 of 16 rows 5,120, the other 14 have 32.
    assert derived.total_rows == 2 * 8 + 4 * 16 + 14 * 32
    assert derived.total_tokens == 64 * derived.total_rows and derived.accumulation_steps == 4
    assert derived.batch_equation.endswith("; 8 rows up to token 1,000; 16 rows up to token 5,000")


@pytest.mark.parametrize(
    ("ramp", "ranks", "message"),
    [
        ("[{until_tokens: 9, global_batch_size: 32}]", 1, "global_batch_size 32 is followed by 32"),
        ("[{until_tokens: 9, global_batch_size: 4}, {until_tokens: 9, global_batch_size: 8}]", 1, "until_tokens 9 is"),
        (
            "[{until_tokens: 9, global_batch_size: 4}]",
            2,
            r"ramp.0.global_batch_size 4 is not a multiple of .* 4 × 2 ranks",
        ),
    ],
)
def test_a_ramp_that_cannot_be_is_refused(ramp, ranks, message):
    with pytest.raises(ConfigError, match=message):
        derive(load_recipe("gpt_debug", [*RECIPE, f"batch.ramp={ramp}"]), ranks)
