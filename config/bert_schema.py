"""Settings of the BERT family."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from config.section import NonNegativeInt, PositiveFloat, PositiveInt
from config.transformer_schema import TransformerConfig


class BertConfig(TransformerConfig):
    """Encoder-only Transformer: classic BERT (arXiv:1810.04805) or ModernBERT (arXiv:2412.13663)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "bert": dict(
            position="learned", norm_order="post", norm="layernorm", norm_eps=1e-12, activation="gelu", bias=True,
            token_types=2, pooler=True, dropout=0.1, max_positions=512,
        ),
        "modernbert": dict(
            position="rotary", norm_order="pre", norm="layernorm", norm_eps=1e-5, activation="geglu", bias=False,
            token_types=0, pooler=False, rope_theta=160_000.0, local_rope_theta=10_000.0, local_window=64,
            global_every=3,
        ),
    }  # fmt: skip

    family: Literal["bert"] = "bert"
    """Model family."""
    preset: Literal["bert", "modernbert"] = "bert"
    """Architecture whose defaults fill the fields that the recipe leaves out."""
    position: Literal["learned", "rotary"] = "learned"
    """Position information: a learned table added to the embedding, or rotary (RoPE) on queries and keys."""
    norm_order: Literal["pre", "post"] = "post"
    """Normalise each branch's input (pre, with a final norm; the embedding's norm is the first block's) or the sum after
    it (post)."""
    token_types: NonNegativeInt = 0
    """Rows of the table that tells the first text of a pair from the second; 0: none."""
    pooler: bool = False
    """Tanh layer over the first token and a two-way head on it, for sentence pairs. Default: as objective.pairs needs."""
    tied_embeddings: bool = True
    """The head shares the embedding's weights; it always has its own bias."""
    local_window: PositiveInt | None = None
    """Tokens to each side that a token of a local block sees. Default: every block is global."""
    global_every: PositiveInt = 1
    """Blocks 0, n, 2n, ... see the whole text, the others `local_window`."""
    local_rope_theta: PositiveFloat | None = None
    """Base of the rotary frequencies in local blocks. Default: rope_theta."""

    @property
    def post_norm(self) -> bool:
        return self.norm_order == "post"

    @model_validator(mode="after")
    def _check_local_blocks(self) -> "BertConfig":
        if self.local_window is not None and self.global_every == 1:
            raise ValueError(
                f"local_window {self.local_window} has no effect with global_every 1, under which every block is global: "
                "raise global_every, or set local_window to null"
            )
        return self

    def is_local(self, layer: int) -> bool:
        return self.local_window is not None and layer % self.global_every != 0
