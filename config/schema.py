"""Every setting of a run, with its docstring, unit and default.

The docstrings below the fields are what `train.py --help` prints.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


GPT_PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": dict(
        position="learned", norm="layernorm", norm_eps=1e-5, activation="gelu_tanh", bias=True, qk_norm=False,
        tied_embeddings=True,
    ),
    "llama": dict(
        position="rotary", norm="rmsnorm", norm_eps=1e-5, activation="swiglu", bias=False, qk_norm=False,
        tied_embeddings=False,
    ),
    "qwen3": dict(
        position="rotary", norm="rmsnorm", norm_eps=1e-6, activation="swiglu", bias=False, qk_norm=True,
        tied_embeddings=False, rope_theta=1e6,
    ),
}  # fmt: skip


class GPTConfig(Section):
    """Decoder-only Transformer. A preset fills the architecture; every field can still be set by itself."""

    family: Literal["gpt"] = "gpt"
    """Model family."""
    preset: Literal["gpt2", "llama", "qwen3"] = "llama"
    """Architecture whose defaults fill the fields below that the recipe leaves out."""
    vocab_size: PositiveInt
    """Rows of the embedding table, at least the tokenizer's size. A multiple of 64 is fastest."""
    num_layers: PositiveInt
    """Number of blocks."""
    hidden_size: PositiveInt
    """Width D of the residual stream."""
    num_heads: PositiveInt
    """Query heads H."""
    num_kv_heads: PositiveInt | None = None
    """Key and value heads K; fewer than num_heads is grouped-query attention. Default: num_heads."""
    head_size: PositiveInt | None = None
    """Width E of one head. Default: hidden_size / num_heads."""
    ffn_size: PositiveInt | None = None
    """Width F of the feed-forward layer. Default: 4 x hidden_size, or 8/3 x hidden_size rounded up to 64 when gated."""
    max_positions: PositiveInt = 1024
    """Longest row, in tokens. The size of the table when positions are learned."""
    position: Literal["learned", "rotary"] = "rotary"
    """Position information: a learned table added to the embedding, or rotary (RoPE) on queries and keys."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Normalisation before attention and feed-forward and before the head."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance inside the normalisation."""
    activation: Literal["gelu", "gelu_tanh", "swiglu", "relu2"] = "swiglu"
    """Feed-forward activation: exact GELU, its tanh form, gated SiLU (SwiGLU), or squared ReLU."""
    bias: bool = False
    """Biases in the linear layers and LayerNorms."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys, before rotary."""
    tied_embeddings: bool = False
    """The head shares the embedding's weights."""
    logit_softcap: PositiveFloat | None = None
    """Soft limit c on logits: c * tanh(logits / c)."""
    dropout: Fraction = 0.0
    """Dropout probability on the embedding, attention weights and residual branches."""
    init_std: PositiveFloat = 0.02
    """Standard deviation of the initial weights."""
    zero_init_outputs: bool = False
    """Start each residual branch's output projection at zero instead of init_std / sqrt(2 x num_layers)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = GPT_PRESETS.get(values.get("preset", "llama"), {})
        return {**preset, **values}

    @model_validator(mode="after")
    def _check_shape(self) -> "GPTConfig":
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                "change one of them or set head_size"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head_size, not {self.head_width}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def gated(self) -> bool:
        return self.activation == "swiglu"

    @property
    def ffn_width(self) -> int:
        if self.ffn_size:
            return self.ffn_size
        return -(-self.hidden_size * 8 // 3 // 64) * 64 if self.gated else 4 * self.hidden_size


ModelConfig = Annotated[GPTConfig, Field(description="Model, by family.")]


class RunSection(Section):
    """Where a run lives and how it starts."""

    name: str = ""
    """Folder of the run under `folder`. Default: the recipe's file name."""
    folder: str = "runs"
    """Parent folder of all runs."""
    seed: NonNegativeInt = 1337
    """Seed of weights, order of the data and dropout."""
    resume: Literal["auto", "fresh", "must"] = "auto"
    """auto: continue from the newest intact checkpoint if there is one. fresh: set an existing run aside under a
    numbered name and start over. must: fail if there is nothing to continue."""
    accept_changes: bool = False
    """Continue although settings that change the result differ from the checkpoint's."""


class DatasetSection(Section):
    """One prepared corpus of the mixture."""

    path: str
    """Folder written by `python -m data prepare`."""
    weight: PositiveFloat = 1.0
    """Share of this corpus in the mixture, relative to the others."""


