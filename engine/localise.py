"""Where a number first stopped being finite: the module and the rank, found by computing a failed step once more."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data.batch import Batch
from engine.dist import gather_objects
from engine.engine import Engine
from engine.probe import Kind, See, probed


@dataclass(frozen=True)
class Finding:
    """The first tensor of a rank with a value that is not finite, in the order of the forward, then the backward pass."""

    place: int
    """Tensors seen before it, alike on all ranks: where ranks exchange values, the one with the lowest place began it."""
    rank: int
    micro_batch: int
    """From 0."""
    what: str
    rows: list[int]
    """Rows of the micro-batch with such values; empty for what does not belong to rows."""


def first_not_finite(engine: Engine, index: int, micro_batches: list[Batch], show: See) -> list[Finding]:
    """Compute step `index` again without an update, and `show` all of it; each rank's finding, the earliest first.

    All ranks call it together, while the weights are still those of the step. Its gradients are lost: the run cannot go on.
    """
    search = _Search(engine.world.rank, show)
    engine.reseed(index)
    engine.deepspeed.train()
    with probed(engine.deepspeed.module, search.see):
        with torch.no_grad():
            for search.micro_batch, batch in enumerate(micro_batches):
                search.rows = len(batch.tokens_BT)
                engine.objective(engine.deepspeed, batch, engine.world.device)
        if not any(gather_objects(search.finding)):
            engine.reseed(index)
            targets = engine.distinct_targets(micro_batches)
            objectives = engine.objectives(micro_batches, index)
            for search.micro_batch, batch in enumerate(micro_batches):
                search.rows = len(batch.tokens_BT)
                engine.backward(batch, objectives[search.micro_batch], targets, last=False)
    findings = [finding for finding in gather_objects(search.finding) if finding]
    return sorted(findings, key=lambda finding: (finding.place, finding.rank))


class _Search:
    def __init__(self, rank: int, show: See) -> None:
        self.rank, self.micro_batch, self.rows, self._show = rank, 0, 0, show
        self.finding: Finding | None = None
        self._seen = 0
        self._bad_weights: dict[str, str] = {}
        self._last_gradient = "the loss"

    def see(self, kind: Kind, name: str, tensor: Tensor) -> None:
        self._show(kind, name, tensor)
        if self.finding:
            return
        self._seen += 1
        bad = ~tensor.detach().isfinite()
        if not bad.any():
            if kind == "gradient":
                self._last_gradient = f"the output of {name}"
            return
        count = f"{int(bad.sum()):,} of {bad.numel():,} values not finite"
        if kind == "weight":
            self._bad_weights[name] = count  # the module's output tells whether it matters
            return
        rows = []
        if kind != "weight gradient" and bad.ndim and len(bad) == self.rows:
            rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
        words, context = self._words(kind, name)
        self.finding = Finding(
            self._seen, self.rank, self.micro_batch, f"{words} ({_form(tensor)}, {count}){context}", rows
        )

    def _words(self, kind: Kind, name: str) -> tuple[str, str]:
        """What it is, and what is known about its surroundings."""
        if kind == "output":
            weights = {weight.removeprefix(f"{name}."): count for weight, count in self._bad_weights.items()}
            own = [f"; its {weight} has {count}" for weight, count in weights.items() if "." not in weight]
            return f"the output of {name}", "".join(own)
        if kind == "input":
            return f"what {name.rpartition('.')[0] or 'the model'} computes as the input of {name}", ""
        after = f"; the gradient of {self._last_gradient} was the last finite one"
        return f"the gradient of {'the output of ' if kind == 'gradient' else ''}{name}", after


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(map(str, tensor.shape)) or 'scalar'}"
