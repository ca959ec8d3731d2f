"""Statistics, traces and memory of chosen steps, in runs as a user starts them."""

import gzip
import json
import math
import re

import pytest
import torch

from engine.statistics import combine, measure
from tests import forked
from tests.conftest import environment, losses, train
from tests.ranks import run_ranks
from tests.workers.inspections import MODULE, compare, cost_when_off
from tests.workers.short_of_memory import run as run_short_of_memory

STAGES = [{"ds_config": f"zero{stage}"} for stage in range(4)]


def test_moments_of_parts_together_are_those_of_the_whole():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3 + 5
    values[::7], values[3], values[4] = 0, torch.inf, torch.nan
    found = combine(measure(values[:300].to(torch.float64)), measure(values[300:])).tolist()
    finite = values[values.isfinite()].double()
    expected = [
        len(finite),
        finite.mean(),
        finite.var(correction=0) * len(finite),
        finite.abs().max(),
        (finite == 0).sum(),
        2,
    ]
    assert found == pytest.approx([float(number) for number in expected], rel=1e-5)
    assert combine(measure(torch.full((3,), torch.nan)), measure(values[:2])).tolist()[5] == 3


@pytest.mark.parametrize(
    ("ranks", "engine"), [(1, {"ds_config": "zero0", "activation_checkpointing": "full"}), (2, STAGES[2])]
)
def test_statistics_are_those_of_plain_hooks_and_gathered_weights(ranks, engine):
    results = run_ranks(ranks, compare, engine)
    for rank in results:
        for kind, truth in rank["truth"].items():
            assert rank["modules"][MODULE][kind] == pytest.approx(truth, rel=1e-4, abs=1e-7), kind
        assert rank["truth"]["output"][0] == 8 // ranks * 16 * 32, "every row once"
    first = results[0]
    assert first["parameters"] == results[-1]["parameters"]
    total = 0.0
    for name, (_, (norm, gradient, update)) in first["parameters"].items():
        assert norm == pytest.approx(first["norms"][name], rel=1e-5)
        assert update == pytest.approx(first["updates"][name], rel=1e-3)
        total += gradient**2
    assert math.sqrt(total) == pytest.approx(min(first["grad_norm"], 1.0), rel=1e-4), "after clipping at 1"


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*STAGES[1:], {"ds_config": "zero1", "precision": "bf16"}])
def test_parameters_are_whole_at_every_stage(engine):
    first, _ = run_ranks(2, compare, engine)
    for name, (_, (norm, _, update)) in first["parameters"].items():
        assert (norm, update) == pytest.approx((first["norms"][name], first["updates"][name]), rel=1e-3)


def test_a_run_is_looked_into_at_its_chosen_steps_and_trains_the_same(recipe, tmp_path):
    assert train(recipe, "run.name=plain").returncode == 0
    looked = ("monitor.statistics_steps=[2]", "monitor.profile_steps=[3, 4, 6]", "monitor.memory_steps=[2]")
    result = train(recipe, "run.name=looked", *looked)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    runs, inspect = tmp_path / "runs", tmp_path / "runs/looked/inspect"
    assert losses(runs / "looked") == losses(runs / "plain")
    assert not (runs / "plain/inspect").exists()
    assert sorted(path.name for path in inspect.iterdir()) == [
        "memory_step_00000002.rank_0.txt",
        "statistics_step_00000002.rank_0.txt",
        "trace_step_00000004.rank_0.pt.trace.json.gz",
        "trace_step_00000006.rank_0.pt.trace.json.gz",
    ]
    table = (inspect / "statistics_step_00000002.rank_0.txt").read_text()
    for row in ("blocks.1.attention.q_proj ", "lm_head ", "blocks.0.feed_forward.up_proj.weight "):
        assert f"\n{row}" in table
    check_trace(inspect / "trace_step_00000004.rank_0.pt.trace.json.gz", {3, 4}, {"checkpoint"})
    check_trace(inspect / "trace_step_00000006.rank_0.pt.trace.json.gz", {6}, {"validation", "sample"})
    assert "trace up to step 6" in result.stdout and "aten::mm" in result.stdout
    check_memory((inspect / "memory_step_00000002.rank_0.txt").read_text())


