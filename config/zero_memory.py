"""Bytes of weights, gradients and optimiser of one rank, and of DeepSpeed's buffers and copies of them.

After ZeRO (arXiv:1910.02054, section 5); buffers, copies and when they exist as DeepSpeed 0.19 has them
(runtime/zero/stage_1_and_2.py, stage3.py, runtime/bf16_optimizer.py) and benchmarks/memory.py measures them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from config.block_memory import FP32
from config.count import ParameterCounts
from config.derive import Derived
from config.optimizer_schema import OptimizerSection
from config.schema import RunConfig

ALLREDUCE = 500_000_000
"""Gradients that stage 0 copies into one message."""
Parts = dict[str, int]


def moments(optimizer: OptimizerSection, counts: ParameterCounts) -> int:
    """fp32 numbers that the update rule keeps in all: muon one for each weight of its matrices (the few biases and
    norms counted with them have two), adamw two."""
    with_momentum = optimizer.momentum > 0
    if optimizer.name == "muon":
        return 2 * counts.total - counts.attention - counts.ffn
    return (
        counts.total * {"adamw": 2, "lion": 1, "sgd": int(with_momentum), "rmsprop": 1 + with_momentum}[optimizer.name]
    )


def kept_moments(config: RunConfig, derived: Derived) -> int:
    """fp32 numbers kept of all trained weights: the update rule's, and of each of AdaLoRA's its importance and how much
    that varies."""
    counts, own = derived.parameters, 2 * derived.adapter if config.adapter.name == "adalora" else 0
    return moments(config.optimizer, counts) * derived.trained // counts.total + own


@dataclass(frozen=True)
class States:
    """What a rank holds of the model, and what DeepSpeed adds to it during a step."""

    config: RunConfig
    derived: Derived
    ds_json: dict[str, Any]

    @cached_property
    def zero(self) -> dict[str, Any]:
        return self.ds_json["zero_optimization"]

    @cached_property
    def stage(self) -> int:
        return self.zero["stage"]

    @cached_property
    def number(self) -> int:
        """Bytes of a weight."""
        return 2 if self.ds_json["bf16"]["enabled"] or self.ds_json["fp16"]["enabled"] else FP32

    @cached_property
    def whole(self) -> int:
        """Weights of a rank before ZeRO shards them: tensor parallelism slices the blocks' matrices."""
        return self._total - self._matrices + self._matrices // self.config.engine.tensor_parallel

    @cached_property
    def share(self) -> int:
        """Weights of a rank's shard. Slices are sharded over the ranks that have the same one, the rest too, or at stage
        3 over all ranks."""
        slices, world = self.config.engine.tensor_parallel, self.derived.world_size
        sliced, rest = self._matrices // slices, self._total - self._matrices
        return -(-sliced // (world // slices)) + -(-rest // (world if self.stage == 3 else world // slices))

    @cached_property
    def trained(self) -> int:
        """Of `whole`, weights that have gradients and moments."""
        return self.derived.trained if self.derived.adapter else self.whole

    @cached_property
    def trained_share(self) -> int:
        """The same of `share`."""
        return -(-self.trained // self.derived.world_size) if self.derived.adapter else self.share

    @property
    def _total(self) -> int:
        return self.derived.parameters.total + self.derived.adapter

    @property
    def _matrices(self) -> int:
        return self.derived.parameters.attention + self.derived.parameters.ffn

    @cached_property
    def accumulates(self) -> bool:
        return self.derived.accumulation_steps > 1

    @cached_property
    def accumulator(self) -> int:
        """Bytes of an accumulated gradient."""
        kind = self.ds_json.get("data_types", {}).get("grad_accum_dtype")
        return {"fp32": FP32, None: self.number}.get(kind, 2)

    @cached_property
    def keeps_fp32_gradients(self) -> bool:
        """Stage 1 with low-precision weights and an fp32 accumulator is DeepSpeed's BF16_Optimizer: all gradients of the
        rank in both precisions, and no buckets."""
        return self.stage == 1 and self.accumulator > self.number

    def offloads(self, what: str) -> bool:
        return (self.zero.get(f"offload_{what}") or {}).get("device", "none") == "cpu"

    def weights(self) -> int:
        return self.number * (self.share if self.stage == 3 else self.whole)

    def secondary_weights(self) -> int:
        """ZeRO++'s second shards (arXiv:2306.10209, section 3.2), of which `zero_hpz_partition_size` ranks have all."""
        size = int(self.zero.get("zero_hpz_partition_size", 1))
        return self.number * -(-self._total // size) if size > 1 else 0

    def optimizer(self) -> int:
        """Moments, and where ZeRO shards or weights are low a flat fp32 copy of the trained weights."""
        kept = kept_moments(self.config, self.derived) / self.derived.trained
        kept += self.stage > 0 or self.number < FP32
        return int(FP32 * (self.trained_share if self.stage else self.trained) * kept)

    def rank_allocation(self) -> int:
        """AdaLoRA's on every rank: whole weights and gradients, their importance, and averages of it and of its changes."""
        return 5 * FP32 * self.derived.adapter if self.config.adapter.name == "adalora" else 0

    def kept_gradients(self) -> int:
        """Gradients that stay between steps."""
        if self.keeps_fp32_gradients:
            return FP32 * self.trained
        return self.accumulator * self.trained_share if self.stage == 3 else 0

    def host(self) -> Parts:
        """What offload keeps in the host's memory; copies on their way included."""
        parts: Parts = {}
        if self.offloads("param"):
            parts["weights"] = self.weights()
        if self.offloads("optimizer"):
            copies = (
                self.kept_gradients()
                if self.stage == 3
                else self.number * (self.trained_share + self._largest_gradient)
            )
            parts |= {"optimiser": self.optimizer(), "gradients": FP32 * self.trained_share, "copies": copies}
        return parts

    def gradients(self) -> dict[str, int]:
        """Gradients that come and go, at each moment of a step; those of earlier micro-batches included."""
        if self.offloads("optimizer"):
            return {"forward": 0, "backward": self.number * self._largest_gradient, "step": 0}
        if self.stage == 3:
            return {"forward": 0, "backward": self.number * self._largest_gradient, "step": 0}
        whole, share = self.number * self.trained, self.number * self.trained_share
        if self.stage == 2:
            before = self.accumulates * self.accumulator * self.trained_share
            return {"forward": before, "backward": before + share, "step": share}
        staged = self.number * self._largest_gradient if self.stage == 1 else 0
        step = share if self.stage == 1 and not self.keeps_fp32_gradients else whole
        return {"forward": self.accumulates * whole, "backward": whole + staged, "step": step}

    def step_copies(self) -> int:
        """What the optimiser's step needs beside gradients: one parameter group in fp32, and as it is cut from them;
        muon also its update."""
        if self.offloads("optimizer"):
            return self.number * self._largest_gradient
        if self.stage == 0:
            return self.number * min(self.trained, ALLREDUCE)
        muon, ranks = self.config.optimizer.name == "muon", self.whole / self.share
        group = int(max(self._matrices / ranks, self.share - self._matrices / ranks)) if muon else self.trained_share
        copies = 0 if self.keeps_fp32_gradients else group * (FP32 + (self.number if self.number < FP32 else 0))
        if self.stage == 3:
            copies = group * (self.number + FP32)
        if muon:
            copies += int(self._matrices / ranks) * (FP32 + (6 if self.computes_low else 12))
        return copies

    def weight_copies(self) -> int:
        """bf16 copies that autocast makes of the blocks' matrices; stage 3 does not keep them."""
        copies = self.ds_json["torch_autocast"]["enabled"] and self.stage < 3
        return 2 * self._matrices // self.config.engine.tensor_parallel if copies else 0

    @cached_property
    def computes_low(self) -> bool:
        """Whether matrix products are in bf16 or fp16."""
        return self.number < FP32 or self.ds_json["torch_autocast"]["enabled"]

    def buffers(self, kind: str) -> int:
        """Buckets in which gradients are reduced: two when communication overlaps, and one more for bf16 messages under
        autocast. A CPU never touches, and so never holds, more of them than it has gradients."""
        if self.stage == 0 or self.keeps_fp32_gradients:
            return 0
        bucket = int(self.zero.get("reduce_bucket_size", 5e8))
        autocast = self.ds_json["torch_autocast"]["enabled"]
        if self.stage == 3:
            bytes_each = self.number + (2 if autocast else 0)
        else:
            bytes_each = self.number * (2 if autocast else 1) * (2 if self.zero.get("overlap_comm") else 1)
        return bytes_each * (bucket if kind == "gpu" else min(bucket, self.trained))

    def gathered(self) -> int:
        """Whole weights that stage 3 holds at a time: those that it will soon use again stay."""
        if self.stage < 3 or self.derived.world_size == 1:
            return 0
        ahead = int(self.zero.get("stage3_prefetch_bucket_size", 5e7))
        reach = min(int(self.zero.get(f"stage3_{what}", 1e9)) for what in ("max_live_parameters", "max_reuse_distance"))
        return self.number * min(max(reach, self._largest + ahead), self.whole)

    @cached_property
    def _largest(self) -> int:
        """The largest parameter: the embedding's or the head's."""
        return self.config.model.vocab_size * self.config.model.hidden_size

    @property
    def _largest_gradient(self) -> int:
        """At most; an adapter's are all small."""
        return min(self._largest, self.trained)
