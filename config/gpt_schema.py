"""Settings of the GPT family."""

from typing import Any, ClassVar, Literal

from config.section import PositiveInt
from config.transformer_schema import TransformerConfig


class GPTConfig(TransformerConfig):
    """Decoder-only Transformer. A preset fills the architecture; every field can still be set by itself."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "llama": dict(
            position="rotary", norm="rmsnorm", norm_eps=1e-5, activation="swiglu", bias=False, qk_norm=False,
            tied_embeddings=False,
        ),
        "gpt2": dict(
            position="learned", norm="layernorm", norm_eps=1e-5, activation="gelu_tanh", bias=True, qk_norm=False,
            tied_embeddings=True,
        ),
        "qwen3": dict(
            position="rotary", norm="rmsnorm", norm_eps=1e-6, activation="swiglu", bias=False, qk_norm=True,
            tied_embeddings=False, rope_theta=1e6,
        ),
        "mistral": dict(
            position="rotary", norm="rmsnorm", norm_eps=1e-5, activation="swiglu", bias=False, qk_norm=False,
            tied_embeddings=False, sliding_window=4096,
        ),
    }  # fmt: skip

    family: Literal["gpt"] = "gpt"
    """Model family."""
    preset: Literal["gpt2", "llama", "qwen3", "mistral"] = "llama"
    """Architecture whose defaults fill the fields below that the recipe leaves out."""
    position: Literal["learned", "rotary"] = "rotary"
    """Position information: a learned table added to the embedding, or rotary (RoPE) on queries and keys."""
    sliding_window: PositiveInt | None = None
    """Newest tokens a token sees, itself included, in every block. Default: all."""