def check_trace(path, steps: set[int], spans: set[str]) -> None:
    """Exactly these steps, each with one update, and a backward pass for each of its four micro-batches."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert {name for name in names if name.startswith("ProfilerStep")} == {f"ProfilerStep#{step}" for step in steps}
    trained = ("data", "backward", "optimizer")
    assert [names.count(name) for name in trained] == [len(steps) * count for count in (1, 4, 1)]
    assert names.count("forward") >= len(steps) * 4
    assert {"validation", "sample", "checkpoint"} & set(names) == spans


def check_memory(table: str) -> None:
    """ZeRO 1 in fp32: the weights, and once more as a master copy with two moments; 63,680 parameters and paddings."""
    rows = {line[:14].strip(): [float(number) for number in line[14:].split()] for line in table.splitlines()[1:-1]}
    whole = 63_680 * 4 / 1e6
    assert rows["weights"] == pytest.approx([whole] * 2, rel=0.05)
    assert rows["optimiser"] == pytest.approx([3 * whole] * 2, rel=0.05)
    assert rows["gradients"][1] == pytest.approx(whole, rel=0.05)
    after_forward, before_update = rows["activations"]
    assert after_forward > 0.1 and before_update < after_forward / 10
    for column in range(2):
        parts = sum(values[column] for name, values in rows.items() if name != "all tensors")
        assert parts == pytest.approx(rows["all tensors"][column], abs=0.05)


@pytest.mark.slow
def test_compiled_blocks_and_two_ranks_are_looked_into_as_well(recipe, tmp_path):
    result = train(
        recipe,
        "engine.compile=on",
        "schedule.steps=3",
        "schedule.name=constant",
        "monitor.statistics_steps=[2]",
        "monitor.memory_steps=[3]",
        "monitor.profile_steps=[3]",
        "monitor.inspect_ranks=[1]",
        ranks=2,
    )
    assert result.returncode == 0, result.stderr
    inspect = tmp_path / "runs/tiny/inspect"
    assert {path.name.split(".")[1] for path in inspect.iterdir()} == {"rank_1"}
    table = (inspect / "statistics_step_00000002.rank_1.txt").read_text()
    assert "\nblocks.1.attention.q_norm " in table and "NOT FINITE" not in table
    memory = (inspect / "memory_step_00000003.rank_1.txt").read_text()
    assert float(re.search(r"activations +([\d.]+)", memory)[1]) > 0.1
    trace = json.loads(gzip.decompress((inspect / "trace_step_00000003.rank_1.pt.trace.json.gz").read_bytes()))
    assert any(event["name"] == "ProfilerStep#3" for event in trace["traceEvents"])


def test_out_of_memory_names_what_holds_it_and_what_would_save_some(recipe, tmp_path):
    large = ("model.vocab_size=300000", "batch.micro_batch_size=8", "engine.ds_config=zero0")
    process = forked.start(tmp_path / "short", environment(), run_short_of_memory, ["train.py", str(recipe), *large])
    assert forked.finish(process, 100) == 2
    error = (tmp_path / "short.err").read_text()
    for part in (
        "rank 0 ran out of memory at step 1: it asked for",
        "weights 76.9 MB",
        "batch.micro_batch_size=4 saves about",
    ):
        assert part in error, error
    assert "Traceback" not in error


def test_it_costs_nothing_where_it_does_not_look():
    (microseconds,) = run_ranks(1, cost_when_off)
    assert microseconds < 50  # 1 on a quiet machine


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("monitor.profile_steps=[13]", "monitor looks at step 13, but schedule.steps is 12"),
        ("monitor.memory_steps=[0]", "must be greater than 0"),
        ("monitor.inspect_ranks=[]", "inspect_ranks"),
    ],
)
def test_steps_that_never_come_are_refused(recipe, override, message):
    result = train(recipe, override)
    assert result.returncode == 2 and message in result.stderr


def test_ranks_that_there_are_not_are_refused(recipe):
    result = train(recipe, "monitor.statistics_steps=[1]", "monitor.inspect_ranks=[0, 2]")
    assert (
        result.returncode == 2
        and "inspect_ranks names rank 2, but the ranks of this launch are 0 to 0" in result.stderr
    )
