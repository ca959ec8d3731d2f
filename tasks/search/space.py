"""The search space: which settings of a recipe vary, and over what."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ConfigError, RunConfig
from config.load import check_values, display_path
from config.recipe_yaml import Place, parse_scalar, parse_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = Mapping[str, Any]
"""Values of a trial by setting."""

RANGES = {"uniform": float, "log": float, "int": int, "log_int": int}
"""Kinds of ranges and what their values are."""
SYNTAX = "uniform:LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH, log_int:LOW:HIGH, or values as a,b,c"
OWN = {"run.name", "run.folder", "run.resume", "run.accept_changes"}
GOLDEN = 0.382
"""Where inside a range its kind of value is tried: at no round number."""


@dataclass(frozen=True)
class Axis:
    """One setting, and the range or the choices of its values."""

    setting: str
    kind: str
    """One of RANGES, or choice."""
    low: float = 0
    high: float = 0
    step: float | None = None
    """Distance between values; None: any."""
    choices: tuple[str, ...] = ()
    """As a recipe spells them."""

    @property
    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        log = self.kind.startswith("log")
        if self.kind == "choice":
            return CategoricalDistribution(self.choices)
        if RANGES[self.kind] is int:
            return IntDistribution(int(self.low), int(self.high), log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, log, self.step)

    def override(self, value: Any) -> str:
        """`section.key=value` for train.py."""
        return f"{self.setting}={shown(value)}"

    def probes(self) -> list[Any]:
        """Values that the setting has to take before the search begins: the ends, and one of those between."""
        if self.kind == "choice":
            return list(self.choices)
        if RANGES[self.kind] is int:
            return [int(self.low), int(self.high)]
        ratio = self.high / self.low if self.kind == "log" else 0
        between = self.low * ratio**GOLDEN if ratio else self.low + GOLDEN * (self.high - self.low)
        return [self.low, self.high, between]

    def grid(self) -> list[Any]:
        """All values. Raises ConfigError if there is no end of them."""
        if self.kind == "choice":
            return list(self.choices)
        step = self.step or (1 if self.kind == "int" else None)
        if step is None:
            raise ConfigError(
                f"--sampler grid tries all values, and {self} has no end of them: list them, as {self.setting}="
                f"{shown(self.low)},{shown(self.high)}, or give a step"
            )
        count = int((self.high - self.low) / step + 1e-9) + 1
        # Rounded, as 3 * 0.1 lies beyond 0.3, and Optuna refuses what is out of range.
        return [RANGES[self.kind](float(f"{self.low + number * step:.12g}")) for number in range(count)]

    def of(self, config: RunConfig) -> Any:
        """The value that stands in a recipe, None if it is none of the axis."""
        value: Any = config.model_dump(mode="json")
        for part in self.setting.split("."):
            value = value[int(part)] if isinstance(value, list) else value.get(part)
        if self.kind == "choice":
            place = Place(0, "")
            return next((text for text in self.choices if parse_scalar(text, place, ()).values == value), None)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if number and self.distribution._contains(value) else None

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.setting}={','.join(self.choices)}"
        bounds = [shown(bound) for bound in (self.low, self.high, self.step) if bound is not None]
        return f"{self.setting}={':'.join([self.kind, *bounds])}"


def shown(value: Any) -> str:
    """A value as it is written on the command line, numbers with six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def overrides(axes: Iterable[Axis], params: Params) -> list[str]:
    """What makes a recipe into that of a trial."""
    return [axis.override(params[axis.setting]) for axis in axes]


