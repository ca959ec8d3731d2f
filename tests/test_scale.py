"""What a rank does at start and in a step may not grow faster than promised, counted at sizes that take seconds."""

import os
from pathlib import Path

import pytest

import train
from benchmarks.growth import Cost, Row, measure
from benchmarks.scale import Sizes, all_rows, open_as, scale_config
from benchmarks.sparse_corpus import write_sparse_corpus
from config import dump_recipe
from tests.ranks import run_ranks
from tests.workers.exchanges import exchanges_by_micro_batch_size

SMALL = Sizes(
    ranks=(1, 4, 16, 64),
    tokens=(10**9, 10**11, 10**13),
    shards=(1, 10, 100),
    datasets=(1, 4, 16),
    phases=(1, 10, 100),
    steps=(100, 1000),
)


def test_nothing_grows_faster_than_its_bound(tmp_path):
    rows = list(all_rows(tmp_path, SMALL))
    axes = {row.axis.split()[0].rstrip(",") for row in rows}
    assert {"shards", "ranks", "tokens", "datasets", "phases", "cursor", "steps"} <= axes
    assert {row.bound for row in rows if row.what in ("step", "first batch at 99 %", "save, another rank")} == {
        "O(log n)"
    }
    assert [f"{row.what} by {row.axis}: {row.exponents}" for row in rows if not row.holds] == []


@pytest.mark.parametrize(
    ("bound", "power", "holds"), [("O(log n)", 0.0, True), ("O(log n)", 0.5, False), ("O(n)", 2.0, False)]
)
@pytest.mark.parametrize("kind", ["calls", "files", "memory", "exchanges", "received"])
def test_a_count_that_grows_too_fast_is_found(kind, bound, power, holds):
    costs = {n: {"calls": 5, "files": 5, kind: int(1e7 * n**power)} for n in (1, 10, 100)}
    row = Row("what", "axis", bound, {n: Cost(1.0, **counts) for n, counts in costs.items()})
    assert row.holds == holds and row.exponents[kind] == pytest.approx(power, abs=0.01)


def test_all_ranks_together_look_at_each_shard_as_often_as_one_alone_would(tmp_path):
    config = scale_config([write_sparse_corpus(tmp_path / "corpus", 60, 60 * 10**9)], ranks=20)
    alone = measure(lambda: open_as(config, 0, 1), repeats=1).files
    together = [measure(lambda rank=rank: open_as(config, rank, 20), repeats=1).files for rank in range(20)]
    without_shards = alone - 2 * 60
    assert sum(count - without_shards for count in together) == 2 * 60


@pytest.mark.slow
def test_a_step_exchanges_as_few_numbers_with_many_micro_batches_as_with_one():
    """Valid targets, losses and whether to stop: each once a step, whatever the step and the accumulation."""
    assert run_ranks(2, exchanges_by_micro_batch_size, [4, 1], 3) == [[[(3, 1)] * 3] * 2] * 2


def test_the_rank_that_finds_a_damaged_shard_says_so_and_others_leave_common_mistakes_to_the_main_one(
    tmp_path, monkeypatch, capsys
):
    path = Path(write_sparse_corpus(tmp_path / "corpus", 4, 4 * 10**9))
    (tmp_path / "recipe.yaml").write_text(dump_recipe(scale_config([str(path)], ranks=2)))
    os.truncate(path / "train-00003.bin", 10)
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert train.main([str(tmp_path / "recipe.yaml")]) == 2
    assert "train-00003.bin: 10 bytes, but train-00003.idx says 2,000,000,000" in capsys.readouterr().err
    assert train.main([str(tmp_path / "recipe.yaml"), "data.datasets.0.path=nowhere"]) == 2
    assert capsys.readouterr().err == ""
    open_as(scale_config([str(path)], ranks=2), 0, 2)
