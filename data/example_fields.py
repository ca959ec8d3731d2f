"""Fields of labelled examples: texts, numbers, labels."""

from typing import Any

from config import DataError
from data.batch import IGNORE
from data.example_files import Record

LARGEST = 1e18
"""Of a number to learn, in magnitude: its square is an fp32 number."""


def value_of(record: Record, name: str) -> Any:
    """A field of an example. Raises DataError if it is not there or empty."""
    where, fields = record
    if name not in fields:
        raise DataError(
            f"{where}: has no field {name!r}, only {', '.join(fields)}: set data.examples.text, .pair, .label (--text, --pair, "
            "--label) or .messages to the names of the fields"
        )
    value = fields[name]
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: {name} is empty: fill it in, or leave the example out")
    return value


def text_of(record: Record, name: str) -> str:
    """A field that holds a text. Raises DataError for anything else."""
    value = value_of(record, name)
    if not isinstance(value, str):
        raise DataError(f"{record[0]}: {name} is {type(value).__name__}, not text: write it as a string")
    return value


def number_of(record: Record, name: str) -> float:
    """A field that holds a number. Raises DataError for anything else."""
    value = value_of(record, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{record[0]}: {name} is {value!r}, not a number, which regression learns: mend the line"
        ) from None
    if number == IGNORE or not abs(number) < LARGEST:
        raise DataError(f"{record[0]}: {name} is {number:g}, which cannot be learned: leave the example out")
    return number


def label_name(where: str, value: Any) -> str:
    """As recipes spell labels, which are text: JSON's true, 1 and "1" are `true`, `1` and `1`. Raises DataError for several."""
    if isinstance(value, list | dict):
        raise DataError(
            f"{where}: {value!r} is no label: give each example, or each of its words, one as a text or a number"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)
