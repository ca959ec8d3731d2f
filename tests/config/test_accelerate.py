"""What `accelerate launch` exports never contradicts the recipe."""

from pathlib import Path

import pytest

from config import ConfigError, load_recipe
from config.accelerate import check_accelerate

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    monkeypatch.chdir(ROOT)


def exported(**settings: str) -> dict[str, str]:
    """What `accelerate launch` exports under distributed_type DEEPSPEED."""
    names = {name if name == "WORLD_SIZE" else f"ACCELERATE_{name}": value for name, value in settings.items()}
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no", **names}


@pytest.mark.parametrize(
    ("settings", "overrides", "expected"),
    [
        (dict(DEEPSPEED_CONFIG_FILE="ds_configs/zero3.json"), [], "deepspeed_config_file ds_configs/zero3.json contradicts engine.ds_config zero1: leave it out there, or set engine.ds_config=ds_configs/zero3.json"),
        (dict(MIXED_PRECISION="bf16"), ["engine.precision=fp32"], "mixed_precision bf16 contradicts engine.precision fp32: leave it out there, or set engine.precision=bf16_autocast"),
        (dict(CONFIG_DS_FIELDS="a,mixed_precision"), [], "mixed_precision no contradicts engine.precision auto: leave it out there, or set engine.precision=fp32"),
        (dict(MIXED_PRECISION="fp8"), [], "mixed_precision fp8: Accelerate's FP8 replaces layers in Accelerator.prepare(), which this training does not call, so nothing would run in FP8: leave it out, or set bf16"),
        (dict(GRADIENT_ACCUMULATION_STEPS="4", WORLD_SIZE="2"), [], "gradient_accumulation_steps 4 contradicts 8 rows = 4 micro × 1 accumulation × 2 ranks; × 64 tokens = 512 tokens a step: leave it out there, or set batch.micro_batch_size so that it comes out"),
        (dict(GRADIENT_CLIPPING="0.5"), [], "gradient_clipping 0.5 contradicts optimizer.grad_clip 1: leave it out there, or set optimizer.grad_clip to it"),
        (dict(DEEPSPEED_ZERO_STAGE="2"), [], "zero_stage 2 contradicts stage 1 of ds_configs/zero1.json: leave it out there, or set engine.ds_config to a file of that stage"),
        (dict(DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE="none"), ["engine.ds_config=zero2_offload"], "offload_optimizer_device none contradicts offload_optimizer cpu of ds_configs/zero2_offload.json: leave it out there, or set engine.ds_config to a file that says the same"),
        (dict(USE_FSDP="true"), [], "FSDP is chosen, but DeepSpeed trains the model: set distributed_type: DEEPSPEED"),
    ],
)  # fmt: skip
def test_a_contradiction_names_both_settings(settings, overrides, expected):
    with pytest.raises(ConfigError) as error:
        check_accelerate(load_recipe("gpt_debug", overrides), exported(**settings))
    assert str(error.value) == f"accelerate launch (its config file or flags): {expected}"


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({}, []),
        (dict(DEEPSPEED_CONFIG_FILE=str(ROOT / "ds_configs/zero1.json"), DEEPSPEED_ZERO_STAGE="1"), []),
        (dict(MIXED_PRECISION="bf16"), ["engine.precision=bf16"]),
        (dict(CONFIG_DS_FIELDS="mixed_precision"), ["engine.precision=fp32"]),
        (dict(GRADIENT_ACCUMULATION_STEPS="2", GRADIENT_CLIPPING="1", DEEPSPEED_OFFLOAD_PARAM_DEVICE="none"), []),
        (dict(GRADIENT_ACCUMULATION_STEPS="auto", GRADIENT_CLIPPING="auto"), []),
    ],
)
def test_settings_that_agree_pass(settings, overrides):
    check_accelerate(load_recipe("gpt_debug", overrides), exported(**settings))


def test_without_accelerate_nothing_is_compared():
    check_accelerate(load_recipe("gpt_debug", []), {"WORLD_SIZE": "3", "ACCELERATE_GRADIENT_CLIPPING": "9"})
