"""Tables of one step: each module's outputs and their gradients, each parameter's norm, gradient and update."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.dist import all_sum
from engine.engine import Engine
from engine.fragments import Fragment, Step, observed_updates, owned_here, parameter_shapes
from engine.probe import Kind, probed

KINDS: tuple[Kind, Kind] = ("output", "gradient")


@dataclass
class Tally:
    """Of all tensors of one kind that one module had in a step."""

    shape: torch.Size
    """Of the last one."""
    dtype: torch.dtype
    moments: Tensor
    """See `measure`; it stays on the device until the table is made."""

    def cells(self) -> str:
        count, mean, squares, largest, zeros, bad = self.moments.tolist()
        deviation = (squares / count) ** 0.5 if count else 0.0
        return f"{mean:+9.1e} {deviation:8.1e} {largest:8.1e} {zeros / (count + bad):6.1%}"


class Statistics:
    """Collects in `collected`, once for a step. Outputs and gradients are this rank's, parameters those of all ranks."""

    def __init__(self) -> None:
        self.modules: dict[str, dict[Kind, Tally]] = {}
        self.parameters: dict[str, tuple[list[int], list[float]]] = {}
        """Shape, and norms of the weights before the update, of the clipped gradient and of the update."""

    @contextmanager
    def collected(self, engine: Engine) -> Iterator[None]:
        """All ranks enter together."""
        with probed(engine.deepspeed.module, self.see), _measured_updates(engine, self.parameters):
            yield

    def see(self, kind: Kind, name: str, tensor: Tensor) -> None:
        if kind in KINDS:
            tallies, moments = self.modules.setdefault(name, {}), measure(tensor)
            if kind in tallies:
                moments = combine(tallies[kind].moments, moments)
            tallies[kind] = Tally(tensor.shape, tensor.dtype, moments)

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*self.modules_table(), "", *self.parameters_table(), ""]), encoding="utf-8")

    def modules_table(self) -> list[str]:
        header = f"{'mean':>9} {'std':>8} {'max':>8} {'zeros':>6}"
        lines = [f"{'module':<38} {'shape':<14} {'type':<8} {header} | {'gradient':>9}{header[9:]}"]
        for name, tallies in self.modules.items():
            output = tallies["output"]
            shape, kind = "×".join(map(str, output.shape)) or "scalar", str(output.dtype).removeprefix("torch.")
            cells = " | ".join(f"{tallies[kind].cells() if kind in tallies else '':<34}" for kind in KINDS)
            lines.append(f"{name:<38} {shape:<14} {kind:<8} {cells}{self._not_finite(tallies)}".rstrip())
        return lines

    def parameters_table(self) -> list[str]:
        lines = [f"{'parameter':<47} {'shape':<14} {'norm':>9} {'gradient':>9} {'update':>9} {'update/norm':>12}"]
        for name, (size, (norm, gradient, update)) in self.parameters.items():
            ratio = f"{update / norm:12.1e}" if norm else ""
            lines.append(f"{name:<47} {'×'.join(map(str, size)):<14} {norm:9.2e} {gradient:9.2e} {update:9.2e} {ratio}")
        return lines

    def summary(self) -> str:
        """The extremes in a line."""
        words = []
        for kind, what in zip(KINDS, ("output", "gradient"), strict=True):
            largest = {
                name: float(tallies[kind].moments[3]) for name, tallies in self.modules.items() if kind in tallies
            }
            name = max(largest, key=lambda name: largest[name])
            words.append(f"largest {what} {largest[name]:.1e} at {name}")
        ratios = {name: update / norm for name, (_, (norm, _, update)) in self.parameters.items() if norm}
        if ratios:
            least, most = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
            words.append(f"update/norm from {ratios[least]:.1e} ({least}) to {ratios[most]:.1e} ({most})")
        bad = [name + self._not_finite(tallies) for name, tallies in self.modules.items() if self._not_finite(tallies)]
        return "; ".join(words + bad[:3])

    def _not_finite(self, tallies: dict[Kind, Tally]) -> str:
        counts = {kind: int(tallies[kind].moments[5]) for kind in KINDS if kind in tallies}
        return "".join(f"  {count} {kind}s NOT FINITE" for kind, count in counts.items() if count)


def measure(tensor: Tensor) -> Tensor:
    """Of the finite values: count, mean, sum of squared deviations, largest magnitude, zeros; then how many are not
    finite. fp64 [6]."""
    values = tensor.detach().float().flatten()
    finite = values.isfinite()
    values = values.where(finite, 0.0)
    count = finite.sum().double()
    mean = values.sum(dtype=torch.float64) / count.clamp(min=1)
    squares = ((values - mean.float()).square() * finite).sum(dtype=torch.float64)
    zeros = ((values == 0) & finite).sum()
    return torch.stack([count, mean, squares, values.abs().amax().double(), zeros, (~finite).sum()])


def combine(left: Tensor, right: Tensor) -> Tensor:
    """`measure` of two tensors' values together (Chan, Golub and LeVeque 1983)."""
    count = left[0] + right[0]
    share = right[0] / count.clamp(min=1)
    apart = right[1] - left[1]
    mean, squares = left[1] + apart * share, left[2] + right[2] + apart.square() * left[0] * share
    return torch.stack([count, mean, squares, torch.maximum(left[3], right[3]), left[4] + right[4], left[5] + right[5]])


@contextmanager
def _measured_updates(engine: Engine, found: dict[str, tuple[list[int], list[float]]]) -> Iterator[None]:
    trained = {name for owner in engine.owners for name in owner.parameters}
    shapes = {name: shape for name, shape in parameter_shapes(engine.deepspeed).items() if name in trained}
    world = engine.world
    mine = owned_here(engine.deepspeed, world.rank, world.size)
    squares = {name: [0.0, 0.0, 0.0] for name in shapes}

    def measured(touched: list[Fragment], step: Step) -> None:
        before = [f.view(f.owner).clone() for f in touched]
        for f, weight in zip(touched, before, strict=True):
            squares[f.name][0] += _square(weight)
            squares[f.name][1] += _square(f.gradient)
        step()
        for f, weight in zip(touched, before, strict=True):
            squares[f.name][2] += _square(f.view(f.owner) - weight)

    with observed_updates(engine.deepspeed, mine, measured):
        yield
    sums = iter(all_sum([value for values in squares.values() for value in values], world.device))
    for name, shape in shapes.items():
        found[name] = shape, [next(sums) ** 0.5 for _ in range(3)]


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())
