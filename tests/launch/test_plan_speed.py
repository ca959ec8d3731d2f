"""The planner's step time against closed forms, its own limits, and published runs."""

import math

import pytest

from benchmarks.plan_error import error, published_runs
from config import load_recipe
from config.derive import derive
from config.ds_json import deepspeed_json
from config.hardware import Cluster, accelerators, find_accelerator, find_network
from launch.plan.compute import causal_keys
from launch.plan.device import make_device
from launch.plan.network import collective_seconds, make_group
from launch.plan.speed import StepTime, estimate_step

H100 = find_accelerator("h100-80")


def step(
    recipe: str, *overrides: str, gpus: int = 8, gpu: str = "h100-80", network: str = "infiniband-400"
) -> StepTime:
    config = load_recipe(recipe, list(overrides))
    derived, accelerator = derive(config, gpus), find_accelerator(gpu)
    precision = config.engine.precision if config.engine.precision != "auto" else "bf16_autocast"
    ds_json = deepspeed_json(config, derived, precision, accelerator.device_info)
    return estimate_step(config, derived, ds_json, Cluster(accelerator, gpus, 8, find_network(network)))


def test_published_runs_are_predicted_within_a_fifth():
    errors = {(run.name, run.source, run.gpus): error(run) for run in published_runs() if not run.calibrated}
    assert len(errors) >= 20
    assert sum(abs(off) <= 0.2 for off in errors.values()) >= 0.85 * len(errors), errors
    assert max(map(abs, errors.values())) < 0.3, errors


def test_a_product_is_never_faster_than_the_device_and_large_ones_come_close():
    device = make_device(H100, "bf16", "auto", biased=False)
    shapes = [(m, n, k) for m in (8, 512, 65536) for n in (64, 4096) for k in (64, 16384)]
    rates = [2 * m * n * k / device.matmul_seconds(m, n, k, size=2) for m, n, k in shapes]
    assert max(rates) < device.matmul < 1e12 * H100.bf16_tflops
    assert 2 * 16384**3 / device.matmul_seconds(16384, 16384, 16384, 2) > 0.9 * device.matmul
    # One row of a matrix product reads the whole matrix: bound by memory.
    assert device.matmul_seconds(1, 8192, 8192, 2) == pytest.approx(2 * 8192**2 / device.bandwidth, rel=0.2)


def test_attention_costs_what_its_flops_do_at_long_rows():
    device = make_device(H100, "bf16", "auto", biased=False)
    forward, backward = device.attention_seconds(1e15, head_size=128, keys=1e6)
    assert forward == pytest.approx(1e15 / device.attention, rel=1e-3)
    assert backward == pytest.approx(2.5 * forward)
    assert make_device(H100, "bf16", "flash", biased=False).attention > device.attention


@pytest.mark.parametrize(("length", "window"), [(16, None), (16, 16), (16, 5), (64, 1)])
def test_causal_keys_are_those_of_an_average_query(length, window):
    seen = [min(position + 1, window or length) for position in range(length)]
    assert causal_keys(length, window) == pytest.approx(sum(seen) / length, abs=0.5)


def test_collectives_take_what_rings_do():
    cluster = Cluster(H100, 8, 8, find_network("infiniband-400"))
    group, size = make_group(cluster, 8), 8e9
    gather = collective_seconds(cluster, "all_gather", size, 1, group)
    assert gather == pytest.approx(7 / 8 * size / (0.81 * 450e9), rel=0.01)
    a100s = Cluster(find_accelerator("a100-80"), 8, 8, cluster.network)
    assert collective_seconds(a100s, "all_reduce", size, 1, group) == pytest.approx(
        2 * collective_seconds(a100s, "all_gather", size, 1, group), rel=0.01
    )
    assert collective_seconds(cluster, "all_reduce", size, 1, group) == pytest.approx(
        size / 273e9, rel=0.05
    )  # measured
    assert collective_seconds(cluster, "all_reduce", size, 1, make_group(cluster, 1)) == 0
    # Small messages cost latency: ten thousand of them more than one as large as all.
    assert collective_seconds(cluster, "all_gather", size, 10_000, group) > gather + 10_000 * 15e-6
    slow = Cluster(H100, 64, 8, find_network("ethernet-10"))
    over_network = collective_seconds(slow, "all_gather", size, 1, make_group(slow, 64))
    assert over_network == pytest.approx(63 / 64 * size / (0.85 * 1.25e9), rel=0.01)  # the node's one adapter


