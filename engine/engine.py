"""One optimiser step and one validation pass through DeepSpeed."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

from config.adapter_schema import AdaLoRA
from config.contrastive_schema import Similarity, micro_batch_matters
from config.errors import GroundworkError
from config.parallel import ranks_per_row
from config.schema import RunConfig
from data.batch import Batch
from engine.adalora import RankAllocation
from engine.allocator import keep_freed_memory
from engine.dist import World, all_sum
from engine.grad_cache import cached_objectives
from engine.muon import Muon
from engine.objective import Objective, choose_objective, count_targets
from engine.optimizer import build_optimizer, locate_matrices
from engine.ownership import ownership
from engine.schedule import lr_factor
from engine.scores import Predictions, predictions, scores
from engine.state import loss_scaler
from engine.tensor_parallel import sliced_dimension
from model import TaskLoss


class TrainingError(GroundworkError):
    """Training cannot go on: the loss or the gradient is no longer a number."""

    everywhere = True
    exit_code = 3
    """Of train.py. 3: starting again would fail again, other settings may not."""


@dataclass(frozen=True)
class StepReport:
    step: int
    """Index of the step, from 0."""
    loss: float
    """Sum of the parts."""
    parts: dict[str, float]
    """Mean cross-entropy over the valid targets of the global batch, in nats, of each part of the objective."""
    lr: float
    grad_norm: float
    """Global norm before clipping."""
    skipped: bool
    """fp16 only: the loss scale overflowed and the weights stayed as they were."""


@dataclass(frozen=True)
class Validation:
    parts: dict[str, float]
    """Mean loss of each part of the objective."""
    scores: dict[str, float]
    """Of predictions, by name; none of a language model's."""

    def value(self, metric: str) -> float:
        """What to make small: the loss, or minus a score."""
        return sum(self.parts.values()) if metric == "loss" else -self.scores[metric]


