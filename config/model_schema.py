"""The model families as one type."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from config.bert_schema import BertConfig
from config.gpt_schema import GPTConfig
from config.t5_schema import T5Config
from config.transformer_schema import TransformerConfig

FAMILIES: tuple[type[TransformerConfig], ...] = (GPTConfig, BertConfig, T5Config)


def _default_family(values: Any) -> Any:
    return {"family": "gpt", **values} if isinstance(values, dict) else values


ModelConfig = Annotated[
    GPTConfig | BertConfig | T5Config,
    Field(discriminator="family", description="Model, by family; gpt if the recipe names none."),
    BeforeValidator(_default_family),
]
