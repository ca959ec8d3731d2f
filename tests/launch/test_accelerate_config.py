"""Accelerate's configurations: written by the generator, read and launched by Accelerate itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from config import ConfigError, load_recipe
from config.accelerate import check_accelerate
from config.ds_config import read_ds_config
from launch.__main__ import main
from launch.accelerate_config import SHIPPED, accelerate_config
from tests.ranks import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "launch/accelerate"


@pytest.fixture(autouse=True)
def folder(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_files_are_what_the_generator_writes():
    assert {path.stem: path.read_text() for path in FOLDER.glob("*.yaml")} == {
        name: accelerate_config(**arguments) for name, arguments in SHIPPED.items()
    }


def plan(path: Path, *arguments: str):
    """What Accelerate makes of a file: its options, the command of another launcher if any, and what it exports."""
    options = launch_command_parser().parse_args(
        ["--config_file", str(path), "--main_process_port", str(free_port()), *arguments, "train.py", "RECIPE"]
    )
    options, defaults, _ = _validate_launch_command(options)
    assert options.use_deepspeed
    options.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    return options, *prepare_deepspeed_cmd_env(options)


@pytest.mark.parametrize("name", SHIPPED)
def test_accelerate_starts_what_the_name_says(name):
    path, wanted = FOLDER / f"{name}.yaml", SHIPPED[name]
    nodes, per_node = wanted.get("nodes", 1), wanted.get("gpus_per_node", 1)
    config = load_config_from_file(str(path))
    assert (config.num_machines, config.num_processes) == (nodes, nodes * per_node)
    options, command, exported = plan(path)
    if wanted.get("multinode_launcher") == "pdsh":
        assert " ".join(command).startswith(
            "deepspeed --hostfile hostfile --no_local_rank --launcher pdsh --num_gpus 8"
        )
    else:
        assert command is None and options.nproc_per_node == str(per_node)
    if name == "nodes_2x8gpu_standard":
        options, _, _ = plan(path, "--machine_rank", "1", "--main_process_ip", "10.0.0.7")
        assert options.nnodes == "2" and options.node_rank == 1
        assert options.rdzv_endpoint == f"10.0.0.7:{options.main_process_port}"
    assert (exported.get("CUDA_VISIBLE_DEVICES") == "") == name.startswith("cpu")
    stage = read_ds_config(exported["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).stage
    assert f"ZeRO stage {stage})" in path.read_text().splitlines()[0]
    check_accelerate(load_recipe("gpt_debug", [f"engine.ds_config={wanted['ds_config']}"]), exported)


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


def test_the_command_writes_one(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    command = ["accelerate", "--nodes", "4", "--gpus-per-node", "2", "--mixed-precision", "bf16"]
    assert main([*command, "--ds-config", "zero3", "--out", str(path)]) == 0
    assert f"--config_file {path} train.py RECIPE engine.ds_config=zero3" in capsys.readouterr().out
    options, _, exported = plan(path)
    assert options.nnodes == "4" and options.nproc_per_node == "2"
    check_accelerate(load_recipe("gpt_debug", ["engine.ds_config=zero3", "engine.precision=bf16"]), exported)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nodes", "0"], "0 nodes with 1 processes each: a run has at least one of both"),
        (["--ds-config", "zero7"], "engine.ds_config=zero7: no such file"),
        (["--out", "/dev"], "/dev cannot be written: Is a directory; give another --out"),
        (["--mixed-precision", "fp8"], "nothing would run in FP8: leave it out, or set bf16"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments, message, capsys):
    assert main(["accelerate", *arguments]) == 2
    assert message in capsys.readouterr().err
