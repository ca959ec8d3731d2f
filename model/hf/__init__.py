"""Our configs ↔ config.json of Hugging Face's architectures, one file each."""

from typing import Any

from pydantic import ValidationError

from config import ConfigError, TransformerConfig
from config.objective_schema import ObjectiveConfig
from config.supervised_schema import HEADED
from model.hf.architecture import Architecture, require, resolve
from model.hf.bert import BERT, BERT_MASKED_LM
from model.hf.gpt2 import GPT2
from model.hf.llama import LLAMA, MISTRAL, QWEN3
from model.hf.modernbert import MODERNBERT
from model.hf.t5 import T5, T5_UNGATED
from model.hf.task_heads import head_settings, read_objective, with_task_head

__all__ = ["ARCHITECTURES", "architecture", "from_hf_config", "read_objective", "to_hf_config"]

ARCHITECTURES = (GPT2, LLAMA, MISTRAL, QWEN3, BERT_MASKED_LM, BERT, MODERNBERT, T5)
"""Of those that share a model_type, the first is taken for a class that is none of them, such as BertModel."""


def architecture(config: TransformerConfig, objective: ObjectiveConfig | None = None) -> Architecture:
    """The Hugging Face architecture that computes the same function, with the head of a task if the objective has one.

    Raises ConfigError naming the setting that the nearest one does not have, or the objective.
    """
    nearest = _nearest(config)
    for setting, values in nearest.needs(config).items():
        if (value := resolve(config, setting)) not in values:
            raise ConfigError(
                f"model.{setting}: {value} has no equivalent in Hugging Face's {nearest.class_name}, the nearest "
                f"architecture, which needs {' or '.join(map(str, values))}: such a model cannot be exported"
            )
    return with_task_head(nearest, objective) if isinstance(objective, HEADED) else nearest


def _nearest(config: Any) -> Architecture:
    if config.family == "bert":
        classic = BERT if config.pooler else BERT_MASKED_LM
        return classic if config.position == "learned" else MODERNBERT
    if config.family == "t5":
        return T5 if config.gated else T5_UNGATED
    if config.position == "learned":
        return GPT2
    if config.qk_norm:
        return QWEN3
    return LLAMA if config.sliding_window is None else MISTRAL


def to_hf_config(
    config: TransformerConfig,
    *,
    dtype: str,
    token_ids: dict[str, int] | None = None,
    objective: ObjectiveConfig | None = None,
) -> dict[str, Any]:
    """Content of config.json. `token_ids` are settings such as eos_token_id."""
    theirs = architecture(config, objective)
    return {
        "architectures": [theirs.class_name],
        "model_type": theirs.model_type,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        **{setting: resolve(config, ours) for setting, ours in theirs.settings.items()},
        **{setting: values[0] for setting, values in theirs.fixed.items()},
        **theirs.write(config),
        **(head_settings(objective) if isinstance(objective, HEADED) else {}),
        **(token_ids or {}),
    }


def from_hf_config(hf: dict[str, Any], source: str) -> TransformerConfig:
    """Config of a parsed config.json; `source` names it in messages.

    Raises ConfigError when the model uses something we do not have, or a setting is missing.
    """
    try:
        theirs = _named(hf)
        for setting, values in theirs.fixed.items():
            require(hf, setting, values)
        known = {"initializer_range": 0.02, **theirs.defaults, **hf}
        settings = {
            "preset": theirs.preset,
            "vocab_size": known["vocab_size"],
            "tied_embeddings": known["tie_word_embeddings"],
            "init_std": known["initializer_range"],
            **{ours: known[setting] for setting, ours in theirs.settings.items()},
            **theirs.read(hf),
        }
        return theirs.config(**settings)
    except KeyError as error:
        raise ConfigError(f"{source}: setting {error} is missing") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{source}: {problems}") from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _named(hf: dict[str, Any]) -> Architecture:
    """By model_type, and by class where several share it."""
    found = [theirs for theirs in ARCHITECTURES if theirs.model_type == hf.get("model_type")]
    if not found:
        known = ", ".join(dict.fromkeys(theirs.model_type for theirs in ARCHITECTURES))
        raise ConfigError(f"model_type {hf.get('model_type')!r} is not one of {known}")
    return next((theirs for theirs in found if theirs.class_name in (hf.get("architectures") or ())), found[0])
