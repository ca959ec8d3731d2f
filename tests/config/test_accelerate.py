"""Accelerate's configurations: read by its own loader, launched by it, and never contradicting the recipe."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import ConfigError, load_recipe
from config.accelerate import check_accelerate
from config.ds_config import read_ds_config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "launch/accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    monkeypatch.chdir(ROOT)


def exported(**settings: str) -> dict[str, str]:
    """What `accelerate launch` exports under distributed_type DEEPSPEED."""
    names = {name if name == "WORLD_SIZE" else f"ACCELERATE_{name}": value for name, value in settings.items()}
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_MIXED_PRECISION": "no", **names}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerates_own_loader_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.distributed_type == "DEEPSPEED" and config.num_machines == 1
    assert config.use_cpu == path.stem.startswith("cpu")
    named = config.deepspeed_config["deepspeed_config_file"]
    stage = path.stem.partition("zero")[2]
    assert not stage or read_ds_config(named).stage == int(stage)
    check_accelerate(load_recipe("gpt_debug", [f"engine.ds_config={named}"]), exported(DEEPSPEED_CONFIG_FILE=named))


@pytest.mark.parametrize(("name", "ranks"), [("cpu", 1), ("cpu_2", 2)])
def test_cpu_configs_start_that_many_ranks(name, ranks, tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
        "import json, os\nopen(f'{__file__}.{os.environ[\"RANK\"]}', 'w').write(json.dumps(dict(os.environ)))"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", f"launch/accelerate/{name}.yaml", str(script)]
    subprocess.run(command, check=True, capture_output=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for rank in range(ranks):
        environ = json.loads(Path(f"{script}.{rank}").read_text())
        assert environ["WORLD_SIZE"] == str(ranks) and {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys()
        assert environ["CUDA_VISIBLE_DEVICES"] == ""
        check_accelerate(load_recipe("gpt_debug", ["engine.ds_config=zero1"]), environ)
        with pytest.raises(ConfigError, match=r"deepspeed_config_file ds_configs/zero1\.json contradicts"):
            check_accelerate(load_recipe("gpt_debug", ["engine.ds_config=zero3"]), environ)


@pytest.mark.parametrize(
    ("settings", "overrides", "expected"),
    [
        (dict(DEEPSPEED_CONFIG_FILE="ds_configs/zero3.json"), [], "deepspeed_config_file ds_configs/zero3.json contradicts engine.ds_config zero1: leave it out there, or set engine.ds_config=ds_configs/zero3.json"),
        (dict(MIXED_PRECISION="bf16"), ["engine.precision=fp32"], "mixed_precision bf16 contradicts engine.precision fp32: leave it out there, or set engine.precision=bf16_autocast"),
        (dict(CONFIG_DS_FIELDS="a,mixed_precision"), [], "mixed_precision no contradicts engine.precision auto: leave it out there, or set engine.precision=fp32"),
        (dict(MIXED_PRECISION="fp8"), [], "mixed_precision fp8 contradicts engine.precision auto: leave it out there, or set one of no, bf16, fp16 there"),
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
