"""Every setting of a run, with its docstring, unit and default.

The docstrings below the fields are what `train.py --help` prints.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from config.adapter_schema import NO_ADAPTER, AdapterConfig, check_adapter
from config.count import count_parameters
from config.data_schema import DataSection
from config.model_schema import ModelConfig
from config.monitor_schema import MonitorSection
from config.objective_check import check_objective, fill_objective
from config.objective_schema import CAUSAL_LM, ObjectiveConfig
from config.optimizer_schema import OptimizerSection
from config.parallel import check_parallel
from config.section import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from config.transformer_schema import Recompute
from config.validation_schema import ValidationSection


class RunSection(Section):
    """Where a run lives and how it starts."""

    name: str = ""
    """Folder of the run under `folder`. Default: the recipe's file name."""
    folder: str = "runs"
    """Parent folder of all runs."""
    seed: Annotated[int, Field(ge=0, lt=10**18)] = 1337
    """Seed of weights, order of the data and dropout."""
    resume: Literal["auto", "fresh", "replace", "must"] = "auto"
    """auto: continue from the newest intact checkpoint if there is one. fresh: set an existing run aside under a
    numbered name and start over. replace: delete it and start over. must: fail if there is nothing to continue."""
    start_from: str = ""
    """Run, checkpoint or Hugging Face folder whose weights a new run begins with; its tokenizer is the run's, too. Heads
    that it lacks get initial weights. A run that continues from a checkpoint does not read it again."""
    accept_changes: bool = False
    """Continue although settings that change the result differ from the checkpoint's."""


class BatchPhase(Section):
    """A smaller global batch at the beginning of the run."""

    until_tokens: PositiveInt
    """Training token up to which steps are this large; the step that reaches it is the last."""
    global_batch_size: PositiveInt
    """Rows in one optimiser step, over all ranks."""


class BatchSection(Section):
    """Batch arithmetic: global = micro x accumulation x data-parallel ranks."""

    global_batch_size: PositiveInt
    """Rows in one optimiser step, over all ranks."""
    micro_batch_size: PositiveInt
    """Rows in one forward and backward pass of one rank."""
    ramp: Annotated[tuple[BatchPhase, ...], Field(strict=False)] = ()
    """Smaller batches to begin with, growing up to global_batch_size. The learning rate follows the schedule's steps."""

    @model_validator(mode="after")
    def _check_ramp(self) -> "BatchSection":
        sizes = [phase.global_batch_size for phase in self.ramp] + [self.global_batch_size]
        ends = [phase.until_tokens for phase in self.ramp]
        for what, numbers in (("global_batch_size", sizes), ("until_tokens", ends)):
            for before, after in pairwise(numbers):
                if before >= after:
                    raise ValueError(
                        f"batch.ramp grows, but its {what} {before:,} is followed by {after:,}: order them"
                    )
        return self


