"""One Hugging Face architecture: which of our models it computes, and how its files say so."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from config import ConfigError, TransformerConfig

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2", "relu": "relu",
}  # fmt: skip
"""Theirs and ours; of several names for one, the first is written."""


@dataclass(frozen=True)
class Architecture:
    """Tables in both directions; what a table cannot say is in `write` and `read`."""

    model_type: str
    class_name: str
    auto_class: str
    """Class of transformers that loads the model with its heads."""
    config: type[TransformerConfig]
    preset: str
    needs: Callable[[Any], dict[str, tuple[Any, ...]]]
    """From a config to the values of its settings that the architecture can express; a setting not named here is
    expressed by `settings` or `write`, or does not change what a trained model computes."""
    names: dict[str, str | tuple[str, ...]]
    """Their modules, or single parameters, and ours; `*` is the number of the block. Where ours are several, theirs is
    one matrix of them, stacked along the outputs."""
    prefix: str
    """Before the names of the base model's modules. Files of a model without heads leave it out."""
    settings: dict[str, str]
    """Their settings and ours that have the same value."""
    write: Callable[[Any], dict[str, Any]]
    """From our config to their settings besides `settings`."""
    read: Callable[[dict[str, Any]], dict[str, Any]]
    """From their config to our settings besides `settings`."""
    fixed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of their settings that we can express. The first is the default, and is written."""
    defaults: dict[str, Any] = field(default_factory=dict)
    """Their settings that a file may leave out, and what that means."""
    transposed: re.Pattern[str] | None = None
    """Parameters kept as [in, out]."""
    ignored: re.Pattern[str] | None = None
    """Tables and second copies that files keep beside the weights."""

    @property
    def base_class(self) -> str:
        """Class of the model without heads."""
        return re.split("For|LMHead", self.class_name)[0] + "Model"


def resolve(config: TransformerConfig, setting: str) -> Any:
    """The setting's value, or the one it has where it was left out."""
    return getattr(config, config.LEFT_OUT.get(setting, setting))


def plain_heads(config: TransformerConfig) -> dict[str, tuple[Any, ...]]:
    """Needs of an architecture without grouped-query attention whose heads together are as wide as the model."""
    return {"num_kv_heads": (config.num_heads,), "head_size": (config.hidden_size / config.num_heads,)}


def require(hf: dict[str, Any], setting: str, values: tuple[Any, ...]) -> Any:
    """The setting's value, the first of `values` if it is left out. Raises ConfigError if it is none of them."""
    value = hf.get(setting, values[0])
    if value not in values:
        raise ConfigError(f"{setting} {value!r} is not supported, only {' or '.join(map(repr, values))}")
    return value


def require_equal(hf: dict[str, Any], settings: tuple[str, ...], default: Any) -> Any:
    """The value that all the settings share. Raises ConfigError if they differ."""
    value = hf.get(settings[0], default)
    for setting in settings[1:]:
        require({setting: default, **hf}, setting, (value,))
    return value


def their_activation(activation: str) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)
