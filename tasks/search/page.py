"""The page of a search: its trials, how they came to be better, what mattered, and where each setting was best."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple, Protocol

from tasks.pages import Axis, render
from tasks.pages.charts import MARGIN, WIDTH, Tick
from tasks.search.question import Question
from tasks.search.results import Row, ranked
from tasks.search.space import Axis as Searched
from tasks.search.space import shown

SPREAD = 3
"""A chart shows values as far from the best as this many times the median; worse ones stand at its edge."""


class Scale(Protocol):
    """What a chart asks of an axis."""

    def place(self, value: float) -> float: ...

    def ticks(self) -> list[Tick]: ...


@dataclass(frozen=True)
class Choices:
    """An axis of words, each in the middle of its own part."""

    words: tuple[str, ...]

    def place(self, value: float) -> float:
        return round(MARGIN + (value + 0.5) / len(self.words) * (WIDTH - 16 - MARGIN), 1)

    def ticks(self) -> list[Tick]:
        return [Tick(self.place(number), word) for number, word in enumerate(self.words)]


class Dot(NamedTuple):
    x: float
    y: float
    kind: str
    """best, complete or pruned."""
    title: str


class Path(NamedTuple):
    kind: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    title: str
    x_name: str
    y_name: str
    x: Scale
    y: Scale
    dots: list[Dot]
    paths: list[Path]


def search_page(
    question: Question, found: Sequence[Row], best: int | None, importance: dict[str, float], basis: str
) -> str:
    """The HTML text; `basis` says which trials the importance is of. Raises ModuleNotFoundError without jinja2."""
    valued = [row for row in found if row.value is not None]
    plots = []
    if valued:
        plots = [_history(question, valued, best), _curves(question, valued, best)]
        plots += [_slice(question, axis, valued, best) for axis in question.axes]
    return render(
        "search/page.html.jinja",
        question=question,
        rows=ranked(question, found),
        best=best,
        importance=importance,
        basis=basis,
        plots=plots,
        text=shown,
    )


def _history(question: Question, rows: Sequence[Row], best: int | None) -> Plot:
    """Each trial's value, and the best so far."""
    x, y = Axis.x(0, max(row.number for row in rows) or 1), _y(question, [row.value or 0 for row in rows])
    so_far: list[tuple[float, float]] = []
    for row in rows:
        if row.state == "complete" and row.value is not None:
            before = [value for _, value in so_far[-1:]]
            so_far += [(row.number, value) for value in (*before, question.better([row.value, *before]))]
    so_far += [(x.high, value) for _, value in so_far[-1:]]
    line = Path("best", [(x.place(a), _inside(y, b)) for a, b in so_far])
    dots = [_dot(row, x.place(row.number), y, best) for row in rows]
    return Plot("Trials and the best so far", "trial", _metric(question), x, y, dots, [line] if so_far else [])


def _curves(question: Question, rows: Sequence[Row], best: int | None) -> Plot:
    """The validations of each trial; the best is drawn last."""
    points = [point for row in rows for point in row.curve]
    x, y = Axis.x(0, max(step for step, _ in points)), _y(question, [value for _, value in points])
    ordered = sorted(rows, key=lambda row: (row.number == best, row.state == "complete"))
    paths = [
        Path(_kind(row, best), [(x.place(step), _inside(y, value)) for step, value in row.curve]) for row in ordered
    ]
    ends = [_dot(replace(row, value=row.curve[-1][1]), x.place(row.curve[-1][0]), y, best) for row in ordered]
    return Plot("Validations while they trained", "step", _metric(question), x, y, ends, paths)


def _slice(question: Question, axis: Searched, rows: Sequence[Row], best: int | None) -> Plot:
    """Values over one setting."""
    y = _y(question, [row.value or 0 for row in rows])
    if axis.kind == "choice":
        x: Scale = Choices(axis.choices)
        places = [x.place(axis.choices.index(row.params[axis.setting])) for row in rows]
    else:
        x = Axis.x(axis.low, axis.high, axis.kind.startswith("log"))
        places = [x.place(row.params[axis.setting]) for row in rows]
    dots = [_dot(row, place, y, best) for row, place in zip(rows, places, strict=True)]
    return Plot(axis.setting, axis.setting, _metric(question), x, y, dots, [])


def _y(question: Question, values: Iterable[float]) -> Axis:
    """From the best value to the worst, or to a few times the median's distance."""
    values = sorted(values, reverse=question.direction == "maximize")
    best, worst = values[0], values[-1]
    limit = best + SPREAD * (median(values) - best)
    edge = limit if abs(limit - best) < abs(worst - best) and limit != best else worst
    low, high = sorted((best, edge))
    margin = (high - low) / 20 or abs(high) / 20 or 1
    return Axis.y(low - margin, high + margin)


def _inside(y: Axis, value: float) -> float:
    return y.place(min(max(value, y.low), y.high))


def _dot(row: Row, x: float, y: Axis, best: int | None) -> Dot:
    assert row.value is not None
    settings = ", ".join(f"{name} {shown(value)}" for name, value in row.params.items())
    own = " with the recipe's own settings" if row.own else ""
    title = f"trial {row.number}{own}, {row.state} after {row.steps:,} steps: {row.value:.4f}; {settings}"
    return Dot(x, _inside(y, row.value), _kind(row, best), title)


def _kind(row: Row, best: int | None) -> str:
    return "best" if row.number == best else row.state if row.state == "complete" else "pruned"


def _metric(question: Question) -> str:
    return question.metric.replace("_", " ")
