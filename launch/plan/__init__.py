"""what a recipe needs on given GPUs, how fast it runs there, and how best to run it"""

import argparse
import json
import math
import sys
from pathlib import Path

from config import ConfigError, load_recipe
from launch.plan.choices import choose, kept_settings
from launch.plan.forecast import STORAGE_GB, forecast
from launch.plan.reason import nothing_fits, recommend
from launch.plan.report import as_json, report
from launch.plan.room import add_room_arguments, bench, room_from
from launch.plan.tune import RESULTS, run_trials
from launch.plan.write import Source, check_free, files, write_plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="name in config/recipes/ or path")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="what is set here stays as it is")
    add_room_arguments(parser)
    parser.add_argument(
        "--storage", type=float, default=STORAGE_GB, metavar="GB/S", help="of one node, for checkpoints (default: 2)"
    )
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="recipe, ds_config, Accelerate YAML and sbatch script"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files in that folder")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print numbers for a program")
    what.add_argument(
        "--tune",
        action="store_true",
        help="try the best few on this machine and write the fastest (default: into plans/NAME)",
    )
    parser.add_argument("--trials", type=int, default=6, help="of --tune, in all (default: 6)")
    parser.add_argument("--seconds", type=float, default=20, help="of a trial, after its first step (default: 20)")


def run(options: argparse.Namespace) -> int:
    for name, value in vars(options).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < math.inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: give a number above zero")
    config = load_recipe(options.recipe, options.overrides)
    room, source = room_from(options), Source(options.recipe, tuple(options.overrides))
    kept = kept_settings(config, source.overrides)
    choices = choose(config, room, kept)
    choice = recommend(choices)
    if choice is None:
        raise ConfigError(nothing_fits(choices, kept))
    ahead = forecast(choice.value, room.cluster, options.storage)
    print(json.dumps(as_json(choices, choice, ahead)) if options.json else report(choices, choice, ahead), flush=True)
    folder, notes = options.write, ""
    if options.tune:
        folder = folder or Path("plans") / config.run.name
        check_free(files(folder, choice.value, room.cluster).all, options.force)
        choice, notes = run_trials(source, choices, bench(room), folder / RESULTS, options.trials, options.seconds)
        ahead = forecast(choice.value, room.cluster, options.storage)
    if folder:
        for path in write_plan(folder, source, choice, room.cluster, ahead.seconds, options.force, notes):
            print(f"wrote {path}", file=sys.stderr)
    return 0
