"""The same recipe, small enough to look at: what `train.py --debug` runs."""

from collections.abc import Mapping

from config.errors import ConfigError
from config.rendezvous import world_size
from config.schema import RunConfig
from config.transformer_schema import TransformerConfig

STEPS = 20
STEPS_SHOWN = 2


def debug_config(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """Shrink a recipe to one process, two blocks, short rows and a few eager fp32 steps; its architecture stays.

    Raises ConfigError under more than one rank.
    """
    if world_size(environ) > 1:
        raise ConfigError(f"--debug runs one process, not {world_size(environ)}: start it with plain python")
    changes = {
        "run": {"name": f"{config.run.name}-debug", "resume": "fresh"},
        "data": {"row_length": min(config.data.row_length, 64), "prefetch_steps": 0},
        "model": _small_shape(config.model),
        "batch": {"global_batch_size": 4, "micro_batch_size": 2, "ramp": ()},
        "schedule": {
            "steps": min(config.schedule.steps, STEPS),
            "warmup_steps": min(config.schedule.warmup_steps, STEPS // 4),
        },
        "engine": {
            "precision": "fp32",
            "compile": "off",
            "kernel": "auto",
            "sequence_parallel": 1,
            "tensor_parallel": 1,
        },
        "validation": {"every_steps": min(config.validation.every_steps, STEPS // 2), "rows": 8},
        "monitor": {"wandb": False, "log_every_steps": 1, "sample_tokens": min(config.monitor.sample_tokens, 16)},
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def _small_shape(model: TransformerConfig) -> dict[str, int]:
    """At most four heads of 16, two blocks in each stack (one global and one local), windows shorter than the rows."""
    heads = min(model.num_heads, 4)
    head_size = min(model.head_width, 16)
    shape = {
        "num_layers": 2,
        "num_decoder_layers": 2,
        "hidden_size": heads * head_size,
        "num_heads": heads,
        "num_kv_heads": max(1, heads * model.kv_heads // model.num_heads),
        "head_size": head_size,
        "ffn_size": 4 * heads * head_size,
        "local_window": 8,
        "sliding_window": 16,
    }
    return {name: min(size, getattr(model, name)) for name, size in shape.items() if getattr(model, name, None)} | {
        name: shape[name] for name in ("hidden_size", "num_kv_heads", "head_size")
    }
