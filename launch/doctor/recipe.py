"""What a recipe asks of the machine it shall run on."""

from pathlib import Path
from typing import NamedTuple

from config import ConfigError, derive, load_recipe
from config.device import NVIDIA_DRIVER, DeviceInfo, cpu_info
from config.ds_json import deepspeed_json, resolve_precision
from config.plan import plan
from config.schema import RunSection
from launch.doctor.check import Check, fail, ok, skip


class Needs(NamedTuple):
    check: Check
    """Whether the recipe fits the number of ranks."""
    run_folder: Path = Path(RunSection().folder)
    datasets: tuple[Path, ...] = ()
    labelled: tuple[Path, ...] = ()
    """Files of examples or pairs."""
    start_from: Path | None = None
    checkpoint_bytes: int = 0
    """0 if none is written."""
    keep_last: int = 0
    host_bytes: int = 0
    """Host memory of one rank: what offload keeps there, or on a CPU everything."""


def read_recipe(name: str | None, overrides: list[str], ranks: int) -> Needs:
    if name is None:
        return Needs(
            skip("recipe", "none given; with one its folders, room for checkpoints and memory are checked too")
        )
    gpu = NVIDIA_DRIVER.exists()
    device = DeviceInfo("gpu", "a GPU with bf16", fast_bf16=True, fp16=True) if gpu else cpu_info()
    try:
        config = load_recipe(name, overrides)
        derived = derive(config, ranks)
        planned = plan(
            config, derived, deepspeed_json(config, derived, resolve_precision(config, device).value, device)
        )
    except ConfigError as error:
        fix = "train.py would say the same; to look at one node of a larger run, give its batch on the command line"
        return Needs(fail("recipe", " ".join(str(error).split()), fix))
    host = sum(planned.memory.host.values()) + (0 if gpu else sum(planned.memory.device.values()))
    labelled = config.data.examples or config.data.pairs
    files = (labelled.train, labelled.valid) if labelled else ()
    return Needs(
        ok("recipe", f"{planned.name}; {derived.batch_equation}"),
        Path(config.run.folder) / config.run.name,
        tuple(Path(dataset.path) for dataset in config.data.datasets),
        tuple(Path(file) for file in dict.fromkeys(files) if file),
        Path(config.run.start_from) if config.run.start_from else None,
        planned.checkpoint_bytes if config.checkpoint.every_steps else 0,
        planned.keep_last,
        host,
    )
