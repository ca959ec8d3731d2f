"""Settings that all model families share."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from config.section import Fraction, PositiveFloat, PositiveInt, Section

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "swiglu", "geglu", "geglu_tanh"]
Recompute = Literal["none", "selective", "full"]
GATED = ("swiglu", "geglu", "geglu_tanh")


class TransformerConfig(Section):
    """What every block needs. A family adds its own settings and presets."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    """Architectures by name: values for the fields that a recipe leaves out. The first is the default."""
    LEFT_OUT: ClassVar[dict[str, str]] = {
        "num_kv_heads": "kv_heads",
        "head_size": "head_width",
        "ffn_size": "ffn_width",
    }
    """Settings that may be left out, and the property with the value that they then have."""

    family: str
    preset: str
    vocab_size: PositiveInt
    """Rows of the embedding table, at least the tokenizer's size with the objective's special tokens. A multiple of 64
    is fastest."""
    num_layers: PositiveInt
    """Number of blocks (of the encoder, where there is a decoder, too)."""
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
    position: Literal["learned", "rotary", "relative"]
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    """Kind of the normalisation layers."""
    norm_eps: PositiveFloat = 1e-5
    """Added to the variance inside the normalisation."""
    activation: Activation = "swiglu"
    """Feed-forward activation: GELU (exact or tanh form), ReLU, squared ReLU, or gated SiLU (SwiGLU) or GELU (GeGLU)."""
    bias: bool = False
    """Biases in the linear layers and LayerNorms of the blocks."""
    qk_norm: bool = False
    """RMSNorm on each head's queries and keys, before rotary."""
    tied_embeddings: bool = False
    """The head shares the embedding's weights."""
    logit_softcap: PositiveFloat | None = None
    """Soft limit c on logits: c * tanh(logits / c)."""
    attention_softcap: PositiveFloat | None = None
    """Soft limit c on attention scores: c * tanh(scores / c)."""
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
        preset = values.get("preset", next(iter(cls.PRESETS), ""))
        return {**cls.PRESETS.get(preset, {}), **values} if isinstance(preset, str) else values

    @model_validator(mode="after")
    def _check_shape(self) -> "TransformerConfig":
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                "change one of them or set head_size"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}: change one of them"
            )
        if self.position == "rotary" and self.head_width % 2:
            raise ValueError(f"rotary positions need an even head_size, not {self.head_width}")
        return self

    def resolved(self) -> dict[str, Any]:
        """All settings by name, those that were left out with the values that they then have."""
        return self.model_dump() | {name: getattr(self, value) for name, value in self.LEFT_OUT.items()}

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def post_norm(self) -> bool:
        """Whether a block normalises the sum after each branch, not the branch's input."""
        return False

    @property
    def gated(self) -> bool:
        return self.activation in GATED

    @property
    def ffn_width(self) -> int:
        if self.ffn_size:
            return self.ffn_size
        return -(-self.hidden_size * 8 // 3 // 64) * 64 if self.gated else 4 * self.hidden_size

    @property
    def ffn_dropout(self) -> float:
        """Dropout probability inside the feed-forward layer."""
        return 0.0
