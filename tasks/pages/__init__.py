"""HTML pages of results, each one file that asks for nothing else: a style for all, and charts as SVG."""

import math
from pathlib import Path
from typing import Any

from tasks.pages.charts import HEIGHT, MARGIN, WIDTH, Axis, Chart, Curve

__all__ = ["Axis", "Chart", "Curve", "render", "shown"]

TEMPLATES = Path(__file__).parent.parent


def render(template: str, **values: Any) -> str:
    """The page of a template under tasks/, such as evaluation/page.html.jinja. Texts in it are escaped.

    A template extends pages/base.html.jinja, and draws with the macros of pages/charts.html.jinja.
    Raises ModuleNotFoundError without jinja2.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"shown": shown}
    environment.globals |= {"Axis": Axis, "Chart": Chart, "WIDTH": WIDTH, "HEIGHT": HEIGHT, "MARGIN": MARGIN}
    return environment.get_template(template).render(**values)


def shown(value: float) -> str:
    """A number as tables and pages show it."""
    if isinstance(value, int):
        return f"{value:,}"
    if math.isfinite(value) and 0 < abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.4f}" if abs(value) < 1e4 else f"{value:,.0f}"