class ScheduleSection(Section):
    """Length of the run and the learning rate over it."""

    steps: PositiveInt
    """Optimiser steps of the whole run."""
    name: Literal["constant", "linear", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    """Shape after the warm-up. wsd: constant, then linear over the last cooldown_fraction of the run."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from zero."""
    min_lr_ratio: Fraction = 0.1
    """Rate at the end of linear, cosine and wsd, as a share of the peak."""
    cooldown_fraction: Fraction = 0.4
    """Share of the run that cools down (wsd)."""


class EngineSection(Section):
    """How a step is computed. Nothing here changes what is trained, only how."""

    ds_config: str = "zero1"
    """DeepSpeed JSON: a name in ds_configs/ or a path."""
    precision: Literal["auto", "fp32", "bf16_autocast", "bf16", "fp16"] = "auto"
    """auto: bf16_autocast where the device computes bf16 fast, else fp32. bf16_autocast: fp32 weights, bf16 matrix
    products. bf16, fp16: low-precision weights with fp32 master copies (ZeRO 1 to 3)."""
    kernel: Literal["auto", "flash", "varlen", "flex", "sdpa", "reference"] = "auto"
    """Attention kernel. auto: the fastest one that supports the model on the device."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block. auto: on for a GPU and for long runs on a CPU with fast bf16, off under ZeRO 3."""
    activation_checkpointing: Recompute = "none"
    """What the backward pass computes again instead of keeping it. selective: all but matrix products and attention,
    for about two thirds of the memory. full: each block from its input, for about a third more time."""
    sequence_parallel: PositiveInt = 1
    """Neighbouring ranks that share rows and split their tokens, for long rows (Ulysses, arXiv:2309.14509)."""
    tensor_parallel: PositiveInt = 1
    """Neighbouring ranks that share rows and split the matrices of each block (Megatron-LM, arXiv:1909.08053), through
    DeepSpeed's AutoTP."""
    loss_chunk_tokens: PositiveInt = 1024
    """Tokens whose logits exist at the same time."""
    communication_timeout: PositiveFloat = 1800.0
    """Seconds after which a stuck collective fails the run."""

    @model_validator(mode="after")
    def _check_compile(self) -> "EngineSection":
        if self.compile == "on" and self.activation_checkpointing == "selective":
            raise ValueError(
                "activation_checkpointing selective cannot look into compiled blocks and compile is on: set compile to "
                "auto, or activation_checkpointing to full"
            )
        return self


class CheckpointSection(Section):
    """What survives."""

    every_steps: NonNegativeInt = 500
    """Steps between checkpoints; the last step and every stop save too. 0 saves nothing, for measuring."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept; older ones are deleted."""
    reserve_seconds: NonNegativeFloat = 60.0
    """Seconds left at the end of a SLURM allocation, beyond two of the longest steps with their saves, for a run to stop."""

    def is_due(self, step: int, last: int, stopping: bool) -> bool:
        return self.every_steps > 0 and (stopping or step == last or step % self.every_steps == 0)


class RunConfig(Section):
    """One recipe: everything that defines a run."""

    run: RunSection = RunSection()
    data: DataSection
    model: ModelConfig
    objective: ObjectiveConfig = CAUSAL_LM
    adapter: AdapterConfig = NO_ADAPTER
    batch: BatchSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    engine: EngineSection = EngineSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    monitor: MonitorSection = MonitorSection()

    @model_validator(mode="before")
    @classmethod
    def _fill_objective(cls, values: Any) -> Any:
        return fill_objective(values)

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        if self.data.row_length > self.model.max_positions:
            raise ValueError(
                f"data.row_length {self.data.row_length} is longer than model.max_positions {self.model.max_positions}"
            )
        if self.schedule.warmup_steps > self.schedule.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} is more than schedule.steps {self.schedule.steps}"
            )
        if any(step > self.schedule.steps for step in self.monitor.inspected_steps):
            raise ValueError(
                f"monitor looks at step {max(self.monitor.inspected_steps)}, but schedule.steps is {self.schedule.steps}: "
                "name earlier steps in statistics_steps, profile_steps and memory_steps"
            )
        if self.validation.keep_best and not self.checkpoint.every_steps:
            raise ValueError(
                "validation.keep_best keeps a checkpoint, and checkpoint.every_steps 0 saves none: set one"
            )
        if self.optimizer.head_lr_ratio != 1 and not count_parameters(self.model, self.objective).head:
            raise ValueError(
                f"optimizer.head_lr_ratio {self.optimizer.head_lr_ratio:g} has no effect: under model.tied_embeddings the head "
                "is the embedding, whose rate optimizer.embedding_lr_ratio scales; remove it"
            )
        for phase in self.data.mixture_schedule:
            if len(phase.weights) != len(self.data.datasets):
                raise ValueError(
                    f"a data.mixture_schedule phase has {len(phase.weights)} weights for {len(self.data.datasets)} datasets"
                )
        return self

    @model_validator(mode="after")
    def _check_parallel(self) -> "RunConfig":
        check_parallel(self)
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> "RunConfig":
        check_objective(self)
        return self

    @model_validator(mode="after")
    def _check_adapter(self) -> "RunConfig":
        check_adapter(self)
        return self
