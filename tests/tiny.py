"""The smallest recipe and batches that still have every part; for tests."""

from typing import Any

import numpy as np

from config import RunConfig
from data.batch import IGNORE, Batch

VOCAB, ROW, ROWS = 64, 16, 8


def tiny_config(**sections: Any) -> RunConfig:
    """A two-block Llama on rows of 16 tokens; `sections` override, e.g. engine={"ds_config": "zero3"}."""
    base: dict[str, dict[str, Any]] = {
        "run": {"name": "tiny", "seed": 7},
        "data": {"datasets": [{"path": "corpora/none"}], "row_length": ROW},
        "model": {"vocab_size": VOCAB, "num_layers": 2, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2},
        "batch": {"global_batch_size": ROWS, "micro_batch_size": 2},
        "optimizer": {"lr": 1e-2},
        "schedule": {"steps": 8, "warmup_steps": 2},
        "engine": {"ds_config": "zero0", "precision": "fp32", "compile": "off"},
        "monitor": {"peak_tflops": 0.1, "sample_tokens": 4},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return RunConfig.model_validate(base)


def global_batch(step: int) -> Batch:
    """Learnable rows (each token is mostly the one before plus one), with more IGNORE labels in some rows than others."""
    generator = np.random.default_rng(step)
    rows = (generator.integers(0, VOCAB, (ROWS, 1)) + np.arange(ROW + 1)) % VOCAB
    noise = generator.random(rows.shape) < 0.1
    rows = np.where(noise, generator.integers(0, VOCAB, rows.shape), rows)
    labels = rows[:, 1:].copy()
    for row in range(ROWS):
        labels[row, : row % 5] = IGNORE
    return Batch(np.ascontiguousarray(rows[:, :-1]), labels, None, ROW)


def rank_batches(step: int, micro: int, rank: int, world_size: int, documents: bool = False) -> list[Batch]:
    """The micro-batches of one rank in the global batch of `step`; with `documents`, each row holds three."""
    whole, per_rank = global_batch(step), ROWS // world_size
    starts = range(rank * per_rank, (rank + 1) * per_rank, micro)
    bounds = np.append(np.add.outer(np.arange(micro) * ROW, [0, 5, 11]), micro * ROW).astype(np.int32)
    cut = (bounds, 6) if documents else (None, ROW)
    return [Batch(whole.tokens_BT[s : s + micro], whole.labels_BT[s : s + micro], *cut) for s in starts]
