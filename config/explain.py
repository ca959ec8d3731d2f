"""Pydantic's validation errors in the words of the person who wrote the recipe."""

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from config.fields import KeyPath, all_settings, field_names, resolve, tags
from config.recipe_yaml import Document, Place, Problem, dotted

Words = Callable[[dict[str, Any]], str]

EXPECTED: dict[str, Words] = {
    "int_type": lambda c: "expected a whole number",
    "float_type": lambda c: "expected a number",
    "finite_number": lambda c: "expected a finite number",
    "bool_type": lambda c: "expected true or false",
    "string_type": lambda c: "expected text",
    "tuple_type": lambda c: "expected a list",
    "greater_than": lambda c: f"must be greater than {c['gt']:g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:g}",
    "less_than": lambda c: f"must be less than {c['lt']:g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:g}",
    "literal_error": lambda c: f"expected {c['expected']}".replace("'", ""),
}


def explain(
    errors: ValidationError, schema: type[BaseModel], document: Document, *, together: bool = True
) -> list[Problem]:
    """One line per mistake; a required setting that was only misspelt is not reported as missing, too.

    Without `together`, settings that do not agree with each other are no mistake.
    """
    problems: list[Problem] = []
    misspelt: set[KeyPath] = set()
    for error in map(_at_its_tag, errors.errors(include_url=False)):
        path, parents = resolve(schema, error["loc"])
        if error["type"] == "extra_forbidden":
            close = get_close_matches(str(path[-1]), field_names(parents), 1)
            misspelt.update((*path[:-1], name) for name in close)
            problems.append(_problem(document, path, _unknown(schema, path, parents, close)))
        elif error["type"] == "value_error":
            if not together:
                continue
            message = str(error["ctx"]["error"])
            place = _place_of_first_setting(document, path, message)
            problems.append(Problem(place, dotted(path), message))
        elif error["type"] == "too_short" and _has_wrong_entries(errors, error["loc"]):
            continue  # pydantic does not count the entries that are wrong themselves
        elif error["type"] != "missing":
            problems.append(_problem(document, path, _wrong_value(error)))
    for error in errors.errors(include_url=False):
        path, parents = resolve(schema, error["loc"])
        if error["type"] == "missing" and path not in misspelt:
            problems.append(_problem(document, path, _missing(path, parents)))
    return problems


def _at_its_tag(error: Any) -> Any:
    """A section whose tag names none (a model's family) is wrong where the tag stands."""
    if error["type"] != "union_tag_invalid":
        return error
    tag = error["ctx"]["discriminator"].strip("'")
    found = {
        "loc": (*error["loc"], tag),
        "input": error["input"][tag],
        "ctx": {"expected": error["ctx"]["expected_tags"]},
    }
    return {**error, **found, "type": "literal_error"}


def _has_wrong_entries(errors: ValidationError, location: tuple[int | str, ...]) -> bool:
    below = len(location)
    return any(
        len(other["loc"]) > below and other["loc"][:below] == location for other in errors.errors(include_url=False)
    )


def _problem(document: Document, path: KeyPath, message: str) -> Problem:
    return Problem(document.place(path), dotted(path), message)


def _place_of_first_setting(document: Document, path: KeyPath, message: str) -> Place:
    """A check across settings points at the first one that its message names."""
    for name in re.findall(r"[a-z0-9_.]+", message):
        for candidate in (tuple(name.split(".")), (*path, name)):
            if candidate in document.places and candidate:
                return document.places[candidate]
    return document.place(path)


def _unknown(schema: type[BaseModel], path: KeyPath, parents: list[type[BaseModel]], close: list[str]) -> str:
    name = str(path[-1])
    _, members = resolve(schema, path)
    owners = [tags(s)[0] for s in members if name in s.model_fields and s not in parents]
    if owners:
        return f"unknown setting here; {name} belongs to {dotted(path[:-1])} {' or '.join(owners)}"
    elsewhere = [s.path for s in all_settings(schema) if s.path[-1] == name and len(s.path) > 1]
    if elsewhere:
        return f"unknown setting; {name} belongs to {' or '.join(dotted(other[:-1]) for other in elsewhere)}"
    kind = "setting" if len(path) > 1 else "section"
    if close:
        return f"unknown {kind}; did you mean {close[0]}?"
    known = field_names(parents)
    similar = {str(s): s.path[-1] for s in all_settings(schema)}
    guess = get_close_matches(name, similar.values(), 1, 0.75)
    if guess:
        return f"unknown {kind}; did you mean {next(full for full, last in similar.items() if last == guess[0])}?"
    return f"unknown {kind}; {dotted(path[:-1]) or 'a recipe'} has {', '.join(known)}"


def _missing(path: KeyPath, parents: list[type[BaseModel]]) -> str:
    field = next(s.model_fields[str(path[-1])] for s in parents if path[-1] in s.model_fields)
    about = f" ({field.description.split('.')[0]})" if field.description else ""
    return f"missing{about}"


def _wrong_value(error: Any) -> str:
    kind, value = error["type"], error["input"]
    if kind in ("model_type", "model_attributes_type"):
        hint = "; put a space after the colon" if isinstance(value, str) and ":" in value else ""
        return f"expected a section of settings, not {_show(value)}{hint}"
    if kind == "too_short":
        least = error["ctx"]["min_length"]
        return f"needs at least {least} {'entry' if least == 1 else 'entries'}, not {error['ctx']['actual_length']}"
    if kind not in EXPECTED:
        return error["msg"][0].lower() + error["msg"][1:]
    return f"{EXPECTED[kind](error.get('ctx', {}))}, not {_show(value)}{_hint(kind, value, error.get('ctx', {}))}"


def _show(value: Any) -> str:
    """A value as a recipe would spell it."""
    if isinstance(value, str):
        return f"the text {value!r}"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return "a list"
    return "empty" if value is None else str(value)


def _hint(kind: str, value: Any, context: dict[str, Any]) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return ": put it in quotes"
    if kind == "string_type" and value is None:
        return ": write '' for none"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return ": leave the quotes out"
    if kind == "bool_type" and value in ("yes", "no", "on", "off"):
        return f": write {'true' if value in ('yes', 'on') else 'false'}"
    if kind == "literal_error" and isinstance(value, str):
        close = get_close_matches(value.lower(), re.findall(r"'([^']*)'", context["expected"]), 1)
        return f"; did you mean {close[0]}?" if close else ""
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
