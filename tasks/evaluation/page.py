"""One HTML page of results that needs nothing else: numbers, classes, confusion matrices, reliability and curves as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tasks.evaluation.result import Curve, Result, shown

WIDTH, HEIGHT, MARGIN = 460, 300, 52
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed")
LOG_RANGE = 20
"""An axis whose ends differ by more than this factor is logarithmic."""


class Tick(NamedTuple):
    place: float
    text: str


@dataclass(frozen=True)
class Axis:
    """Numbers to places on the page."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.begin + (value - low) / ((high - low) or 1) * (self.end - self.begin), 1)

    def ticks(self) -> list[Tick]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            values = [10.0**n for n in decades if self.low <= 10.0**n <= self.high]
        else:
            step = _round_step((self.high - self.low) / 5)
            values = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]
        return [Tick(self.place(value), f"{value:,.6g}") for value in values]


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    title: str
    x_name: str
    y_name: str
    x: Axis
    y: Axis
    lines: list[Line]

    @classmethod
    def of(cls, curve: Curve) -> "Chart":
        """The axes hold all points; one that counts begins at 0 unless its values lie close together."""
        points = [point for line in curve.lines.values() for point in line]
        x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
        y_low, y_high = min(y for _, y in points), max(y for _, y in points)
        y_low = 0.0 if 0 <= y_low < y_high / 2 else y_low - (y_high - y_low) / 10
        log = x_low > 0 and x_high / x_low > LOG_RANGE
        x, y = Axis(x_low, x_high, MARGIN, WIDTH - 16, log), Axis(y_low, y_high, HEIGHT - MARGIN, 16)
        lines = [
            Line(name, COLOURS[number % len(COLOURS)], [(x.place(a), y.place(b)) for a, b in line])
            for number, (name, line) in enumerate(curve.lines.items())
        ]
        return cls(curve.title, curve.x, curve.y, x, y, lines)


def render(model: Path, results: Sequence[Result]) -> str:
    """The page. Texts in it are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": shown}
    template = environment.get_template("page.html.jinja")
    unit = Axis(0, 1, MARGIN, WIDTH - 16), Axis(0, 1, HEIGHT - MARGIN, 16)
    return template.render(
        model=model, results=results, Chart=Chart, size=(WIDTH, HEIGHT, MARGIN), unit=unit, isnan=math.isnan
    )


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, … above a step."""
    power = 10 ** math.floor(math.log10(step or 1))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