def test_mfu_and_tokens_follow_from_the_seconds():
    one = step("llama_7b", gpus=64)
    config = load_recipe("llama_7b")
    derived = derive(config, 64)
    assert one.tokens_per_second == pytest.approx(derived.tokens_per_step / one.seconds)
    assert one.mfu == pytest.approx(derived.flops_per_token * one.tokens_per_second / (64 * 989e12))
    assert one.seconds == pytest.approx(sum(one.compute.values()) + sum(c.exposed for c in one.communication.values()))
    assert all(0 <= c.exposed <= c.seconds * 1.0001 for c in one.communication.values())


def test_what_ought_to_be_slower_is():
    base = step("llama_7b", gpus=64).seconds
    assert step("llama_7b", gpus=64, gpu="a100-80").seconds > base
    assert step("llama_7b", gpus=64, network="ethernet-10").seconds > 2 * base
    assert step("llama_7b", "engine.activation_checkpointing=none", gpus=64).seconds < base
    assert step("llama_7b", "engine.ds_config=zero3_offload", gpus=64).seconds > base
    assert step("llama_7b", "engine.kernel=reference", gpus=64).seconds > base
    assert step("llama_7b", "engine.compile=on", gpus=64).seconds < base
    slow = {
        name: step("llama_7b", f"engine.ds_config={name}", gpus=64, network="ethernet-25")
        for name in ("zero3", "zero3_plus")
    }
    assert slow["zero3_plus"].seconds < slow["zero3"].seconds  # what ZeRO++ is for
    one, two = step("gpt2_124m", gpus=8), step("gpt2_124m", "optimizer.name=muon", gpus=8)
    assert two.compute["optimiser"] > one.compute["optimiser"]


def test_the_reach_of_each_stage_costs_communication():
    sizes = []
    for stage in (1, 2, 3):
        one = step("llama_7b", f"engine.ds_config=zero{stage}", gpus=64)
        sizes.append(sum(c.bytes for c in one.communication.values()))
    assert sizes == sorted(sizes)


def test_small_models_are_bound_by_the_host():
    tiny = step("gpt2_124m", "batch.micro_batch_size=1", "batch.global_batch_size=8", "engine.compile=off")
    assert tiny.compute["host"] > 0.2 * tiny.seconds
    assert "host" not in step("gpt2_124m", "batch.micro_batch_size=64").compute


def test_every_accelerator_and_family_gets_a_finite_time():
    for name in accelerators():
        for recipe in ("gpt2_124m", "bert_base", "modernbert_base", "t5_base"):
            one = step(
                recipe,
                "engine.precision=fp32" if name == "cpu" else "engine.precision=fp16",
                "engine.ds_config=zero1",
                gpus=8,
                gpu=name,
            )
            assert math.isfinite(one.seconds) and 0 < one.mfu < 1, (name, recipe)


def test_muon_takes_the_time_of_its_newton_schulz_products():
    """5 steps of 4 m^2 n + 2 m^3 FLOPs for each m x n matrix; on one device, which does all of them."""
    single = ("batch.global_batch_size=32", "engine.precision=bf16")
    muon, adamw = step("gpt_muon_124m", *single, gpus=1), step("gpt2_124m", *single, gpus=1)
    square, wide = 4 * 768**3 + 2 * 768**3, 4 * 768**2 * 2048 + 2 * 768**3
    least = 12 * 5 * (4 * square + 3 * wide) / (1e12 * H100.bf16_tflops)
    extra = muon.compute["optimiser"] - adamw.compute["optimiser"]
    assert least < extra < 5 * least
