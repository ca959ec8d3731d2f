"""JSON records: lines into fields, and the text and the id among these."""

import json
import re
from typing import Any

HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can spell it, UTF-8 and tokenizers cannot."""


def fields_of(line: str) -> dict[str, Any]:
    """The object in one line. Raises ValueError that says what is wrong and where in the line."""
    record = parsed(line)
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object with fields")
    if "\\ud" in line.lower() and (half := HALF.search(json.dumps(record, ensure_ascii=False))):
        raise ValueError(f"holds {half[0]!r}, half of a character (a surrogate), which is no text: take it out")
    return record


def parsed(line: str | bytes) -> Any:
    """Parse one line. Raises ValueError that says what is wrong and where in the line."""
    try:
        return json.loads(line if isinstance(line, str) else line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text: save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deep") from error


def text_of(record: Any, field: str) -> str:
    """The text of a JSON record; a null is an empty text. Raises ValueError that names the fields there are."""
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} where an object with a {field!r} field belongs")
    if field not in record:
        raise ValueError(f"no field {field!r}; there are {', '.join(map(repr, record))}: choose with --text-field")
    text = record[field]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"field {field!r} is {type(text).__name__}, not text")
    return text


def id_of(record: dict, field: str) -> str:
    """The id of a JSON record, "" if no field is asked for. Raises ValueError if it has none."""
    if not field:
        return ""
    if not isinstance(record.get(field), str | int):
        raise ValueError(
            f"field {field!r} is {record.get(field)!r}, not an id (text or a whole number): see --id-field"
        )
    return str(record[field])
