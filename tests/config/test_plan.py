"""The plan's memory against the papers' formulas and against the tensors that autograd keeps."""

import pytest
import torch

from config import derive, load_recipe
from config.device import DeviceInfo
from config.ds_json import deepspeed_json
from config.memory import activation_bytes, estimate_memory
from config.plan import plan
from model import build
from tests.workers.memory import LiveBytes

GPU = DeviceInfo("gpu", "H200", fast_bf16=True, fp16=True)
SIZE = ("model.num_layers=6", "model.max_positions=256", "data.row_length=256", "batch.micro_batch_size=2")


def memory(precision: str, ranks: int, *overrides: str):
    config = load_recipe("llama_7b", overrides)
    derived = derive(config, ranks)
    return derived.parameters.total, estimate_memory(config, derived, deepspeed_json(config, derived, precision, GPU))


def test_model_states_of_mixed_precision_follow_zero():
    """ZeRO, figure 1: (2 + 2 + 12) bytes a parameter; stages 1, 2 and 3 share the optimiser, gradients and weights."""
    for stage, weights, gradients in ((1, 2, 2), (2, 2, 2 / 64), (3, 2 / 64, 2 / 64)):
        count, estimate = memory("bf16", 64, f"engine.ds_config=zero{stage}")
        assert estimate.device["weights"] == pytest.approx(weights * count, rel=1e-6)
        assert estimate.device["gradients"] == pytest.approx(gradients * count, rel=1e-6)
        assert estimate.device["optimiser"] == pytest.approx(12 * count / 64, rel=1e-6)
        assert not estimate.host


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


def test_activations_of_gpt_equal_the_papers_34sbh():
    """Korthikanti et al., equation 2 without 5as/h, which flash attention does not keep; with dropout's masks."""
    config = load_recipe("gpt2_124m", ["model.dropout=0.1"])
    batch, length, width, layers = 16, 1024, 768, 12
    assert activation_bytes(config, matmul=2, residual=2) == 34 * length * batch * width * layers
    kept_scores = load_recipe("gpt2_124m", ["model.dropout=0.1", "engine.kernel=reference"])
    assert activation_bytes(kept_scores, 2, 2) == length * batch * width * layers * (34 + 5 * 12 * length / width)


@pytest.mark.parametrize(
    ("overrides", "most"),
    [(("model.preset=gpt2",), 1.05), (("model.preset=llama",), 1.2), (("model.preset=gpt2", "model.num_kv_heads=4"), 1.05)],
)  # fmt: skip
def test_activations_are_what_autograd_keeps(overrides, most):
    """In fp32 on a CPU, where RMSNorm keeps one copy more and the embedding and the final norm come on top."""
    config = load_recipe("gpt_debug", [*SIZE, *overrides])
    model = build(config.model, kernel="sdpa")
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(2, 256, dtype=torch.long))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert 1.0 <= measured / activation_bytes(config, matmul=4, residual=4) <= most


def recomputing(how: str, layers: int = 6):
    return load_recipe("gpt_debug", [*SIZE, f"engine.activation_checkpointing={how}", f"model.num_layers={layers}"])


def test_full_activation_checkpointing_keeps_block_inputs_and_one_block():
    one_block = activation_bytes(recomputing("none"), 2, 2) // 6
    assert activation_bytes(recomputing("full"), 2, 2) == 6 * 2 * 256 * 64 * 2 + one_block


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_each_further_block_keeps_what_the_plan_says(how):
    """Bytes of all tensors alive after a forward pass, in fp32; without recomputation RMSNorm keeps a copy more."""

    def alive(layers: int) -> int:
        config = recomputing(how, layers)
        with LiveBytes() as live:
            model = build(config.model, kernel="sdpa", activation_checkpointing=how)
            weights = live.now
            hidden = model(torch.zeros(2, 256, dtype=torch.long))
            kept = live.now - weights
        assert hidden.requires_grad
        return kept

    planned = activation_bytes(recomputing(how, 8), 4, 4) - activation_bytes(recomputing(how, 4), 4, 4)
    assert 0.99 <= (alive(8) - alive(4)) / planned <= 1.2


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
    assert rows.device["activations"] == plain.device["activations"] / 8
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
    assert states == pytest.approx(16 * derived.parameters.total / ranks, rel=1e-6)


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
