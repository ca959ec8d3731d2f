"""The plan's memory against the papers' formulas and against the tensors that autograd keeps."""

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from config import derive, load_recipe
from config.device import DeviceInfo
from config.ds_json import deepspeed_json
from config.memory import estimate_memory
from config.plan import plan
from config.zero_memory import States

GPU = DeviceInfo("gpu", "H200", fast_bf16=True, fp16=True)


def memory(precision: str, ranks: int, *overrides: str):
    config = load_recipe("llama_7b", overrides)
    derived = derive(config, ranks)
    return derived.parameters.total, estimate_memory(config, derived, deepspeed_json(config, derived, precision, GPU))


def states(stage: int, ranks: int, rows: int, *overrides: str) -> tuple[int, States]:
    """`rows` of the global batch for each rank, in micro-batches of one."""
    sizes = (f"engine.ds_config=zero{stage}", f"batch.global_batch_size={rows * ranks}")
    config = load_recipe("llama_7b", [*sizes, *overrides])
    derived = derive(config, ranks)
    return derived.parameters.total, States(config, derived, deepspeed_json(config, derived, "bf16", GPU))


@pytest.mark.parametrize(("stage", "weights", "gradients"), [(1, 2, 2), (2, 2, 2 / 64), (3, 2 / 64, 2 / 64)])
def test_model_states_of_mixed_precision_follow_zero(stage, weights, gradients):
    """ZeRO, figure 1: (2 + 2 + 12) bytes a parameter; stages 1, 2 and 3 share the optimiser, gradients and weights.
    Stage 1 also stages the largest gradient while it reduces."""
    count, found = states(stage, 64, rows=1)
    assert found.weights() == pytest.approx(weights * count, rel=1e-6)
    held = found.kept_gradients() + found.gradients()["step" if stage == 3 else "backward"]
    assert held == pytest.approx(gradients * count + 2 * 32_000 * 4096 * (stage == 1), rel=1e-6)
    assert found.optimizer() == pytest.approx(12 * count / 64, rel=1e-6)


@pytest.mark.parametrize("ranks", [8, 64])
def test_model_states_with_accumulation_equal_deepspeeds_own_estimate(ranks):
    """Micro-batches are added up in fp32. DeepSpeed's estimate of stage 3 adds one layer."""
    count, two = states(2, ranks, rows=4)
    _, estimate = estimate_zero2_model_states_mem_needs(count, ranks, cpu_offload=False)
    assert two.weights() + two.optimizer() + two.gradients()["backward"] == pytest.approx(estimate, rel=1e-6)
    count, three = states(3, ranks, rows=4)
    _, estimate, layer = estimate_zero3_model_states_mem_needs(count, 0, ranks, cpu_offload=False)
    assert layer == 0
    assert three.weights() + three.optimizer() + three.kept_gradients() == pytest.approx(estimate, rel=1e-6)


def test_stage_1_with_accumulation_keeps_whole_gradients_in_both_precisions():
    """DeepSpeed then takes its BF16_Optimizer, which shards the optimiser alone."""
    count, one = states(1, 64, rows=4)
    assert one.kept_gradients() == 4 * count and one.gradients()["forward"] == 2 * count
    assert one.buffers("gpu") == 0


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_of_an_adapter_alone_there_are_gradients_and_moments(stage):
    """Rank 8 beside the seven matrices of 32 blocks: r (n + m) each."""
    count, found = states(stage, 8, 1, "adapter.name=lora")
    adapter = 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    shared = 8 if stage == 3 else 1
    assert found.weights() == pytest.approx(2 * (count + adapter) / shared, rel=1e-6)
    assert found.optimizer() == pytest.approx(12 * adapter / 8, rel=1e-6)
    assert found.kept_gradients() + max(found.gradients().values()) <= 2 * 2 * adapter
    planned = plan(found.config, found.derived, found.ds_json, GPU)
    assert planned.checkpoint_bytes == 4 * count + 12 * adapter
    assert f"{'trained':<26}{adapter:>16,}" in str(planned)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_fp32_weights_have_a_second_copy_only_where_zero_shards_them(precision):
    """DeepSpeed's stages 1 to 3 step a flat fp32 copy of the rank's share; stage 0 steps the weights themselves."""
    count, plain = memory(precision, 4, "engine.precision=auto", "engine.ds_config=zero0")
    assert plain.device["weights"] == plain.device["gradients"] == 4 * count
    assert plain.device["optimiser"] == 8 * count and "communication buffers" not in plain.device
    _, sharded = memory(precision, 4, "engine.precision=auto", "engine.ds_config=zero1")
    assert sharded.device["optimiser"] == pytest.approx(12 * count / 4, rel=1e-6)
    assert ("bf16 copies of weights" in sharded.device) == (precision == "bf16_autocast")


