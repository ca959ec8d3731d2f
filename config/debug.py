"""The same recipe, small enough to look at: what `train.py --debug` runs."""

from collections.abc import Mapping

from config.errors import ConfigError
from config.rendezvous import world_size
from config.schema import RunConfig

STEPS = 20
STEPS_SHOWN = 2


def debug_config(config: RunConfig, environ: Mapping[str, str]) -> RunConfig:
    """Shrink a recipe to one process, two blocks, short rows and a few eager fp32 steps; its architecture stays.

    Raises ConfigError under more than one rank.
    """
    if world_size(environ) > 1:
        raise ConfigError(f"--debug runs one process, not {world_size(environ)}: start it with plain python")
    model = config.model
    heads = min(model.num_heads, 4)
    kv_heads = max(1, heads * model.kv_heads // model.num_heads)
    head_size = min(model.head_width, 16)
    ffn = {"ffn_size": 4 * heads * head_size} if model.ffn_size else {}
    changes = {
        "run": {"name": f"{config.run.name}-debug", "resume": "fresh"},
        "data": {"row_length": min(config.data.row_length, 64), "prefetch_steps": 0},
        "model": {
            "num_layers": min(model.num_layers, 2),
            "hidden_size": heads * head_size,
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_size": head_size,
            **ffn,
        },
        "batch": {"global_batch_size": 4, "micro_batch_size": 2},
        "schedule": {
            "steps": min(config.schedule.steps, STEPS),
            "warmup_steps": min(config.schedule.warmup_steps, STEPS // 4),
        },
        "engine": {"precision": "fp32", "compile": "off", "kernel": "auto"},
        "validation": {"every_steps": min(config.validation.every_steps, STEPS // 2), "rows": 8},
        "monitor": {"wandb": False, "log_every_steps": 1, "sample_tokens": min(config.monitor.sample_tokens, 16)},
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)
