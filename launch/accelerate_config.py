"""write a configuration for `accelerate launch`"""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from config import ConfigError
from config.accelerate import FP8, PRECISIONS
from config.ds_config import find_ds_config, read_ds_config
from config.load import display_path
from launch.files import write_file

MultinodeLauncher = Literal["standard", "pdsh"]

CPU = (
    "distributed_type DEEPSPEED also on a CPU: it starts the processes as torchrun does, with RANK and WORLD_SIZE set,",
    "whereas MULTI_CPU starts a single process unless mpirun is configured. The empty gpu_ids hide any GPU.",
)
STANDARD = (
    "On every node, I = 0, 1, …: accelerate launch --config_file THIS --machine_rank I train.py RECIPE",
    "with main_process_ip replaced below, or --main_process_ip ADDRESS, by the address of node 0.",
)
PDSH = (
    "On the first node: accelerate launch --config_file THIS train.py RECIPE",
    "Check the hostfile before: python -m launch hostfile hostfile",
    "Accelerate appends nearly all environment variables, passwords and keys included, to .deepspeed_env in the current",
    "folder, at every launch, and DeepSpeed exports them on every node: delete the file afterwards, never commit it.",
)

SHIPPED: dict[str, dict[str, Any]] = {
    "cpu": {"ds_config": "zero1", "cpu": True},
    "cpu_2": {"ds_config": "zero1", "gpus_per_node": 2, "cpu": True},
    "gpu_1": {"ds_config": "zero1"},
    "node_8gpu_zero1": {"ds_config": "zero1", "gpus_per_node": 8},
    "node_8gpu_zero2": {"ds_config": "zero2", "gpus_per_node": 8},
    "node_8gpu_zero2_offload": {"ds_config": "zero2_offload", "gpus_per_node": 8},
    "node_8gpu_zero3": {"ds_config": "zero3", "gpus_per_node": 8},
    "node_8gpu_zero3_offload": {"ds_config": "zero3_offload", "gpus_per_node": 8},
    "nodes_2x8gpu_standard": {"ds_config": "zero1", "nodes": 2, "gpus_per_node": 8},
    "nodes_2x8gpu_pdsh": {"ds_config": "zero1", "nodes": 2, "gpus_per_node": 8, "multinode_launcher": "pdsh"},
}
"""The files in launch/accelerate/, by name: the arguments of `accelerate_config` that write them."""


def accelerate_config(
    ds_config: str,
    nodes: int = 1,
    gpus_per_node: int = 1,
    *,
    cpu: bool = False,
    multinode_launcher: MultinodeLauncher = "standard",
    mixed_precision: str | None = None,
    comment: str | None = None,
) -> str:
    """A configuration of Accelerate as YAML text. Batch, precision and clipping stay the recipe's.

    Args:
        ds_config: a name in ds_configs/ or a path, the same as the recipe's engine.ds_config.
        gpus_per_node: processes of each node, also with `cpu`.
        multinode_launcher: of several nodes: `standard` is started on each of them, `pdsh` on the first one.
        mixed_precision: no, bf16 or fp16, and then it must say what the recipe's engine.precision says.
        comment: first line; what the file starts, if not given.

    Raises:
        ConfigError: a number below one, a ds_config that does not exist, or FP8, which is not trained here.
    """
    if min(nodes, gpus_per_node) < 1:
        raise ConfigError(f"{nodes} nodes with {gpus_per_node} processes each: a run has at least one of both")
    if mixed_precision == "fp8":
        raise ConfigError(FP8)
    path = Path(ds_config)
    stage = read_ds_config(ds_config).stage
    values: dict[str, Any] = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED"}
    deepspeed = {"deepspeed_config_file": str(path) if path.is_absolute() else display_path(find_ds_config(ds_config))}
    lines = [comment or _title(nodes, gpus_per_node, cpu, f"{path.stem} (ZeRO stage {stage})")]
    if cpu:
        lines += CPU
        values |= {"use_cpu": True, "gpu_ids": ""}
    if mixed_precision:
        values["mixed_precision"] = mixed_precision
    values |= {"num_machines": nodes, "machine_rank": 0, "num_processes": nodes * gpus_per_node}
    if nodes > 1:
        values["main_process_port"] = 29500
        deepspeed["deepspeed_multinode_launcher"] = multinode_launcher
        if multinode_launcher == "standard":
            lines += STANDARD
            values["main_process_ip"] = "ADDRESS-OF-NODE-0"
        else:
            lines += PDSH
            deepspeed["deepspeed_hostfile"] = "hostfile"
    text = yaml.safe_dump({**values, "deepspeed_config": deepspeed}, sort_keys=False, default_flow_style=False)
    return "".join(f"# {line}\n" for line in lines) + text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ds-config", default="zero1", help="name in ds_configs/ or path, as the recipe's engine.ds_config"
    )
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=1, help="processes on each node")
    parser.add_argument("--cpu", action="store_true", help="train on CPUs")
    parser.add_argument(
        "--multinode-launcher",
        choices=get_args(MultinodeLauncher),
        default="standard",
        help="standard: you start it on every node; pdsh: it starts the others over ssh",
    )
    parser.add_argument(
        "--mixed-precision", choices=[*PRECISIONS, "fp8"], help="leave it out to use the recipe's engine.precision"
    )
    parser.add_argument("--out", type=Path, help="file to write; else it is printed")


def run(options: argparse.Namespace) -> int:
    text = accelerate_config(
        options.ds_config,
        options.nodes,
        options.gpus_per_node,
        cpu=options.cpu,
        multinode_launcher=options.multinode_launcher,
        mixed_precision=options.mixed_precision,
    )
    if not options.out:
        print(text, end="")
        return 0
    write_file(options.out, text, "--out")
    print(f"accelerate launch --config_file {options.out} train.py RECIPE engine.ds_config={options.ds_config}")
    return 0


def _title(nodes: int, gpus_per_node: int, cpu: bool, zero: str) -> str:
    one = "process on the CPU" if cpu else "GPU"
    several = one.replace("process", "processes") if cpu else "GPUs"
    each = f"{gpus_per_node} {one if gpus_per_node == 1 else several}"
    return f"{f'{nodes} nodes with {each} each' if nodes > 1 else each}, {zero}."
