"""Settings of the T5 family."""

from typing import Any, ClassVar, Literal

from pydantic import model_validator

from config.section import PositiveFloat, PositiveInt
from config.transformer_schema import TransformerConfig


class T5Config(TransformerConfig):
    """Encoder–decoder Transformer, T5 version 1.1 (arXiv:1910.10683 with the changes of arXiv:2002.05202).

    max_positions bounds rows and generation; relative positions themselves have no limit.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "t5_v1_1": dict(norm="rmsnorm", norm_eps=1e-6, activation="geglu_tanh", bias=False, tied_embeddings=False),
    }

    LEFT_OUT: ClassVar[dict[str, str]] = {**TransformerConfig.LEFT_OUT, "num_decoder_layers": "decoder_layers"}

    family: Literal["t5"] = "t5"
    """Model family."""
    preset: Literal["t5_v1_1"] = "t5_v1_1"
    """Architecture whose defaults fill the fields that the recipe leaves out."""
    position: Literal["relative"] = "relative"
    """Position information: a learned bias on attention scores by relative distance, one for each stack of blocks."""
    num_decoder_layers: PositiveInt | None = None
    """Blocks of the decoder. Default: num_layers."""
    relative_buckets: PositiveInt = 32
    """Distances that the bias tells apart; half of them, in the encoder for each direction, are single tokens wide."""
    relative_max_distance: PositiveInt = 128
    """Distance from which on all tokens share the last bucket."""

    init_std: PositiveFloat = 1.0
    """Factor on the initial weights' standard deviations, which follow from the layers' widths."""

    @model_validator(mode="after")
    def _check_buckets(self) -> "T5Config":
        if self.relative_buckets % 4:
            raise ValueError(f"relative_buckets {self.relative_buckets} is not a multiple of 4: use 32")
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance {self.relative_max_distance} is not above half of relative_buckets "
                f"{self.relative_buckets}: raise it or use fewer buckets"
            )
        return self

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def ffn_dropout(self) -> float:
        return self.dropout
