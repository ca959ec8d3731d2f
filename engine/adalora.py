"""AdaLoRA's rank allocation (arXiv:2303.10512) at any ZeRO stage.

peft's allocator looks at whole weights and their gradients; ZeRO has shards of both. An adapter is small, so each rank puts
it together, lets peft decide, which comes out the same everywhere, and writes back what belongs to its shards.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config.adapter_schema import AdaLoRA
from engine.dist import World
from engine.fragments import (
    Fragment,
    Step,
    base_optimizer,
    fragments,
    observed_updates,
    parameter_shapes,
    publish,
    replicated,
)
from engine.state import ADAPTER_WEIGHT
from model.adapters import ADAPTER


class WholeAdapter(nn.Module):
    """The adapter's fp32 weights under their names in the model: all that peft's allocator asks a model for."""

    def __init__(self, shapes: dict[str, list[int]], device: torch.device):
        super().__init__()
        self.weights = {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in shapes.items()}

    def named_parameters(self, *_: Any, **__: Any) -> Any:
        return self.weights.items()


class RankAllocation:
    """Steps the optimiser and takes ranks away. The running importances lie in the optimiser's state, beside its moments,
    so that checkpoints have them."""

    def __init__(self, tuner: Any, settings: AdaLoRA, engine: Any, world: World):
        """`tuner` is peft's AdaLoraModel, `engine` DeepSpeed's."""
        self.tuner, self.settings, self.engine, self.world = tuner, settings, engine, world
        self.fragments = [f for f in fragments(engine) if ADAPTER_WEIGHT in f.name]
        shapes = {name: shape for name, shape in parameter_shapes(engine).items() if ADAPTER_WEIGHT in name}
        tuner.model = self.adapter = WholeAdapter(shapes, world.device)
        self.started = False

    def step(self, step: Callable[[], None], number: int) -> None:
        """Call `step`, which makes the `number`-th update, from 1, and allocate. All ranks call it together."""
        if not self.started:
            self._start(number)
        penalty, gradients = self._penalty(), []
        updated = False

        def penalised(touched: list[Fragment], update: Step) -> None:
            nonlocal updated
            updated = True  # also on a rank whose shard has none of the adapter
            for f in touched:
                gradient = f.gradient
                gradient.add_(penalty[f.name].view(-1)[f.places])
                gradients.append((f, gradient.clone()))
            update()

        with observed_updates(self.engine, self.fragments, penalised):
            step()
        if not updated:  # fp16 overflowed, on all ranks
            return
        for parameter, gradient in zip(self.adapter.weights.values(), self._whole(gradients).values(), strict=True):
            parameter.grad = gradient
        self._gather_weights()
        before = {name: p.detach().clone() for name, p in self.adapter.weights.items()}
        self.tuner.update_and_allocate(number)
        self._keep_importances()
        if any(not torch.equal(p, before[name]) for name, p in self.adapter.weights.items()):
            for f in self.fragments:
                f.view(f.owner).copy_(self.adapter.weights[f.name].detach().view(-1)[f.places])
            publish(self.engine)

    def _start(self, number: int) -> None:
        """Take up the weights and, where a run continues, what the allocator knew."""
        self._gather_weights()
        allocator, state = self.tuner.rankallocator, base_optimizer(self.engine).state
        settings = self.tuner.peft_config[ADAPTER]
        if number > settings.total_step - settings.tfinal:  # what was taken away is exactly zero
            settings.rank_pattern = {
                name: (p != 0).view(-1).tolist() for name, p in self.adapter.weights.items() if "lora_E" in name
            }
        elif number > 1:
            for kind, values in self._importances().items():
                pieces = [(f, f.view(state[f.owner][kind])) for f in self.fragments if kind in state.get(f.owner, {})]
                values.update(self._whole(pieces))
            allocator.ipt.update({name: torch.zeros_like(p) for name, p in self.adapter.weights.items()})
        self.started = True

    def _importances(self) -> dict[str, dict[str, Tensor]]:
        """The allocator's running averages, by kind."""
        allocator = self.tuner.rankallocator
        return {"importance": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}

    def _keep_importances(self) -> None:
        """In the optimiser's state; once the allocation is final, there are none any more."""
        state = base_optimizer(self.engine).state
        for kind, values in self._importances().items():
            for f in self.fragments:
                if not values:
                    state[f.owner].pop(kind, None)
                    continue
                kept = state[f.owner].setdefault(kind, torch.zeros_like(f.owner))
                f.view(kept).copy_(values[f.name].view(-1)[f.places])

    def _penalty(self) -> dict[str, Tensor]:
        """Gradient of the weighted mean of ||P^T P - I|| and ||Q Q^T - I|| (Frobenius) over all matrices; 0 for E."""
        weights = self.adapter.weights
        factors = [p for name, p in weights.items() if "lora_E" not in name]
        with torch.enable_grad():
            norms = [
                torch.linalg.norm(small - torch.eye(len(small), device=small.device))
                for small in (p @ p.T if p.shape[0] < p.shape[1] else p.T @ p for p in factors)
            ]
            found = iter(torch.autograd.grad(self.settings.orthogonality * torch.stack(norms).mean(), factors))
        return {name: torch.zeros_like(p) if "lora_E" in name else next(found) for name, p in weights.items()}

    def _gather_weights(self) -> None:
        whole = self._whole((f, f.view(f.owner)) for f in self.fragments)
        for name, parameter in self.adapter.weights.items():
            parameter.data.copy_(whole[name])

    def _whole(self, pieces: Iterable[tuple[Fragment, Tensor]]) -> dict[str, Tensor]:
        """Whole tensors from all ranks' pieces."""
        weights = self.adapter.weights
        flat = torch.zeros(sum(p.numel() for p in weights.values()), device=self.world.device)
        places = dict(zip(weights, flat.split([p.numel() for p in weights.values()]), strict=True))
        for f, values in pieces:
            places[f.name][f.places] = values.to(flat.device, flat.dtype)
        if not replicated(self.engine):
            dist.all_reduce(flat)
        return {name: places[name].view_as(p) for name, p in weights.items()}
