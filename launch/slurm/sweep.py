"""A sweep: the runs that one job array makes of a recipe, each with its own overrides and name."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from config import ConfigError

SAME_FOR_ALL = ("run.name", "run.folder", "run.resume")
"""What the script relies on."""


@dataclass(frozen=True)
class Element:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    """Its place on each axis, and run.name."""
    run_name: str


def sweep(axes: Sequence[str], run_name: str) -> list[Element]:
    """Every combination of the axes, the last one changing fastest; empty without axes.

    An axis is `section.key=value,value,…`; commas inside brackets do not separate. Raises ConfigError for one that has no
    values, or the same one twice, for a key that has two axes, and for one that has to be the same in all runs.
    """
    settings = [[f"{key}={value}" for value in values] for key, values in map(_axis, axes)]
    keys = [choices[0].partition("=")[0] for choices in settings]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise ConfigError(f"--array names {twice} twice: give all of its values in one axis, {twice}=A,B,C")
    fixed = next((key for key in keys if key in SAME_FOR_ALL), None)
    if fixed:
        raise ConfigError(
            f"--array {fixed}: all runs of a sweep have the same, and names that say what varies: leave it out"
        )
    elements = []
    for chosen in product(*settings) if settings else ():
        name = "-".join([run_name, *map(_in_a_name, chosen)])
        elements.append(Element((*chosen, f"run.name={name}"), name))
    names = [element.run_name for element in elements]
    if len(set(names)) < len(names):
        numbered = [(e.overrides[:-1], f"{run_name}-{number}") for number, e in enumerate(elements)]
        elements = [Element((*chosen, f"run.name={name}"), name) for chosen, name in numbered]
    return elements


def _axis(text: str) -> tuple[str, list[str]]:
    key, equals, values = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", values)]
    if not equals or "" in parts:
        raise ConfigError(f"--array {text}: expected section.key=value,value,… as in optimizer.lr=1e-3,3e-4")
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice:
        raise ConfigError(f"--array {text}: {twice} stands there twice; each value makes one run")
    return key.strip(), parts


def _in_a_name(setting: str) -> str:
    """`optimizer.lr=1e-3` as `lr_1e-3`."""
    key, _, value = setting.partition("=")
    return re.sub(r"[^A-Za-z0-9.+_-]+", "_", f"{key.rpartition('.')[2]}_{value}").strip("_")
