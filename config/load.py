"""Recipes: defaults ← YAML ← `section.key=value` on the command line.

Every problem of a recipe is reported at once, one line each, with the file and line or the override it stands in.
"""

import os
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from config.errors import ConfigError
from config.explain import explain
from config.fields import KeyPath
from config.recipe_yaml import Document, Place, Problem, add_core_scalars, parse_scalar, parse_yaml
from config.schema import RunConfig

RECIPES = Path(__file__).parent / "recipes"
COMMAND_LINE = 10**9
"""Place of the first override: after every line of a file."""
SchemaT = TypeVar("SchemaT", bound=BaseModel)


def load_recipe(name_or_path: str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a recipe: a name in config/recipes/, or a path to a YAML file.

    Args:
        name_or_path: `gpt_debug` or `some/where/my.yaml`.
        overrides: `section.key=value` each; values are YAML scalars or flow lists; later ones win.

    Raises:
        ConfigError: everything that is wrong, one line each.
    """
    config = validate(_document(name_or_path, overrides), RunConfig)
    name = config.run.name or find_recipe(name_or_path).stem
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def check_values(name_or_path: str, overrides: list[str] | tuple[str, ...]) -> None:
    """Raise ConfigError for settings that there are not and for values that they never have. Whether the settings agree with
    each other is not asked."""
    document = _document(name_or_path, overrides)
    try:
        RunConfig.model_validate(document.values)
    except ValidationError as errors:
        wrong = [p for p in explain(errors, RunConfig, document, together=False) if p.place.order >= COMMAND_LINE]
        document.problems += wrong
    if document.problems:
        raise ConfigError("\n".join(map(str, document.problems)))


def _document(name_or_path: str, overrides: list[str] | tuple[str, ...]) -> Document:
    """A recipe's own settings with the overrides among them."""
    path = find_recipe(name_or_path)
    document = parse_yaml(_read(path), display_path(path))
    if isinstance(document.values, dict):
        apply_overrides(document, overrides)
    return document


def validate(document: Document, schema: type[SchemaT]) -> SchemaT:
    """Values into a frozen, checked config. Raises ConfigError with all problems, in the order of the file."""
    values, problems = document.values, document.problems
    if isinstance(values, dict):
        values = {name: {} if value is None else value for name, value in values.items()}  # `engine:` and nothing below
    try:
        config = schema.model_validate(values)
    except ValidationError as errors:
        known = {p[:2] for p in problems}
        problems = problems + [p for p in explain(errors, schema, document) if p[:2] not in known]
    if problems:
        raise ConfigError("\n".join(str(p) for p in sorted(problems, key=lambda p: p.place.order)))
    return config


def apply_overrides(document: Document, overrides: list[str] | tuple[str, ...]) -> None:
    """Replace values of a recipe; what cannot be replaced is added to the document's problems."""
    for number, override in enumerate(overrides):
        key, equals, text = override.partition("=")
        place = Place(COMMAND_LINE + number, f"command line: {override}", key.strip())
        if not (key.strip() and equals):
            document.problems.append(Problem(place, "", "expected section.key=value"))
            continue
        path: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.strip().split("."))
        parsed = parse_scalar(text, place, path)
        document.problems += parsed.problems
        problem = _set(document.values, path, parsed.values)
        if problem:
            document.problems.append(Problem(place, "", problem))
            continue
        document.places = {p: where for p, where in document.places.items() if p[: len(path)] != path}
        document.places[path] = place
        for depth in range(1, len(path)):
            document.places.setdefault(path[:depth], place)


def _set(values: Any, path: KeyPath, value: Any) -> str | None:
    """Put a value at a path, making the sections on the way. Returns what is in the way, if anything."""
    for depth, part in enumerate(path):
        above = ".".join(map(str, path[:depth]))
        if isinstance(values, list):
            if not isinstance(part, int) or part > len(values):
                return f"{above} is a list of {len(values)}; expected an index from 0, not {part}"
            values.extend([None] * (part == len(values)))
        elif not isinstance(values, dict):
            return f"{above} is not a section, so it has no {part}"
        else:
            part = str(part)
            values.setdefault(part, None)
        if depth == len(path) - 1:
            values[part] = value
        elif values[part] is None:
            values[part] = [] if isinstance(path[depth + 1], int) else {}
        values = values[part]
    return None


def find_recipe(name_or_path: str) -> Path:
    """Raises ConfigError, naming the recipes there are, if there is no such file."""
    path = Path(name_or_path)
    shipped = RECIPES / f"{path.name.removesuffix('.yaml')}.yaml"
    if path.suffix in (".yaml", ".yml") and path.exists():
        return path
    if path.parent == Path(".") and shipped.exists():
        return shipped
    names = recipe_names()
    close = get_close_matches(path.stem, names, 1)
    guess = f"; did you mean {close[0]}?" if close else "."
    raise ConfigError(
        f"{name_or_path}: no such recipe{guess} Give the path of a .yaml file or a name in config/recipes/: "
        f"{', '.join(names)}"
    )


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def display_path(path: Path) -> str:
    """Relative to the working folder if it lies inside."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{display_path(path)}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{display_path(path)}: {error.strerror}") from None


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would read as something else."""


add_core_scalars(_Dumper)


def merged_recipe(name_or_path: str, overrides: list[str] | tuple[str, ...]) -> str:
    """A recipe's own settings with the overrides among them, as YAML. Raises ConfigError as `load_recipe` does."""
    document = _document(name_or_path, overrides)
    validate(document, RunConfig)
    return _text(document)


def new_recipe(values: dict[str, Any], name: str, overrides: list[str] | tuple[str, ...] = ()) -> tuple[RunConfig, str]:
    """A recipe that is no file, with the overrides among its settings: checked, and as YAML. Messages call it `name`."""
    document = Document(deepcopy(values), {(): Place(0, name)})
    apply_overrides(document, overrides)
    return validate(document, RunConfig), _text(document)


def _text(document: Document) -> str:
    return yaml.dump(document.values, Dumper=_Dumper, sort_keys=False, width=120)


def dump_recipe(config: RunConfig) -> str:
    """YAML with every setting written out, which loads back to an equal config."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)
