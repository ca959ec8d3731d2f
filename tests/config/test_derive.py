"""Batch arithmetic."""

import pytest

from config import ConfigError, load_recipe
from config.derive import derive


def debug(*overrides: str):
    return load_recipe("gpt_debug", overrides)


def test_batch_equation_and_totals():
    derived = derive(debug("batch.global_batch_size=64", "batch.micro_batch_size=8"), 2)
    assert derived.batch_equation == "64 rows = 8 micro × 4 accumulation × 2 ranks; × 64 tokens = 4,096 tokens a step"
    assert (derived.accumulation_steps, derived.tokens_per_step, derived.total_tokens) == (4, 4096, 20 * 4096)
    assert derived.total_flops == derived.flops_per_token * 81920


@pytest.mark.parametrize(
    ("rows", "micro", "ranks", "fixes"),
    [
        (64, 12, 2, "batch.global_batch_size to 48 or 72, or batch.micro_batch_size to 8 or 16"),
        (64, 8, 3, "batch.global_batch_size to 48 or 72, or the number of ranks to 2 or 4"),
        (7, 8, 3, "batch.global_batch_size to 24"),
        (8, 16, 1, "batch.global_batch_size to 16, or batch.micro_batch_size to 8"),
        (12, 4, 2, "batch.global_batch_size to 8 or 16, or batch.micro_batch_size to 3 or 6, or the number of ranks to 1 or 3"),
    ],
)  # fmt: skip
def test_an_indivisible_batch_names_the_nearest_choices_that_work(rows, micro, ranks, fixes):
    with pytest.raises(ConfigError) as error:
        derive(debug(f"batch.global_batch_size={rows}", f"batch.micro_batch_size={micro}"), ranks)
    assert str(error.value) == (
        f"batch.global_batch_size {rows} is not a multiple of batch.micro_batch_size {micro} × {'1 rank' if ranks == 1 else f'{ranks} ranks'} "
        f"= {micro * ranks}: set {fixes}"
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(ranks):
    derived = derive(debug("batch.global_batch_size=48", "batch.micro_batch_size=2"), ranks)
    assert 2 * ranks * derived.accumulation_steps == 48


def test_ranks_that_share_rows_count_once():
    derived = derive(debug("batch.global_batch_size=64", "batch.micro_batch_size=8", "engine.sequence_parallel=4"), 8)
    assert (derived.world_size, derived.data_parallel, derived.accumulation_steps) == (8, 2, 4)
    assert derived.batch_equation.startswith("64 rows = 8 micro × 4 accumulation × 2 groups of 4 ranks; ")
    with pytest.raises(ConfigError, match=r"or the number of ranks to 4 or 8$"):
        derive(debug("batch.global_batch_size=32", "batch.micro_batch_size=8", "engine.tensor_parallel=2"), 6)
    with pytest.raises(ConfigError, match=r"engine.sequence_parallel 4 does not divide 6 ranks: start 4 or 8 of them"):
        derive(debug("engine.sequence_parallel=4"), 6)
