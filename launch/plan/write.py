"""A plan as files: recipe, DeepSpeed JSON, Accelerate's YAML and sbatch script."""

import json
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from config import Choice, ConfigError, load_recipe
from config.hardware import Cluster
from config.load import display_path, find_recipe, merged_recipe
from launch.accelerate_config import accelerate_config
from launch.files import write_file
from launch.plan.option import DS_CONFIG, Option
from launch.plan.reason import in_words
from launch.plan.variants import is_written
from launch.slurm.request import SlurmJob
from launch.slurm.script import sbatch_script

HOUR = 3600
LONGEST_JOB_HOURS = 24
SPARE_TIME = 1.25
"""Time limit of a job over the predicted time."""


@dataclass(frozen=True)
class Source:
    """The recipe as the command named it."""

    recipe: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Files:
    recipe: Path
    accelerate: Path
    ds_config: Path | None
    """None for one that is there already."""
    sbatch: Path | None
    """None for several ranks on one CPU, of which SLURM would start one."""

    @property
    def all(self) -> list[Path]:
        return [path for path in (self.recipe, self.ds_config, self.accelerate, self.sbatch) if path]


def files(folder: Path, option: Option, cluster: Cluster) -> Files:
    name, by_slurm = option.config.run.name, cluster.accelerator.kind == "gpu" or cluster.gpus_per_node == 1
    return Files(
        recipe=folder / f"{name}.yaml",
        accelerate=folder / "accelerate.yaml",
        ds_config=None if is_written(option.config.engine.ds_config) else folder / option.ds_config.path,
        sbatch=folder / f"{name}.sbatch" if by_slurm else None,
    )


def check_free(paths: list[Path], force: bool) -> None:
    """Raises ConfigError if a file exists, unless it may be overwritten."""
    present = [display_path(path) for path in paths if path.exists()]
    if present and not force:
        raise ConfigError(f"{', '.join(present)} would be overwritten: give another --write folder, or --force")


def write_plan(
    folder: Path, source: Source, choice: Choice[Option], cluster: Cluster, seconds: float, force: bool, notes: str = ""
) -> list[Path]:
    """Write an option's files into a folder; `seconds` is the predicted time of the run, `notes` go into the recipe.

    Raises ConfigError, before anything is written, if a file exists and `force` is not given.
    """
    option, recipe = choice.value, load_recipe(source.recipe, source.overrides)
    into = files(folder, option, cluster)
    check_free(into.all, force)
    settings = option.changes(recipe)
    if into.ds_config:
        write_file(into.ds_config, json.dumps(option.ds_config.values, indent=2) + "\n", "--write")
        settings[DS_CONFIG] = display_path(into.ds_config)
    write_file(into.recipe, recipe_text(source, settings, _comment(choice, cluster, notes)), "--write")
    on_cpu, nodes, per_node = cluster.accelerator.kind == "cpu", cluster.nodes, cluster.gpus_per_node
    ds_config = settings.get(DS_CONFIG, recipe.engine.ds_config)
    write_file(into.accelerate, accelerate_config(ds_config, nodes, per_node, cpu=on_cpu), "--write")
    if into.sbatch:
        gpus = 0 if on_cpu else per_node
        job = SlurmJob(display_path(into.recipe), nodes=nodes, gpus_per_node=gpus, time=_time_limit(seconds))
        write_file(into.sbatch, sbatch_script(job), "--write")
    return into.all


def recipe_text(source: Source, settings: dict[str, Any], comment: str) -> str:
    """The recipe with settings of a plan. Its own opening comment stays, other comments do not."""
    opening = []
    for line in find_recipe(source.recipe).read_text().splitlines():
        if not line.startswith("#"):
            break
        opening.append(line)
    added = [f"# {line}".rstrip() for line in comment.splitlines()]
    overrides = [*source.overrides, *(f"{name}={value}" for name, value in settings.items())]
    return "\n".join([*opening, *added, merged_recipe(source.recipe, overrides)])


def _comment(choice: Choice[Option], cluster: Cluster, notes: str) -> str:
    title = f"Planned for {cluster.gpus} × {cluster.accelerator.name}: {in_words(choice.value)}: {choice.reason}."
    return "\n".join([*wrap(title, 116), *notes.splitlines()])


def _time_limit(seconds: float) -> str:
    """For sbatch: whole hours."""
    hours = int(seconds * SPARE_TIME // HOUR) + 1
    return f"{min(hours, LONGEST_JOB_HOURS)}:00:00"
