"""What an evaluation found: numbers for the table and the JSON file, and what the page draws of them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from config import DataError
from tasks.pages import Curve, shown


@dataclass(frozen=True)
class Result:
    kind: str
    """perplexity, sts, retrieval, …"""
    source: str
    """What it was measured on."""
    headline: str
    """The number to look at first."""
    metrics: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    """Whatever the numbers depend on beside model and source."""
    report: dict[str, dict[str, float]] = field(default_factory=dict)
    """Precision, recall, F1 and examples by class."""
    entities: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by type of entity."""
    confusion: list[list[int]] = field(default_factory=list)
    """Examples of each class of `report` (row) taken for each (column)."""
    reliability: list[dict[str, float]] = field(default_factory=list)
    """Rows of `tasks.metrics.Bin`."""
    curves: list[Curve] = field(default_factory=list)


@contextmanager
def about(source: str) -> Iterator[None]:
    """Metrics know no files: their DataErrors get the source in front."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


def as_json(model: Path, dtype: str, results: list[Result]) -> dict[str, Any]:
    """Numbers that JSON does not know, such as the accuracy of no example, are null."""
    return {"model": str(model), "dtype": dtype, "results": [_plain(asdict(result)) for result in results]}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_table(results: list[Result]) -> str:
    """A block of lines for each result: its numbers, and its classes if it has some."""
    return "\n\n".join("\n".join(_lines(result)) for result in results)


def _lines(result: Result) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    lines = [f"{result.kind}: {result.source}" + (f" ({settings})" if settings else "")]
    width = max(map(len, result.metrics))
    lines += [f"  {name:<{width}}  {shown(value)}" for name, value in result.metrics.items()]
    for report in filter(None, (result.entities, result.report)):
        width = max(map(len, report))
        columns = list(next(iter(report.values())))
        lines.append(f"  {'':<{width}}  " + "  ".join(f"{name:>9}" for name in columns))
        for name, row in report.items():
            lines.append(f"  {name:<{width}}  " + "  ".join(f"{shown(row[column]):>9}" for column in columns))
    return lines
