"""The weights that a run begins with: those of another run, of a checkpoint, or of a Hugging Face folder."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from config import ConfigError, TransformerConfig, load_recipe
from engine.checkpoint import STATE, find_checkpoint
from engine.state import FRAGMENTS, WEIGHT, Fragment, FragmentIndex
from engine.weights import fill_elements
from model import load_hf

HEADS = ("lm_head.", "temperature.")
"""What the source may lack, or have beyond what is needed: every other parameter must be in both."""
BY_TOKEN = ("embed_tokens.weight", "lm_head.weight", "lm_head.bias")
"""Parameters with a row for each token. They may have more rows than the source's, for new special tokens."""
TASK_OUTPUT = "lm_head.output."
"""A row for each label: other labels begin anew."""
TASK_DENSE, POOLER = "lm_head.dense.", "lm_head.pooler."
FREE = {"preset", "vocab_size", "dropout", "init_std", "zero_init_outputs", "pooler", "max_positions"}
"""Settings of a model in which it may differ from its source, as far as the shapes of the weights allow."""
MENTIONED = 3


@dataclass(frozen=True)
class Source:
    path: Path
    config: TransformerConfig
    shapes: Mapping[str, Sequence[int]]
    read: Callable[[str, int, int], Tensor]
    """Elements of a parameter from one place to another, flattened."""


def open_source(folder: str) -> Source:
    """Raises CheckpointError or ConfigError if there is no intact model of a known architecture."""
    path = Path(folder)
    if (path / "config.json").is_file():
        config, weights = load_hf(path, need_heads=False, pooler=True)
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        return Source(path, config, shapes, lambda name, start, stop: weights[name].reshape(-1)[start:stop])
    checkpoint = find_checkpoint(path)
    shapes = json.loads((checkpoint / STATE).read_text())["engine"]["shapes"]
    index = FragmentIndex(checkpoint / FRAGMENTS)

    def read(name: str, start: int, stop: int) -> Tensor:
        values = torch.empty(stop - start)
        index.read(WEIGHT, Fragment(name, start, stop - start, values, 0), values)
        return values

    recipe = load_recipe(str(checkpoint / "recipe.yaml"))
    if recipe.adapter.name != "none":
        fix = "export it (python -m tasks export), which merges the two, and start from the folder written"
        if recipe.adapter.name == "houlsby":
            fix = f"nothing merges the two: start from what that run started from ({recipe.run.start_from or 'random weights'})"
        raise ConfigError(
            f"run.start_from {checkpoint} has adapter.name {recipe.adapter.name} beside its weights: {fix}"
        )
    return Source(checkpoint, recipe.model, shapes, read)


def start_from(model: nn.Module, config: TransformerConfig, folder: str) -> str:
    """Fill the model, whole or in ZeRO 3's shards, with the weights in `folder`; heads that are not there keep their
    initial values. Returns in words what came from where.

    Raises ConfigError if the source is another model, with what differs.
    """
    source = open_source(folder)
    check_settings(source, config)
    wanted: dict[str, list[int]] = {
        name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in model.named_parameters()
    }
    names = match(source, wanted)

    def elements(name: str, numel: int, start: int, stop: int) -> Tensor | None:
        if name not in names:
            return None
        stop = min(stop, math.prod(source.shapes[names[name]]))
        return source.read(names[name], start, stop) if start < stop else None

    fill_elements(model, elements)
    return report(source, wanted, names)


def check_settings(source: Source, config: TransformerConfig) -> None:
    """Raises ConfigError if the model computes something else than the source does, whatever the shapes are."""
    if source.config.family != config.family:
        raise ConfigError(
            f"run.start_from {source.path} holds a model of family {source.config.family}, but model.family is "
            f"{config.family}: give a folder with a {config.family} model, or set the model section to the source's"
        )
    theirs, ours = source.config.resolved(), config.resolved()
    differing = [name for name in ours if name not in FREE and theirs.get(name) != ours[name]]
    if differing:
        shown = "; ".join(f"model.{name} is {ours[name]}, the source's {theirs.get(name)}" for name in differing)
        raise ConfigError(f"run.start_from {source.path} holds another model: {shown}. Set them to the source's")


def match(source: Source, wanted: dict[str, list[int]]) -> dict[str, str]:
    """For each parameter that the source fills, its name there. Raises ConfigError if others than heads do not fit."""
    names, problems = {}, []
    for name, shape in wanted.items():
        theirs = name.replace(TASK_DENSE, POOLER) if name not in source.shapes else name
        found = source.shapes.get(theirs)
        if found is not None and (list(found) == shape or (name in BY_TOKEN and fits(found, shape))):
            names[name] = theirs
        elif not name.startswith(HEADS) or (found is not None and not name.startswith(TASK_OUTPUT)):
            problems.append(f"{name} is {list(found) if found is not None else 'missing'} there, {shape} here")
    known = {*wanted, *names.values()}
    problems += [f"{n} is {list(source.shapes[n])} there, unknown here" for n in unused(source, known, heads=False)]
    if problems:
        more = f"; and {len(problems) - MENTIONED} more" if len(problems) > MENTIONED else ""
        raise ConfigError(
            f"run.start_from {source.path} holds another model: {'; '.join(problems[:MENTIONED])}{more}. Set the model "
            "section to the source's"
        )
    return names


def fits(found: Sequence[int], shape: list[int]) -> bool:
    """Whether one table is the beginning of the other."""
    return list(found[1:]) == shape[1:] and found[0] <= shape[0]


def unused(source: Source, known: set[str], *, heads: bool) -> list[str]:
    """Parameters of the source that are not known here; a second copy of a tied embedding is none."""
    tied = {"lm_head.weight"} if source.config.tied_embeddings else set()
    return [name for name in source.shapes if name.startswith(HEADS) == heads and name not in known | tied]


def report(source: Source, wanted: dict[str, list[int]], names: dict[str, str]) -> str:
    new = [name for name in wanted if name not in names]
    grown = [name for name in names if list(source.shapes[names[name]]) != wanted[name]]
    left = unused(source, set(names.values()), heads=True)
    lines = [f"{len(names)} of {len(wanted)} parameters from {source.path}"]
    lines += [f"new: {', '.join(new)}"] if new else []
    lines += [f"new rows: {name} {source.shapes[name][0]:,} → {wanted[name][0]:,}" for name in grown]
    lines += [f"not used: {', '.join(left)}"] if left else []
    return "; ".join(lines)