def test_offload_moves_states_to_the_host():
    count, estimate = memory("bf16", 8, "engine.ds_config=zero3_offload")
    assert not {"weights", "gradients", "optimiser"} & estimate.device.keys()
    assert estimate.host["optimiser"] == pytest.approx(12 * count / 8, rel=1e-6)
    assert estimate.host["weights"] == pytest.approx(2 * count / 8, rel=1e-6)


@pytest.mark.parametrize(("optimizer", "numbers"), [("adamw", 3), ("lion", 2), ("sgd", 2), ("rmsprop", 3)])
def test_a_checkpoint_holds_fp32_weights_and_moments(optimizer, numbers):
    config = load_recipe("gpt_debug", [f"optimizer.name={optimizer}"])
    derived = derive(config, 1)
    planned = plan(config, derived, deepspeed_json(config, derived, "fp32", GPU))
    assert planned.checkpoint_bytes == 4 * numbers * derived.parameters.total


def test_ranks_that_share_rows_share_activations_and_slices():
    """Sequence parallelism divides all activations and no weights, tensor parallelism both but norms and embeddings."""
    base = (
        "batch.global_batch_size=64",
        "engine.ds_config=zero0",
        "engine.precision=auto",
        "batch.micro_batch_size=1",
        "engine.activation_checkpointing=none",
    )
    count, plain = memory("fp32", 8, *base)
    sliced = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    _, rows = memory("fp32", 8, *base, "engine.sequence_parallel=8")
    _, slices = memory("fp32", 8, *base, "engine.tensor_parallel=8")
    assert rows.device["weights"] == plain.device["weights"] == 4 * count
    assert rows.device["activations"] == pytest.approx(plain.device["activations"] / 8, rel=1e-3)
    assert slices.device["weights"] == pytest.approx(4 * (count - sliced) + 4 * sliced / 8, rel=1e-6)
    assert 1 / 8 < slices.device["activations"] / plain.device["activations"] < 1 / 2


def test_hpz_keeps_a_second_share_of_the_weights():
    count, estimate = memory("bf16", 64, "engine.ds_config=zero3_hpz")
    assert estimate.device["weights within a node (hpZ)"] == pytest.approx(2 * count / 8, rel=1e-6)


@pytest.mark.parametrize("ranks", [8, 64, 256, 1024])
@pytest.mark.parametrize("name", ["llama_7b", "llama_70b"])
def test_the_large_recipes_divide_over_clusters(name, ranks):
    config = load_recipe(name, [])
    derived = derive(config, ranks)
    estimate = estimate_memory(config, derived, deepspeed_json(config, derived, "bf16", GPU))
    states = sum(estimate.device[part] for part in ("weights", "gradients", "optimiser"))
    accumulated = 4 if derived.accumulation_steps > 1 else 2
    assert states == pytest.approx((14 + accumulated) * derived.parameters.total / ranks, rel=1e-6)


def test_the_text_is_aligned_and_adds_up():
    config = load_recipe("llama_7b", ["engine.ds_config=zero3_offload"])
    derived = derive(config, 8)
    planned = plan(config, derived, deepspeed_json(config, derived, "bf16", GPU))
    lines = str(planned).split("\n")
    assert lines[0] == "llama_7b: 8 ranks, ZeRO stage 3, bf16"
    assert lines[1] == "parameters                   6,738,415,616"
    assert "run                       476,837 steps, 1,999,999,336,448 tokens, 296.8 per parameter" in lines
    assert "one checkpoint                    80.86 GB" in lines
    assert "  the 3 kept                     242.58 GB" in lines
    assert max(map(len, lines)) <= 120
