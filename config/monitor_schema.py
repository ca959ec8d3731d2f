"""What is written and shown of a run, and at which steps its inside is looked at."""

from typing import Annotated

from pydantic import Field

from config.section import NonNegativeInt, PositiveFloat, PositiveInt, Section

Steps = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
Ranks = Annotated[tuple[NonNegativeInt, ...], Field(strict=False, min_length=1)]


class MonitorSection(Section):
    """What is written and shown."""

    log_every_steps: PositiveInt = 1
    """Steps between lines in metrics.jsonl, TensorBoard and on the screen."""
    tensorboard: bool = True
    """Write TensorBoard events into the run's folder."""
    wandb: bool = False
    """Log to Weights & Biases (needs the wandb extra)."""
    wandb_project: str = "groundwork"
    """Project name for Weights & Biases."""
    sample_prompt: str = ""
    """Text to continue at each validation, or to fill in: under span_corruption at <extra_id_0>, under masked_lm at [MASK],
    at the end if it has none. Empty starts from the end-of-text token."""
    sample_tokens: NonNegativeInt = 64
    """Tokens generated at each validation; 0 turns samples off."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device in TFLOP/s, the denominator of MFU. Default: known GPUs by name; on a CPU a short matrix
    product is measured."""
    statistics_steps: Steps = ()
    """Steps, counted from 1, of which each module's outputs and gradients and each parameter's update are tabulated into
    RUN/inspect/. Compiled blocks run eagerly in them."""
    profile_steps: Steps = ()
    """Steps, counted from 1, that the profiler traces into RUN/inspect/, for Perfetto and TensorBoard's profiler plugin."""
    memory_steps: Steps = ()
    """Steps, counted from 1, whose memory is accounted for by part in RUN/inspect/; on a GPU with a snapshot of every
    allocation for pytorch.org/memory_viz."""
    inspect_ranks: Ranks = (0,)
    """Ranks of which statistics, traces and memory are written."""

    @property
    def inspected_steps(self) -> frozenset[int]:
        """Steps, counted from 1, at which anything is looked at."""
        return frozenset(self.statistics_steps + self.profile_steps + self.memory_steps)
