"""Where the parts of a chart stand on a page."""

import math
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT, MARGIN = 460, 300, 52
SERIES = 4
"""Colours that lines take in turn, --series-0 and so on in the style of the pages."""
LOG_RANGE = 20
"""An axis whose ends differ by more than this factor is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """Lines over one axis."""

    title: str
    x: str
    y: str
    lines: dict[str, list[tuple[float, float]]]
    """Points of each line by its name."""


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

    @classmethod
    def x(cls, low: float, high: float, log: bool = False) -> "Axis":
        """The horizontal axis of a chart."""
        return cls(low, high, MARGIN, WIDTH - 16, log)

    @classmethod
    def y(cls, low: float, high: float) -> "Axis":
        """The vertical axis of a chart."""
        return cls(low, high, HEIGHT - MARGIN, 16)

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.begin + (value - low) / ((high - low) or 1) * (self.end - self.begin), 1)

    def ticks(self) -> list[Tick]:
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) < 4 else (1,)
            values = [step * 10.0**n for n in decades for step in steps if self.low <= step * 10.0**n <= self.high]
        else:
            step = _round_step((self.high - self.low) / 5)
            values = [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]
        return [Tick(self.place(value), f"{value:,.6g}") for value in values]


@dataclass(frozen=True)
class Line:
    name: str
    series: int
    """Number of its colour."""
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A curve's axes, and its lines in places of the page."""

    curve: Curve
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
        x, y = Axis.x(x_low, x_high, x_low > 0 and x_high / x_low > LOG_RANGE), Axis.y(y_low, y_high)
        lines = [
            Line(name, number % SERIES, [(x.place(a), y.place(b)) for a, b in line])
            for number, (name, line) in enumerate(curve.lines.items())
        ]
        return cls(curve, x, y, lines)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, 20, … above a step."""
    power = 10 ** math.floor(math.log10(step or 1))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)
