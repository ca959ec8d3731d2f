"""Walk the schema: which sections hold which settings."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KeyPath = tuple[str | int, ...]
"""Where a value stands in a recipe: section names, setting names and list indices."""


class Setting(NamedTuple):
    path: tuple[str, ...]
    field: FieldInfo

    def __str__(self) -> str:
        return ".".join(self.path)


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Every section class named in a type: itself, or the members of a tuple, a union or an Optional."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def all_settings(schema: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Every setting and, before its members, every section."""
    for name, field in schema.model_fields.items():
        yield Setting((*prefix, name), field)
        for section in sections_in(field.annotation):
            yield from all_settings(section, (*prefix, name))


def tags(section: type[BaseModel]) -> list[Any]:
    """Values by which a union may tell the section from its other members."""
    literals = [get_args(f.annotation) for f in section.model_fields.values() if get_origin(f.annotation) is Literal]
    return [values[0] for values in literals if len(values) == 1]


def field_names(sections: Iterable[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(name for section in sections for name in section.model_fields))


def resolve(schema: type[BaseModel], location: KeyPath) -> tuple[KeyPath, list[type[BaseModel]]]:
    """A pydantic error location without the tags (a model's family) that unions put into it, and the sections that its last
    part may belong to (empty if the location leads nowhere)."""
    path: list[str | int] = []
    parents: list[type[BaseModel]] = [schema]
    here = parents
    for part in location:
        tagged = [section for section in here if part in tags(section)]
        if len(here) > 1 and tagged:
            here = tagged
            continue
        path.append(part)
        if isinstance(part, str):
            parents = here
            fields = [s.model_fields[part] for s in parents if part in s.model_fields]
            here = [section for field in fields for section in sections_in(field.annotation)]
    return tuple(path), parents
