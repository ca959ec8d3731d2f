"""The same recipe, small enough to look at: what `train.py --debug` runs, and who gets the terminal."""

import json
from collections.abc import Mapping
from typing import Any

from config.adapter_schema import AdaLoRA, AdapterConfig, LowRank
from config.contrastive_schema import Similarity
from config.errors import ConfigError
from config.load import load_recipe
from config.objective_schema import ObjectiveConfig
from config.rendezvous import world_size
from config.schema import RunConfig
from config.transformer_schema import TransformerConfig

STEPS = 20
STEPS_SHOWN = (1, 2)
PATIENT_SECONDS = 7 * 24 * 3600
"""How long ranks wait for the one that is in a debugger."""


def terminal_rank(debug: bool, debug_rank: int | None, environ: Mapping[str, str]) -> int | None:
    """The rank that gets the terminal; None without debugging. Raises ConfigError if it is not clear, or no such rank."""
    ranks = world_size(environ)
    if debug_rank is None:
        if debug and ranks > 1:
            raise ConfigError(
                f"--debug under {ranks} ranks: add --debug-rank N to say which of them (0 to {ranks - 1}) gets the terminal, "
                "or start one process with plain python"
            )
        return 0 if debug else None
    if not 0 <= debug_rank < ranks:
        raise ConfigError(f"--debug-rank {debug_rank}: this launch has {ranks} rank(s), numbered from 0")
    return debug_rank


def patient(config: RunConfig) -> RunConfig:
    """The config for a run in which one rank may stop for as long as somebody thinks."""
    engine = config.engine.model_copy(update={"communication_timeout": PATIENT_SECONDS})
    return config.model_copy(update={"engine": engine})


def debug_recipe(recipe: str, overrides: list[str], terminal: int, environ: Mapping[str, str]) -> RunConfig:
    """A recipe shrunk to two blocks, short rows and a few eager fp32 steps; its architecture stays. A model that starts from
    another one's weights, and the rows of labelled examples, keep their size. What depends on sizes (an adapter's rank,
    the dimensions of vectors) shrinks with them. Overrides of the command line win over what is shrunk.

    Raises ConfigError as loading a recipe does.
    """
    short = ["schedule.warmup_steps=0", *(f"monitor.{what}_steps=[]" for what in ("statistics", "profile", "memory"))]
    config = load_recipe(recipe, short + overrides)
    settings = debug_settings(config, terminal, world_size(environ))
    small = [
        f"{section}.{name}={json.dumps(value)}" for section in settings for name, value in settings[section].items()
    ]
    # Last, because a debug run replaces the one before: no name that is typed shall make it replace another run.
    return load_recipe(recipe, [*short, *small, *overrides, f"run.name={json.dumps(config.run.name + '-debug')}"])


def debug_settings(config: RunConfig, terminal: int, ranks: int) -> dict[str, dict[str, Any]]:
    steps, rows_are_given = min(config.schedule.steps, STEPS), config.data.examples or config.data.pairs
    shape = {} if config.run.start_from else _small_shape(config.model)
    return {
        "run": {"resume": "replace"},
        "data": {
            "row_length": config.data.row_length if rows_are_given else min(config.data.row_length, 64),
            "prefetch_steps": 0,
        },
        "model": shape,
        "objective": _small_vectors(config.objective, shape.get("hidden_size", config.model.hidden_size)),
        "adapter": _small_adapter(config.adapter),
        "batch": {"global_batch_size": 4 * ranks, "micro_batch_size": 2, "ramp": []},
        "schedule": {"steps": steps, "warmup_steps": min(2, steps)},
        "engine": {
            "precision": "fp32",
            "compile": "off",
            "kernel": "auto",
            "sequence_parallel": 1,
            "tensor_parallel": 1,
        },
        "validation": {"every_steps": min(config.validation.every_steps, STEPS // 2), "rows": 4 * ranks},
        "monitor": {
            "wandb": False,
            "tensorboard": False,
            "log_every_steps": 1,
            "sample_tokens": min(config.monitor.sample_tokens, 16),
            "statistics_steps": [step for step in STEPS_SHOWN if step <= steps],
            "inspect_ranks": [terminal],
        },
    }


def _small_vectors(objective: ObjectiveConfig, width: int) -> dict[str, list]:
    """The dimensions that vectors of a width have, with their weights."""
    if not isinstance(objective, Similarity):
        return {}
    kept = [number for number, dimension in enumerate(objective.dimensions) if dimension <= width]
    return {
        "dimensions": [objective.dimensions[number] for number in kept],
        "dimension_weights": [objective.dimension_weights[number] for number in kept if objective.dimension_weights],
    }


def _small_adapter(adapter: AdapterConfig) -> dict[str, int]:
    """Ranks that fit into the narrowest matrices; AdaLoRA's are taken away from the first step to the last."""
    if not isinstance(adapter, LowRank):
        return {}
    small = {"rank": min(adapter.rank, 8)}
    if isinstance(adapter, AdaLoRA):
        small |= {"target_rank": min(adapter.target_rank, 4), "initial_steps": 0, "final_steps": 0}
    return small


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
