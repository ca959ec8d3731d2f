"""The held-out loss against plain torch on the checkpoint's own weights, with every weight really sharded."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data.batch import IGNORE
from engine.state import read_weights
from model import build
from tests.ranks import run_ranks
from tests.tiny import VOCAB, global_batch, tiny_config
from tests.workers.steps import evaluate_and_save


@pytest.fixture
def sharded(tmp_path) -> str:
    """ZeRO 3 that keeps no parameter gathered: the default threshold would keep all of the tiny model's."""
    path = tmp_path / "sharded.json"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_model_persistence_threshold": 0}
    path.write_text(json.dumps({"train_batch_size": "auto", "zero_optimization": zero}))
    return str(path)


@pytest.mark.parametrize("stage", ["zero2", "sharded"])
def test_two_ranks_evaluate_as_one_plain_model_does(tmp_path, sharded, stage):
    case = {"engine": {"ds_config": sharded if stage == "sharded" else stage}, "model": {"tied_embeddings": True}}
    results = run_ranks(2, evaluate_and_save, str(tmp_path / "checkpoints"), case, 3)
    (held_out, each, path), other = results
    assert other == (held_out, each, path)
    assert not Path(path).with_name("best").exists(), "saved before any validation"

    config = tiny_config(**case)
    model = build(config.model, kernel="reference")
    weights = read_weights(Path(path))
    model.load_state_dict({**weights, "lm_head.weight": weights["embed_tokens.weight"]})
    batch = global_batch(99)
    with torch.no_grad():
        logits = model.logits(model(torch.from_numpy(batch.tokens_BT)))
    expected = F.cross_entropy(logits.view(-1, VOCAB), torch.from_numpy(batch.labels_BT).reshape(-1), ignore_index=-100)
    assert each == pytest.approx(batch.labels_BT[batch.labels_BT != IGNORE].mean())
    assert held_out == pytest.approx({"lm": expected.item()}, abs=1e-5)
