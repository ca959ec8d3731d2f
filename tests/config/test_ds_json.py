"""The DeepSpeed JSON: filled from the recipe, never contradicting it, and accepted by DeepSpeed."""

import json
from pathlib import Path

import pytest

from config import ConfigError, derive, load_recipe
from config.device import DeviceInfo, cpu_info
from config.ds_config import read_ds_config
from config.ds_json import deepspeed_json, resolve_precision

SHIPPED = {name: 2 for name in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")}
SHIPPED |= {"zero3_hpz": 8, "zero3_plus": 8}
"""Names and a number of ranks for each."""
FAST = DeviceInfo("cpu", "CPU with AMX", fast_bf16=True, fp16=False)
SLOW = DeviceInfo("cpu", "CPU", fast_bf16=False, fp16=False)
GPU = DeviceInfo("gpu", "H200", fast_bf16=True, fp16=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def debug(*overrides: str):
    return load_recipe("gpt_debug", overrides)


def filled(precision: str, *overrides: str, device: DeviceInfo = FAST, ranks: int = 2):
    config = debug(*overrides)
    return deepspeed_json(config, derive(config, ranks), precision, device, "my.yaml")


def written(values: object) -> str:
    """Override that points at a file with these values."""
    Path("my.json").write_text(values if isinstance(values, str) else json.dumps(values))
    return "engine.ds_config=my.json"


def message(values: object, precision: str = "fp32", *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        filled(precision, written(values), *overrides)
    return str(error.value)


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast", "bf16", "fp16"])
def test_shipped_configs_are_filled_completely(name, precision):
    ranks = SHIPPED[name]
    batch = ("optimizer.grad_clip=0.5", f"batch.global_batch_size={8 * ranks}")
    values = filled(precision, f"engine.ds_config={name}", *batch, device=GPU, ranks=ranks)
    assert '"auto"' not in json.dumps(values)
    assert values["train_batch_size"] == 8 * ranks
    assert values["train_micro_batch_size_per_gpu"] == 4
    assert values["gradient_accumulation_steps"] == 2
    assert values["gradient_clipping"] == 0.5
    assert values["bf16"]["enabled"] == (precision == "bf16")
    assert values["fp16"]["enabled"] == (precision == "fp16")
    assert values["torch_autocast"] == {"enabled": precision == "bf16_autocast", "dtype": "bfloat16"}
    assert values["zero_allow_untested_optimizer"] is True and values["zero_force_ds_cpu_optimizer"] is False
    assert f"zero{values['zero_optimization']['stage']}" == name.partition("_")[0]
    assert ("offload_optimizer" in values["zero_optimization"]) == name.endswith("_offload")


def test_deepspeed_accepts_every_shipped_config():
    """DeepSpeed's own parser refuses unknown ZeRO settings and wrong types."""
    from deepspeed.runtime.config import DeepSpeedConfig

    for name, ranks in SHIPPED.items():
        batch = f"batch.global_batch_size={8 * ranks}"
        values = filled("bf16_autocast", f"engine.ds_config={name}", batch, device=GPU, ranks=ranks)
        del values["train_batch_size"]  # of more ranks than this process has
        parsed = DeepSpeedConfig(values)
        assert parsed.zero_config.stage == int(name[4])
        assert parsed.train_batch_size == 8 and parsed.gradient_accumulation_steps == 2
        assert parsed.torch_autocast_enabled and str(parsed.torch_autocast_dtype) == "torch.bfloat16"
        assert parsed.zero_force_ds_cpu_optimizer is False
        assert not parsed.wall_clock_breakdown


def test_settings_of_deepspeed_that_a_recipe_does_not_have_are_kept():
    values = filled(
        "fp16",
        written({"zero_optimization": {"stage": 1}, "fp16": {"loss_scale_window": 7}, "wall_clock_breakdown": True}),
    )
    assert values["fp16"] == {"loss_scale_window": 7, "enabled": True}
    assert values["wall_clock_breakdown"] is True


@pytest.mark.parametrize(("device", "pinned"), [(FAST, False), (GPU, True)])
def test_host_memory_is_pinned_for_gpus(device, pinned):
    values = filled("bf16", "engine.ds_config=zero3_offload", device=device)
    assert values["zero_optimization"]["offload_param"]["pin_memory"] is pinned


def test_values_that_agree_with_the_recipe_may_be_written_out():
    values = filled(
        "bf16", written({"zero_optimization": {"stage": 1}, "train_batch_size": 8, "bf16": {"enabled": True}})
    )
    assert values["train_batch_size"] == 8


def test_every_contradiction_names_both_files_and_both_values():
    wrong = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 5.0,
        "bf16": {"enabled": True},
        "torch_autocast": {"enabled": "auto", "dtype": "float16"},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"},
    }
    assert message(wrong, "bf16_autocast").split("\n") == [
        'my.json: train_batch_size 16 contradicts batch.global_batch_size 8 (my.yaml): write "auto"',
        'my.json: train_micro_batch_size_per_gpu 8 contradicts batch.micro_batch_size 4 (my.yaml): write "auto"',
        "my.json: gradient_accumulation_steps 3 contradicts the accumulation 1 of 8 rows = 4 micro × 1 accumulation × "
        '2 ranks; × 64 tokens = 512 tokens a step (my.yaml): write "auto"',
        'my.json: gradient_clipping 5.0 contradicts optimizer.grad_clip 1 (my.yaml): write "auto"',
        'my.json: bf16.enabled true contradicts engine.precision auto (here bf16_autocast) (my.yaml): write "auto"',
        'my.json: torch_autocast.dtype "float16" contradicts engine.precision auto (here bf16_autocast) (my.yaml): write "auto"',
        'my.json: zero_optimization.reduce_bucket_size is "auto", but nothing in a recipe decides it: write a value',
    ]


ZERO1 = {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ('{"a": 1,\n "b" 2}', "my.json:2:6: not JSON: Expecting ':' delimiter"),
        ('{"a": 1, "a": 2}', "my.json: a is set twice"),
        ("[]", "my.json: expected an object of DeepSpeed settings"),
        ({}, "my.json: zero_optimization.stage must be 0, 1, 2 or 3, not null"),
        ({"zero_optimization": True}, "my.json: zero_optimization.stage must be 0, 1, 2 or 3, not null"),
        ({"zero_optimization": {"stage": 4}}, "my.json: zero_optimization.stage must be 0, 1, 2 or 3, not 4"),
        ({"zero_optimization": {"stage": "auto"}}, 'my.json: zero_optimization.stage must be 0, 1, 2 or 3, not "auto"'),
        ({**ZERO1, "optimizer": {"type": "Adam"}}, "my.json: optimizer: the optimiser is built from the recipe's section `optimizer` and handed to DeepSpeed: remove it here"),
        ({**ZERO1, "scheduler": {}}, "my.json: scheduler: the learning rate follows the recipe's section `schedule`: remove it here"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "my.json: zero_optimization.offload_param needs stage 3 or more, not stage 2"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "my.json: zero_optimization.offload_optimizer needs stage 1 or more, not stage 0"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}, "my.json: zero_optimization.offload_param.device must be \"none\" or \"cpu\", not 'disk'"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, 'my.json: zero_optimization.offload_optimizer must be {"device": …}, not "cpu"'),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": "auto"}}, 'my.json: zero_optimization.zero_hpz_partition_size is "auto", but nothing in a recipe decides it: write a value'),
    ],
)  # fmt: skip
def test_a_wrong_file_gets_its_message(values, expected):
    assert message(values) == expected


