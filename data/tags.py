"""Tags of entities: IOB2, which is learned and scored, from IOB1, in which the first corpora were tagged."""

from typing import Any

from config import DataError


def iob2(where: str, tags: Any, scheme: str) -> Any:
    """A sentence's tags in IOB2: B- begins every entity. In IOB1 it begins only those that follow another of their type
    (Tjong Kim Sang and Veenstra 1999, arXiv:cs/9907006). Whatever is no list of tags is handed back.

    Raises DataError that names `where` and the tag if they are not in the `scheme` that the recipe says.
    """
    if not isinstance(tags, list):
        return tags
    converted, before = [], "O"
    for tag in tags:
        mark, _, kind = tag.partition("-") if isinstance(tag, str) else ("", "", "")
        begins = mark == "I" and kind and before not in (f"B-{kind}", f"I-{kind}")
        if begins and scheme == "iob2":
            raise DataError(
                f"{where}: {tag} begins an entity, after {before}: in IOB2 B-{kind} does; if the file has IOB1 tags give "
                "--tags iob1 (data.examples.tags=iob1), else mend the line"
            )
        before = f"B-{kind}" if begins else tag
        converted.append(before)
    return converted