def read_space(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Axes from `section.key=…` and from YAML files. Raises ConfigError with everything that is not understood."""
    axes, problems = [], []
    for (setting, values), where in [entry for text in texts for entry in _entries(text)]:
        try:
            axes.append(_axis(setting, values))
        except ConfigError as error:
            problems.append(f"{where}: {error}")
    names = [axis.setting for axis in axes]
    problems += [f"--space: {name} stands there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ConfigError("\n".join(problems))
    if not axes:
        raise ConfigError(f"nothing to search: give --space section.key={SYNTAX}; or a YAML file of such lines")
    return tuple(axes)


def check_space(axes: Sequence[Axis], recipe: str, given: Sequence[str]) -> None:
    """Raise ConfigError for settings that a recipe does not have or that cannot be searched, and for ends of ranges and
    choices that a setting refuses. `given` are the command line's overrides."""
    problems = []
    for axis in axes:
        if axis.setting in OWN:
            problems.append(f"--space {axis}: the search sets {axis.setting} itself")
        elif axis.setting.startswith("validation."):
            problems.append(f"--space {axis}: trials that are judged in different ways cannot be compared")
        elif any(text.partition("=")[0] == axis.setting for text in given):
            problems.append(f"--space {axis}: {axis.setting} is also set on the command line: choose one")
        else:
            problems += _refused(axis, recipe, given)
    if problems:
        raise ConfigError("\n".join(problems))


def _refused(axis: Axis, recipe: str, given: Sequence[str]) -> list[str]:
    """What the schema says to the first value that it does not take."""
    for value in axis.probes():
        try:
            check_values(recipe, [*given, axis.override(value)])
        except ConfigError as error:
            whole = isinstance(value, float) and "expected a whole number" in str(error)
            return [f"--space {axis}: {error}{'; for whole numbers write int: or log_int:' if whole else ''}"]
    return []


def _entries(text: str) -> list[tuple[tuple[str, Any], str]]:
    """Settings with what is written for each, and where; of one option."""
    setting, equals, values = text.partition("=")
    if equals:
        return [((setting.strip(), values.strip()), f"--space {text}")]
    path = Path(text)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--space {text}: expected section.key={SYNTAX}; or a YAML file of such lines")
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), display_path(path))
    except OSError as error:
        raise ConfigError(f"--space {path}: {error.strerror}") from None
    if document.problems:
        raise ConfigError("\n".join(map(str, document.problems)))
    if not isinstance(document.values, dict):
        raise ConfigError(f"--space {path}: expected a mapping of settings, as `optimizer.lr: log:1e-4:1e-2`")
    return [((".".join(keys), value), document.place(keys).text) for keys, value in _flat(document.values)]


def _flat(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    flat = []
    for name, value in values.items():
        flat += _flat(value, (*above, name)) if isinstance(value, dict) else [((*above, name), value)]
    return flat


def _axis(setting: str, values: Any) -> Axis:
    """Raises ConfigError, which does not say where."""
    if isinstance(values, list):
        return _choices(setting, [value if isinstance(value, str) else json.dumps(value) for value in values])
    text = str(values)
    kind, *bounds = text.split(":")
    if kind in RANGES and bounds:
        return _range(setting, kind, bounds)
    if bounds and "," not in text and re.fullmatch(r"\w+", kind):
        raise ConfigError(f"unknown range {kind}; expected {SYNTAX}")
    return _choices(setting, [part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text)])


def _choices(setting: str, texts: list[str]) -> Axis:
    if "" in texts or len(texts) < 2:
        raise ConfigError(f"{setting} needs two values or more; expected {SYNTAX}")
    if len(set(texts)) < len(texts):
        raise ConfigError(f"a value of {setting} stands there twice")
    return Axis(setting, "choice", choices=tuple(texts))


def _range(setting: str, kind: str, bounds: list[str]) -> Axis:
    try:
        numbers = [RANGES[kind](bound) for bound in bounds]
    except ValueError:
        what = "whole numbers" if RANGES[kind] is int else "numbers"
        raise ConfigError(f"{kind} takes {what}, not {':'.join(bounds)}") from None
    steps = (2,) if kind.startswith("log") else (2, 3)
    if len(numbers) not in steps:
        raise ConfigError(f"{kind} takes {kind}:LOW:HIGH{'' if len(steps) == 1 else ' or with :STEP behind'}")
    low, high = numbers[:2]
    if low >= high:
        raise ConfigError(
            f"{kind} goes from {bounds[0]} up to {bounds[1]}, which is not more: put the smaller one first"
        )
    if kind.startswith("log") and low <= 0:
        raise ConfigError(f"{kind} begins at {bounds[0]}, and a logarithmic range begins above 0")
    step = numbers[2] if len(numbers) == 3 else None
    if step is not None and not 0 < step <= high - low:
        raise ConfigError(f"the step {bounds[2]} does not fit between {bounds[0]} and {bounds[1]}")
    return Axis(setting, kind, low, high, step)