class MixturePhase(Section):
    """New mixture weights from a point of the run on."""

    from_tokens: PositiveInt
    """First training token of the phase, rounded up to a whole row."""
    weights: Annotated[tuple[NonNegativeFloat, ...], Field(strict=False)]
    """One weight for each dataset, in the order of `datasets`."""


class DataSection(Section):
    """What the model reads."""

    datasets: Annotated[tuple[DatasetSection, ...], Field(min_length=1, strict=False)]
    """Prepared corpora to mix."""
    mixture_schedule: Annotated[tuple[MixturePhase, ...], Field(strict=False)] = ()
    """Later phases with other weights."""
    row_length: PositiveInt = 1024
    """Tokens T in one row (sequence)."""
    shuffle: Literal["full", "blocks", "none"] = "full"
    """full: every row of an epoch in random order. blocks: random blocks of `shuffle_block_rows`, then random rows
    within a window of blocks, for slow storage. none: as written."""
    shuffle_block_rows: PositiveInt = 512
    """Rows read in sequence under `shuffle: blocks`."""
    shuffle_window_blocks: PositiveInt = 64
    """Blocks mixed with each other under `shuffle: blocks`."""
    document_masking: bool = False
    """Keep attention and positions inside each document of a row; the first token of a document is not predicted from
    the one before it."""
    prefetch_steps: NonNegativeInt = 4
    """Global batches prepared ahead by a background thread; 0 reads in the foreground."""


class BatchSection(Section):
    """Batch arithmetic: global = micro x accumulation x data-parallel ranks."""

    global_batch_size: PositiveInt
    """Rows in one optimiser step, over all ranks."""
    micro_batch_size: PositiveInt
    """Rows in one forward and backward pass of one rank."""


class OptimizerSection(Section):
    """Optimiser."""

    name: Literal["adamw", "sgd", "rmsprop", "lion"] = "adamw"
    """Update rule."""
    lr: PositiveFloat
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay (L2 for sgd and rmsprop, as in torch.optim) of matrices; vectors (norms, biases) are not decayed."""
    beta1: Fraction = 0.9
    """Decay of the first moment (adamw, lion)."""
    beta2: Fraction = 0.95
    """Decay of the second moment (adamw), of the momentum (lion)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator (adamw, rmsprop)."""
    momentum: Fraction = 0.9
    """Momentum (sgd, rmsprop)."""
    alpha: Fraction = 0.99
    """Smoothing of the squared gradient (rmsprop)."""
    grad_clip: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


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
    kernel: Literal["auto", "flash", "varlen", "sdpa", "reference"] = "auto"
    """Attention kernel. auto: the fastest one that supports the model on the device."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block. auto: on for a GPU and for long runs on a CPU with fast bf16, off under ZeRO 3."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    loss_chunk_tokens: PositiveInt = 1024
    """Tokens whose logits exist at the same time."""
    communication_timeout: PositiveFloat = 1800.0
    """Seconds after which a stuck collective fails the run."""


class CheckpointSection(Section):
    """What survives."""

    every_steps: PositiveInt = 500
    """Steps between checkpoints; the last step and every stop save too."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept; older ones are deleted."""


class ValidationSection(Section):
    """Loss on the held-out split, always the same rows."""

    every_steps: NonNegativeInt = 250
    """Steps between validations; the last step validates too; 0 turns validation off."""
    rows: PositiveInt = 64
    """Rows of the fixed held-out set, or all there are if fewer."""


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
    """Text to continue at each validation; empty starts from the end-of-text token."""
    sample_tokens: NonNegativeInt = 64
    """Tokens generated at each validation; 0 turns samples off."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device in TFLOP/s, the denominator of MFU. Default: known GPUs by name; on a CPU a short matrix
    product is measured."""


class RunConfig(Section):
    """One recipe: everything that defines a run."""

    run: RunSection = RunSection()
    data: DataSection
    model: ModelConfig
    batch: BatchSection
    optimizer: OptimizerSection
    schedule: ScheduleSection
    engine: EngineSection = EngineSection()
    checkpoint: CheckpointSection = CheckpointSection()
    validation: ValidationSection = ValidationSection()
    monitor: MonitorSection = MonitorSection()

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
        for phase in self.data.mixture_schedule:
            if len(phase.weights) != len(self.data.datasets):
                raise ValueError(
                    f"a data.mixture_schedule phase has {len(phase.weights)} weights for {len(self.data.datasets)} datasets"
                )
        return self
