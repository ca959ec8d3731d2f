"""YAML text into plain values, each with the place where it was written.

PyYAML resolves scalars as YAML 1.1 does: `3e-4` is text, `no` and `on` are booleans, `017` is octal and `1:30` is
ninety. Recipes follow the YAML 1.2 core schema instead (https://yaml.org/spec/1.2.2/#103-core-schema), plus
thousands separated as in `1_000`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from config.errors import ConfigError
from config.fields import KeyPath

CORE_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|[-+]?[0-9]{1,3}(_[0-9]{3})+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
TAG = "tag:yaml.org,2002:"


def add_core_scalars(cls: Any) -> None:
    """Teach a PyYAML loader or dumper which plain scalars are not text."""
    for kind, pattern in CORE_SCALARS.items():
        cls.add_implicit_resolver(TAG + kind, re.compile(f"({pattern})$"), None)


class CoreLoader(yaml.SafeLoader):
    """SafeLoader with the core schema's scalars instead of YAML 1.1's."""


CoreLoader.yaml_implicit_resolvers = {}
add_core_scalars(CoreLoader)


class Place(NamedTuple):
    """Where something was written, in the order in which people read it: a line of the file, or an override."""

    order: int
    text: str
    setting: str = ""


class Problem(NamedTuple):
    place: Place
    setting: str
    message: str

    def __str__(self) -> str:
        setting = "" if self.setting in ("", self.place.setting) else f"{self.setting}: "
        return f"{self.place.text}: {setting}{self.message}"


@dataclass
class Document:
    """Plain values, the place of each, and what is wrong so far."""

    values: Any
    places: dict[KeyPath, Place]
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Of the value itself or, if it was not written, of the closest section around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]

    def complain(self, path: KeyPath, message: str) -> None:
        self.problems.append(Problem(self.place(path), dotted(path), message))


def dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def parse_yaml(text: str, name: str) -> Document:
    """A recipe's text. `name` is the file as messages shall name it.

    Raises ConfigError if the text is not YAML; everything else that is wrong is collected in `problems`.
    """
    document = Document({}, {(): Place(0, name)})
    try:
        node = yaml.compose(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{where}: not valid YAML: {_syntax_help(error)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    document.values = {} if node is None else _convert(document, node, (), ())
    return document


def parse_scalar(text: str, place: Place, path: KeyPath) -> Document:
    """The value of an override: a scalar or a flow list or mapping, all at the same place."""
    document = Document(None, {(): place})
    try:
        node = yaml.compose(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        help_ = _syntax_help(error) if isinstance(error, yaml.MarkedYAMLError) else "unreadable characters"
        document.problems.append(Problem(place, dotted(path), f"not a valid value: {help_}; put it in quotes"))
        return document
    document.values = None if node is None else _convert(document, node, (), ())
    document.places = {(): place}
    document.problems = [Problem(place, dotted(path), p.message) for p in document.problems]
    return document


def _syntax_help(error: yaml.MarkedYAMLError) -> str:
    if r"'\t'" in str(error.problem):
        return "indent with spaces, not with tabs"
    return ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)


def _convert(document: Document, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
    """Plain values of a node. An alias stands for its anchor's value; one that contains itself is refused."""
    if node in above:
        document.complain(path, "this alias contains itself")
        return None
    above = (*above, node)
    if isinstance(node, yaml.MappingNode) and node.tag == TAG + "map":
        return _convert_mapping(document, node, path, above)
    if isinstance(node, yaml.SequenceNode) and node.tag == TAG + "seq":
        items = []
        for index, item in enumerate(node.value):
            item_path: KeyPath = (*path, index)
            document.places[item_path] = _line(document, item)
            items.append(_convert(document, item, item_path, above))
        return items
    try:
        return _scalar(node.tag.removeprefix(TAG), node.value)
    except ValueError:
        document.complain(path, f"{node.value!r} cannot be read as {node.tag.replace(TAG, '!!')}")
    except KeyError:
        document.complain(path, f"unknown tag {node.tag.replace(TAG, '!!')}")
    return None


def _convert_mapping(document: Document, node: yaml.MappingNode, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here = _line(document, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            document.problems.append(Problem(here, dotted(path), "a setting's name must be one word"))
            continue
        key_path = (*path, key_node.value)
        if key_node.value == "<<":
            problem = "merge keys (<<) are not supported; write the settings out"
            document.problems.append(Problem(here, dotted(path), problem))
        elif key_node.value in values:
            first = document.places[key_path].text.removeprefix(document.places[()].text + ":")
            document.problems.append(Problem(here, dotted(key_path), f"set twice, first in line {first}"))
        else:
            document.places[key_path] = here
            values[key_node.value] = _convert(document, value_node, key_path, above)
    return values


def _line(document: Document, node: yaml.Node) -> Place:
    line = node.start_mark.line + 1
    return Place(line, f"{document.places[()].text}:{line}")


def _scalar(kind: str, text: str) -> Any:
    """Raises ValueError if the text does not fit an explicit tag (`!!int eight`), KeyError if the tag is unknown."""
    readers: dict[str, Callable[[], Any]] = {
        "str": lambda: text,
        "null": lambda: None,
        "bool": lambda: bool(["false", "true"].index(text.lower())),
        "int": lambda: int(text, {"0o": 8, "0x": 16}.get(text[:2], 10)),
        "float": lambda: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    }
    return readers[kind]()