class Engine:
    """A model under DeepSpeed. The batch, the loss and the random state of a step depend only on (config, step)."""

    def __init__(self, config: RunConfig, model: nn.Module, ds_json: dict[str, Any], world: World, tuner: Any = None):
        """`tuner` is peft's, of a model with an adapter of low rank."""
        import deepspeed

        if world.device.type == "cpu":
            keep_freed_memory()
        self.config = config
        self.world = world
        self.objective = record_function("forward")(choose_objective(config.objective))
        self.copies = config.engine.tensor_parallel
        """Ranks that compute the same loss, each with its slices of the model."""
        model = model.to(world.device)
        self.owners = ownership(model, config.optimizer)
        bf16 = ds_json["bf16"]["enabled"] or ds_json["torch_autocast"]["enabled"]
        optimizer = build_optimizer(self.owners, config.optimizer, bf16=bf16)
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_json)
        loss_scaler(self.deepspeed).raise_error_at_min_scale = False  # `step` says more than DeepSpeed would
        if isinstance(optimizer, Muon):
            locate_matrices(optimizer, self.deepspeed, world)
        self.ranks = None
        if isinstance(config.adapter, AdaLoRA):
            self.ranks = RankAllocation(tuner, config.adapter, self.deepspeed, world)
        if self.copies > 1:
            self.deepspeed.first_dataloader_check.remove()  # that ranks got the same rows; it cannot compare a Layout

    @property
    def stage(self) -> int:
        return self.deepspeed.zero_optimization_stage()

    def autocast(self) -> torch.autocast:
        """The run's precision, for forward passes outside of DeepSpeed's."""
        enabled = self.deepspeed.torch_autocast_enabled()
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def step(self, index: int, micro_batches: list[Batch]) -> StepReport:
        """Train on this rank's micro-batches of global step `index`.

        Each part of the loss is divided by its valid targets in the whole global batch, counted before the first backward
        pass, so it does not depend on how the batch is cut. Raises TrainingError, and leaves the weights as they were, if the
        loss or the gradient norm is not finite.
        """
        ds = self.deepspeed
        self.reseed(index)
        lr = self._set_lr(index)
        targets = self.distinct_targets(micro_batches)
        ds.train()
        objectives = self.objectives(micro_batches, index)
        scaler = loss_scaler(ds)
        may_overflow = getattr(scaler, "cur_scale", 0) > getattr(scaler, "min_scale", 0)
        total = torch.zeros(len(targets), dtype=torch.float64, device=self.world.device)
        for number, (batch, objective) in enumerate(zip(micro_batches, objectives, strict=True), start=1):
            total += self.backward(batch, objective, targets, last=number == len(micro_batches))
            if number < len(micro_batches):
                ds.step()  # only counts
        parts = self._means(total, targets)
        mean = sum(parts.values())
        self._check_finite("loss", mean, index)
        if (grad_norm := self._unwrapped_grad_norm()) is not None:
            self._check_finite("gradient norm", grad_norm, index)
        with record_function("optimizer"):
            if self.ranks:
                self.ranks.step(ds.step, index + 1)
            else:
                ds.step()
        grad_norm = float(ds.get_global_grad_norm()) if grad_norm is None else grad_norm
        # Under a loss scale that can still fall an overflow is routine: DeepSpeed leaves the weights alone and lowers it.
        skipped = bool(may_overflow and ds.optimizer.overflow)
        if not skipped:
            self._check_finite("gradient norm", grad_norm, index)
        return StepReport(index, mean, parts, lr, grad_norm, skipped)

    def reseed(self, index: int, micro_batch: int | None = None) -> None:
        """The random state (dropout) of a step or, where it is computed twice, of one of its micro-batches: a function of
        (seed, step, rank), so that a resumed run draws what the first would have."""
        place = f"{self.config.run.seed}/{index}/{self.world.rank // self.copies}"
        digest = hashlib.blake2b(f"{place}/{micro_batch}".encode() if micro_batch else place.encode(), digest_size=8)
        torch.manual_seed(int.from_bytes(digest.digest(), "little") >> 1)

    def objectives(self, batches: list[Batch], index: int | None = None) -> list[Objective]:
        """The objective of each micro-batch of step `index`, or of validation: one for all, unless they look at each other."""
        config = self.config.objective
        if not isinstance(config, Similarity) or micro_batch_matters(config) or len(batches) < 2:
            return [self.objective] * len(batches)

        def reseed(micro_batch: int) -> None:
            if index is not None:
                self.reseed(index, micro_batch)

        with record_function("first pass"):
            cached = cached_objectives(config, self.deepspeed, batches, self.world.device, reseed)
        return [record_function("forward")(objective) for objective in cached]

    def backward(self, batch: Batch, objective: Objective, targets: dict[str, int], *, last: bool) -> torch.Tensor:
        """Add a micro-batch's gradients to those of its step, which has so many `targets` over all ranks. Returns the sum
        of each part of this rank's loss, fp64."""
        # Under a batch ramp the number of micro-batches changes, so DeepSpeed is told which is the last one.
        self.deepspeed.set_gradient_accumulation_boundary(last)
        losses = objective(self.deepspeed, batch, self.world.device)
        ranks = self.world.size // self.copies  # DeepSpeed averages gradients over them
        loss = torch.stack([losses[part].total * (ranks / max(count, 1)) for part, count in targets.items()]).sum()
        with record_function("backward"):
            self.deepspeed.backward(loss, scale_wrt_gas=False)
        return torch.stack([losses[part].total.detach() for part in targets]).double()

    @torch.no_grad()
    @record_function("validation")
    def validate(self, batches: list[Batch]) -> Validation:
        """Mean loss of each part over all ranks' batches, in nats, and the scores of an objective with a head of its own.
        Every rank must bring equally many batches."""
        self.deepspeed.eval()
        targets = self.distinct_targets(batches)
        total = torch.zeros(len(targets), dtype=torch.float64, device=self.world.device)
        found: list[Predictions] = []
        # Eager: the compiled blocks would be compiled once more, for inference.
        with torch.compiler.set_stance("force_eager"):
            for batch, objective in zip(batches, self.objectives(batches), strict=True):
                losses = objective(self.deepspeed, batch, self.world.device)
                total += torch.stack([losses[part].total for part in targets])
                found += [predictions(batch, loss) for loss in losses.values() if isinstance(loss, TaskLoss)]
        return Validation(self._means(total, targets), scores(self.config.objective, found, self.world))

    def distinct_targets(self, batches: list[Batch]) -> dict[str, int]:
        """Valid targets of all ranks' batches by part, each counted once although several ranks may read the same rows."""
        counted = count_targets(batches)
        sums = all_sum(list(counted.values()), self.world.device)
        return {
            part: int(count) // ranks_per_row(self.config.engine) for part, count in zip(counted, sums, strict=True)
        }

    def _means(self, total: torch.Tensor, targets: dict[str, int]) -> dict[str, float]:
        """Parts of the loss from this rank's sums and the number of all ranks' targets."""
        sums = all_sum(total.tolist(), self.world.device)
        return {
            part: value / self.copies / max(count, 1)
            for (part, count), value in zip(targets.items(), sums, strict=True)
        }

    def _set_lr(self, index: int) -> float:
        """Multiply every group's peak rate by the schedule's factor; returns `optimizer.lr` times it."""
        factor = lr_factor(self.config.schedule, index)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return self.config.optimizer.lr * factor

    def _unwrapped_grad_norm(self) -> float | None:
        """Stage 0 keeps plain gradients and reports no norm, so it is taken here, before DeepSpeed clips."""
        if self.stage > 0:
            return None
        grads = {name: p.grad for name, p in self.deepspeed.module.named_parameters() if p.grad is not None}
        if self.copies == 1:
            return float(torch.nn.utils.get_total_norm(list(grads.values())))
        slices = [grads.pop(name) for name in list(grads) if sliced_dimension(name) is not None]
        whole, sliced = (float(torch.nn.utils.get_total_norm(part)) for part in (list(grads.values()), slices))
        # Ranks with the same slice have the same gradients.
        sliced = math.sqrt(all_sum([sliced**2], self.world.device)[0] * self.copies / self.world.size)
        return math.hypot(whole, sliced)

    def _check_finite(self, what: str, value: float, index: int) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} at step {index + 1}, so the run stops; its checkpoints are from before. Lower "
                f"optimizer.lr (now {self.config.optimizer.lr:g}), or lengthen schedule.warmup_steps (now "
                f"{self.config.schedule.warmup_steps})"
            )
