"""Small trained modules inside a frozen model, and what they do not go together with."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from config.section import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from config.supervised_schema import HEADED
from config.transformer_schema import TransformerConfig

if TYPE_CHECKING:
    from config.schema import RunConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "output_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
Target = Literal["q_proj", "k_proj", "v_proj", "output_proj", "gate_proj", "up_proj", "down_proj"]
Decay = Annotated[float, Field(gt=0, lt=1)]


class NoAdapter(Section):
    """Train all weights."""

    name: Literal["none"] = "none"
    """Adapter."""


class LowRank(Section):
    """What LoRA and AdaLoRA share."""

    rank: PositiveInt = 8
    """Rank r of each matrix's update; of AdaLoRA's at the start."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Dropout probability on the input of the update."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, strict=False)] | None = None
    """Matrices that get an update, by name, in all blocks. Default: every matrix of the family's blocks (QLoRA,
    arXiv:2305.14314, section 4)."""


class LoRA(LowRank):
    """A trained update of low rank beside each frozen matrix (arXiv:2106.09685), through peft."""

    name: Literal["lora"] = "lora"
    """Adapter."""


class AdaLoRA(LowRank):
    """LoRA whose ranks move to the matrices that need them (arXiv:2303.10512), through peft."""

    name: Literal["adalora"] = "adalora"
    """Adapter."""
    rank: PositiveInt = 12
    """Rank of each matrix's update at the start."""
    target_rank: PositiveInt = 8
    """Mean rank over all matrices at the end."""
    initial_steps: NonNegativeInt = 0
    """Steps with all ranks, before the first are taken away."""
    final_steps: NonNegativeInt = 0
    """Steps at the end of the run that keep the ranks then left."""
    every_steps: PositiveInt = 1
    """Steps between two allocations."""
    sensitivity_decay: Decay = 0.85
    """Smoothing of the weights' importance (beta 1)."""
    uncertainty_decay: Decay = 0.85
    """Smoothing of how much the importance varies (beta 2)."""
    orthogonality: NonNegativeFloat = 0.5
    """Weight of the penalty that keeps each update's singular vectors orthogonal. Its gradient is added after clipping."""

    @model_validator(mode="after")
    def _check_ranks(self) -> "AdaLoRA":
        if self.target_rank >= self.rank:
            raise ValueError(
                f"adapter.target_rank {self.target_rank} is not below adapter.rank {self.rank}, so that nothing would be "
                "allocated: raise rank, to about 1.5 x target_rank, or set adapter.name=lora"
            )
        return self


class Houlsby(Section):
    """A bottleneck after attention and feed-forward of each block (arXiv:1902.00751). It stays in the model: nothing is
    merged. Norms stay frozen, unlike the paper's."""

    name: Literal["houlsby"] = "houlsby"
    """Adapter."""
    bottleneck: PositiveInt = 64
    """Width m of the bottleneck."""


def _default_name(values: Any) -> Any:
    return {"name": "none", **values} if isinstance(values, dict) else values


AdapterConfig = Annotated[
    NoAdapter | LoRA | AdaLoRA | Houlsby,
    Field(discriminator="name", description="Train small modules inside a frozen model."),
    BeforeValidator(_default_name),
]
NO_ADAPTER = NoAdapter()


def target_matrices(adapter: LowRank, model: TransformerConfig) -> tuple[str, ...]:
    """The matrices of each block that get an update."""
    return adapter.targets or tuple(name for name in ATTENTION + FEED_FORWARD if name != "gate_proj" or model.gated)


def adapter_parameters(adapter: AdapterConfig, model: TransformerConfig) -> int:
    """Parameters of the adapter. For each n x m matrix r (n + m), AdaLoRA r (n + m + 1), and for each residual branch of
    Houlsby's, with bottleneck m, 2 D m + D + m."""
    attentions, feed_forwards = _branches(model)
    if isinstance(adapter, Houlsby):
        width, size = model.hidden_size, adapter.bottleneck
        return (attentions + feed_forwards) * (2 * width * size + width + size)
    if not isinstance(adapter, LowRank):
        return 0
    singular_values = isinstance(adapter, AdaLoRA)
    return adapter.rank * sum(
        (attentions if name in ATTENTION else feed_forwards) * (sum(matrix_shape(name, model)) + singular_values)
        for name in target_matrices(adapter, model)
    )


def matrix_shape(name: str, model: TransformerConfig) -> tuple[int, int]:
    """(outputs, inputs) of a block's matrix."""
    width = model.hidden_size
    if name in FEED_FORWARD:
        return (width, model.ffn_width) if name == "down_proj" else (model.ffn_width, width)
    heads = (model.num_heads if name in ("q_proj", "output_proj") else model.kv_heads) * model.head_width
    return (width, heads) if name == "output_proj" else (heads, width)


def _branches(model: TransformerConfig) -> tuple[int, int]:
    """Attention and feed-forward layers; a decoder beside an encoder attends twice in each block."""
    decoder = getattr(model, "decoder_layers", 0)
    return model.num_layers + 2 * decoder, model.num_layers + decoder


def check_adapter(config: "RunConfig") -> None:
    """Raise ValueError if the adapter does not fit the model or the settings around it."""
    adapter, optimizer = config.adapter, config.optimizer
    if adapter.name == "none":
        return
    asked = f"adapter.name {adapter.name}"
    if config.engine.tensor_parallel > 1:
        raise ValueError(
            f"{asked} does not work with engine.tensor_parallel {config.engine.tensor_parallel}, which slices plain "
            "matrices: set it to 1"
        )
    if optimizer.name == "muon":
        raise ValueError(
            f"{asked} does not work with optimizer.name muon, which orthogonalises updates of whole hidden matrices, not of "
            "an adapter's factors: set it to adamw"
        )
    frozen = [("embedding_lr_ratio", 1.0, "embeddings"), ("decay_embeddings", True, "embeddings")]
    if not isinstance(config.objective, HEADED):
        frozen.append(("head_lr_ratio", 1.0, "the head"))
    for setting, neutral, what in frozen:
        if getattr(optimizer, setting) != neutral:
            raise ValueError(f"optimizer.{setting} has no effect under {asked}, which freezes {what}: remove it")
    if isinstance(adapter, LowRank):
        _check_targets(adapter, config.model)
    if isinstance(adapter, AdaLoRA) and adapter.initial_steps + adapter.final_steps >= config.schedule.steps:
        raise ValueError(
            f"adapter.initial_steps {adapter.initial_steps} and adapter.final_steps {adapter.final_steps} leave none of "
            f"schedule.steps {config.schedule.steps} in which ranks are taken away: lower one of them"
        )


def _check_targets(adapter: LowRank, model: TransformerConfig) -> None:
    if len(set(adapter.targets or ())) < len(adapter.targets or ()):
        raise ValueError(f"adapter.targets {', '.join(adapter.targets or ())} name a matrix twice: name each once")
    for name in target_matrices(adapter, model):
        if name == "gate_proj" and not model.gated:
            raise ValueError(
                f"adapter.targets names gate_proj, which model.activation {model.activation} does not have: remove it"
            )
        if adapter.rank > min(matrix_shape(name, model)):
            raise ValueError(
                f"adapter.rank {adapter.rank} is more than the {min(matrix_shape(name, model))} of {name}, whose update would "
                "not be of low rank: lower it, or leave the matrix out of adapter.targets"
            )
