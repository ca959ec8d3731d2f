"""What the user typed after `train.py`, answered at once where no training is needed."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from config.accelerate import check_accelerate
from config.debug import debug_recipe, patient, terminal_rank
from config.derive import derive
from config.device import NVIDIA_DRIVER, DeviceInfo, cpu_info
from config.ds_json import deepspeed_json, resolve_precision
from config.errors import ConfigError
from config.load import load_recipe
from config.plan import plan
from config.rendezvous import world_size
from config.schema import RunConfig

ONCE = ("run.resume=", "run.accept_changes=")
"""Overrides that hold for one start."""


@dataclass(frozen=True)
class CommandLine:
    config: RunConfig
    again: tuple[str, ...]
    """What was typed, but for the settings in ONCE."""
    debug: bool
    self_check: bool
    debug_rank: int | None = None
    """Rank that gets the terminal; None without debugging."""


class Answered(Exception):
    """The command asked for a text (`--help`, `--dry-run`) and this is it."""


def parse_command_line(arguments: list[str], environ: Mapping[str, str]) -> CommandLine:
    """The recipe with its overrides, checked against the launcher and the number of ranks.

    Raises ConfigError with everything that is wrong, and Answered if there is nothing to train.
    """
    parser = _Parser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("overrides", nargs="*")
    for flag in ("--help", "-h", "--debug", "--dry-run", "--self-check"):
        parser.add_argument(flag, action="store_true")
    for option in ("--ranks", "--debug-rank"):
        parser.add_argument(option, type=int)
    # The deepspeed launcher adds it; LOCAL_RANK says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int)
    typed = parser.parse_intermixed_args(arguments)
    if typed.help or typed.h:
        from config.help import settings_help

        raise Answered(settings_help())
    if not typed.recipe:
        raise ConfigError("no recipe given: train.py RECIPE [section.key=value ...]; train.py --help lists them")
    if typed.debug_rank is not None and (typed.dry_run or typed.self_check):
        raise ConfigError("command line: --debug-rank belongs to a training, not to --dry-run or --self-check")
    terminal = terminal_rank(typed.debug, typed.debug_rank, environ)
    if typed.debug and terminal is not None:
        config = debug_recipe(typed.recipe, typed.overrides, terminal, environ)
    else:
        config = load_recipe(typed.recipe, typed.overrides)
    if terminal is not None:
        config = patient(config)
    check_accelerate(config, environ)
    if typed.dry_run:
        raise Answered(dry_run(config, typed.ranks, environ))
    if typed.ranks is not None:
        raise ConfigError("command line: --ranks belongs to --dry-run; a training has as many ranks as are launched")
    ranks = world_size(environ)
    derive(config, ranks)
    if max(config.monitor.inspect_ranks) >= ranks and config.monitor.inspected_steps:
        raise ConfigError(
            f"monitor.inspect_ranks names rank {max(config.monitor.inspect_ranks)}, but the ranks of this launch are 0 to "
            f"{ranks - 1}"
        )
    lasting = [text for text in typed.overrides if not text.startswith(ONCE)]
    again = (typed.recipe, *["--debug"] * typed.debug, *lasting)
    return CommandLine(config, again, typed.debug, typed.self_check, terminal)


def dry_run(config: RunConfig, ranks: int | None, environ: Mapping[str, str]) -> str:
    """The plan for `ranks` GPUs, or without `ranks` for this launch on this machine."""
    if ranks is not None and ranks < 1:
        raise ConfigError(f"command line: --ranks {ranks}: a run has at least one rank")
    here = ranks is None and not NVIDIA_DRIVER.exists()
    device = cpu_info() if here else DeviceInfo("gpu", "a GPU with bf16", fast_bf16=True, fp16=True)
    derived = derive(config, ranks or world_size(environ))
    precision = resolve_precision(config, device)
    text = plan(config, derived, deepspeed_json(config, derived, precision.value, device), device)
    other = "" if ranks else "; --ranks N plans for N GPUs"
    return f"{text}\nplanned for {device.name}{other}; nothing was started"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(
            f"command line: {message}; train.py RECIPE [section.key=value ...] [--debug] [--debug-rank N] [--dry-run] [--self-check]"
        )
