"""What `train.py --help` prints: every setting with its docstring, type and default, and the recipes there are."""

import textwrap
from collections.abc import Container
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.fields import sections_in
from config.load import RECIPES, recipe_names
from config.model_schema import FAMILIES
from config.schema import RunConfig

WIDTH, NAME_WIDTH = 100, 24
BY_PRESET = {name for family in FAMILIES for preset in family.PRESETS.values() for name in preset}
TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}

USAGE = """\
Train a model from a recipe.

  deepspeed train.py RECIPE [section.key=value ...]   the same under accelerate launch, torchrun,
                                                      srun and plain python
  python train.py RECIPE --dry-run [--ranks N]        print the plan (for N GPUs) and stop
  python train.py RECIPE --self-check                 compare the first steps with plain fp32 ones
  python train.py RECIPE --debug                      one process, tiny shapes, shown by module
  torchrun ... train.py RECIPE --debug-rank N         rank N gets the terminal for breakpoint()

RECIPE is a YAML file or one of the names below. Precedence: defaults, then the recipe, then
section.key=value."""


def settings_help() -> str:
    """The whole text, at most 100 columns wide."""
    recipes = [_entry(name, recipe_summary(name)) for name in recipe_names()]
    sections = [_section(name, field) for name, field in RunConfig.model_fields.items()]
    return "\n\n".join([USAGE, "\n".join(["Recipes", *recipes]), *sections])


def recipe_summary(name: str) -> str:
    """The comment in a recipe's first line."""
    return (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _section(name: str, field: FieldInfo) -> str:
    sections = sections_in(field.annotation)
    shared = _shared_base(sections)
    lines = []
    for section in ([shared] if shared else []) + sections:
        lines.append(textwrap.fill(f"{name}: {' '.join((section.__doc__ or '').split())}", WIDTH))
        own = section.__annotations__ if shared not in (None, section) else section.model_fields
        lines += _settings(section, "", own)
    return "\n".join(lines)


def _shared_base(sections: list[type[BaseModel]]) -> type[BaseModel] | None:
    """The class that all members of a union derive from, if it has settings."""
    base = sections[0].__base__
    assert base is not None and issubclass(base, BaseModel)
    return base if base.model_fields and all(issubclass(section, base) for section in sections) else None


def _settings(section: type[BaseModel], prefix: str, own: Container[str]) -> list[str]:
    lines = []
    for name, field in section.model_fields.items():
        if name not in own or not field.description:
            continue
        members = sections_in(field.annotation)
        kind = (
            ("section" if isinstance(field.annotation, UnionType) else "list")
            if members
            else describe_type(field.annotation, field.metadata)
        )
        about = field.description or ""
        default = "" if "Default:" in about else f"; {_default(name, field)}"
        lines.append(_entry(prefix + name, f"{about} [{kind}{default}]"))
        for member in members:
            number = "" if isinstance(field.annotation, UnionType) else "N."
            lines += _settings(member, f"{prefix}{name}.{number}", member.model_fields)
    return lines


def _default(name: str, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if name in BY_PRESET:
        return "default by preset"
    empty = {"": "empty", (): "empty", None: "none", True: "true", False: "false"}
    value = field.default
    return f"default {empty.get(value, value) if isinstance(value, str | bool | tuple | None) else value}"


def describe_type(annotation: Any, metadata: Any = ()) -> str:
    """A setting's type in words: `whole number > 0`, `full | blocks | none`, `list of number >= 0`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe_type(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {describe_type(arguments[0])}"
    if arguments:
        return " or ".join(describe_type(argument) for argument in arguments)
    return " ".join([TYPES[annotation], *_bounds(metadata)]).replace(">= 0 <= 1", "from 0 to 1")


def _bounds(metadata: Any) -> list[str]:
    """Limits of a number; pydantic keeps them as separate objects or inside a nested FieldInfo."""
    bounds = []
    for item in metadata:
        bounds += _bounds(item.metadata) if isinstance(item, FieldInfo) else []
        bounds += [f"{sign} {getattr(item, name):g}" for name, sign in BOUNDS.items() if hasattr(item, name)]
    return bounds


def _entry(name: str, text: str) -> str:
    """A name and, from a fixed column on, its wrapped text; a long name takes a line of its own."""
    indent = " " * (NAME_WIDTH + 2)
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - len(indent), break_on_hyphens=False)
    if len(name) >= NAME_WIDTH:
        return "\n".join([f"  {name}", *(indent + line for line in lines)])
    return "\n".join([f"  {name:<{NAME_WIDTH}}{lines[0]}", *(indent + line for line in lines[1:])])