@pytest.mark.parametrize(
    ("zero", "overrides", "device", "expected"),
    [
        ({"stage": 3, "zero_hpz_partition_size": 8}, [], GPU, "zero_hpz_partition_size 8 does not divide 2 ranks: set it to the GPUs of one node, or engine.ds_config=zero3"),
        ({"stage": 2, "zero_hpz_partition_size": 2}, [], GPU, "zero_hpz_partition_size needs stage 3, not stage 2: it is about sharded weights"),
        ({"stage": 3, "zero_quantized_weights": True}, [], FAST, "zero_quantized_weights needs a GPU, not CPU with AMX: DeepSpeed quantises in CUDA kernels alone"),
        ({"stage": 3, "zero_quantized_gradients": True}, [], FAST, "zero_quantized_gradients needs a GPU, not CPU with AMX: DeepSpeed quantises in CUDA kernels alone"),
        ({"stage": 3, "zero_hpz_partition_size": 2}, ["engine.tensor_parallel=2"], GPU, "zero_hpz_partition_size does not work with engine.tensor_parallel 2: its groups of ranks take no account of slices; set it to 1, or engine.ds_config=zero3"),
    ],
)  # fmt: skip
def test_what_zero_plus_plus_cannot_do_is_refused(zero, overrides, device, expected):
    with pytest.raises(ConfigError) as error:
        filled("fp32", written({"zero_optimization": zero}), *overrides, device=device)
    assert str(error.value) == f"my.json: zero_optimization.{expected}"


def test_a_partition_of_0_is_none():
    assert filled("fp32", written({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 0}}))


def test_a_missing_file_names_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"^engine.ds_config=zero9: no such file; .*: zero0, zero1, zero2, "):
        filled("fp32", "engine.ds_config=zero9")


def test_precision_is_chosen_by_device_and_says_why():
    assert str(resolve_precision(debug(), FAST)) == "bf16_autocast (CPU with AMX computes bf16 fast)"
    assert str(resolve_precision(debug(), SLOW)) == "fp32 (CPU has no fast bf16)"
    assert str(resolve_precision(debug("engine.precision=fp16"), GPU)) == "fp16 (engine.precision)"


def test_precisions_that_would_train_wrong_or_not_at_all_are_refused():
    for precision in ("bf16", "fp16"):
        with pytest.raises(ConfigError, match=f"precision {precision} does not train right under .*zero0.json.*zero1"):
            resolve_precision(debug(f"engine.precision={precision}", "engine.ds_config=zero0"), GPU)
    with pytest.raises(ConfigError, match=r"fp16 is not supported on CPU with AMX: set engine.precision=auto"):
        resolve_precision(debug("engine.precision=fp16"), FAST)
    assert resolve_precision(debug("engine.precision=bf16_autocast", "engine.ds_config=zero0"), GPU).value


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f amx_bf16 avx512_fp16", DeviceInfo("cpu", "CPU with AMX", True, True)),
        ("flags\t\t: fpu avx512_bf16", DeviceInfo("cpu", "CPU with AVX512-BF16", True, False)),
        ("Features\t: fp asimd bf16", DeviceInfo("cpu", "CPU with Arm BF16", True, False)),
        ("flags\t\t: fpu avx2", DeviceInfo("cpu", "CPU", False, False)),
    ],
)
def test_a_cpus_abilities_are_read_from_its_flags(flags, expected):
    Path("cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t\t:\n")
    assert cpu_info(Path("cpuinfo")) == expected
    assert cpu_info(Path("missing")) == DeviceInfo("cpu", "CPU", False, False)


def test_shipped_configs_are_described_in_their_readme():
    readme = (Path(__file__).parents[2] / "ds_configs/README.md").read_text()
    for name in SHIPPED:
        assert f"| {name} |" in readme
        for setting in read_ds_config(name).zero:
            assert setting in ("stage", "contiguous_gradients") or setting in readme or setting.startswith("offload")
