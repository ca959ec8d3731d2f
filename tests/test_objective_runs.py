"""Objectives through train.py, as a user runs them: tokenizer, metrics, continuing, loading the model afterwards."""

import pytest
import torch

from config import ConfigError
from config.objective_schema import MaskedLM
from data.dataset import load_tokenizer
from data.prompt import encode_prompt
from data.specials import special_names
from data.tokenizer import Tokenizer
from tasks.checkpoints import load_model
from tasks.embedding import Embedder
from tasks.evaluation.text import held_out_loss
from tests.conftest import metrics, task, train

QUICK = [
    "schedule.steps=4",
    "schedule.name=constant",
    "validation.every_steps=2",
    "checkpoint.every_steps=2",
    "monitor.tensorboard=true",
]
BERT = ["model.family=bert", "model.preset=bert", "model.num_kv_heads=null", "objective.pairs=nsp"]


@pytest.mark.slow
def test_bert_learns_tokens_and_pairs_and_continues(recipe, corpus, tmp_path):
    result = train(recipe, *BERT, *QUICK)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/tiny"
    steps = [record for record in metrics(run) if "loss" in record]
    assert [record["tokens"] for record in steps] == [8 * 29 * step for step in (1, 2, 3, 4)]
    for record in steps:
        assert record["loss"] == pytest.approx(record["loss_mlm"] + record["loss_pairs"])
    held_out = [record for record in metrics(run) if "validation_loss" in record]
    assert set(held_out[0]) >= {"validation_loss_mlm", "validation_loss_pairs", "validation_perplexity"}
    assert "validation loss" in result.stdout and "loss pairs" in result.stdout
    assert [record["step"] for record in metrics(run) if "sample" in record] == [2, 4]

    saved = Tokenizer.load(run / "checkpoints/step_00000004/tokenizer.json")
    expected = load_tokenizer(corpus).with_special_tokens(special_names(MaskedLM()))
    assert saved.fingerprint == expected.fingerprint and saved.vocab_size == load_tokenizer(corpus).vocab_size + 4

    device = torch.device("cpu")
    evaluated = held_out_loss(load_model(run, device), corpus, "valid", None, 10, device).metrics
    for ours, theirs in (("mlm_loss", "loss_mlm"), ("pairs_loss", "loss_pairs"), ("bits_per_byte", "bits_per_byte")):
        assert evaluated[ours] == pytest.approx(held_out[-1][f"validation_{theirs}"], rel=1e-5)

    longer = [*BERT, *QUICK, "schedule.steps=6"]
    refused = train(recipe, *longer, "objective.mask_rate=0.3")
    assert refused.returncode == 2 and "objective.mask_rate: 0.15 → 0.3" in refused.stderr
    assert train(recipe, *longer).returncode == 0
    assert train(recipe, *longer, "run.resume=fresh").returncode == 0
    continued, whole = metrics(tmp_path / "runs/tiny.1"), metrics(run)
    keys = ("step", "loss_mlm", "loss_pairs", "validation_loss_mlm", "validation_loss_pairs")
    assert [[r.get(key) for key in keys] for r in continued] == [[r.get(key) for key in keys] for r in whole]


@pytest.mark.slow
def test_a_contrastive_run_leaves_a_model_that_loads(recipe, tmp_path):
    objective = ["objective.name=contrastive", "objective.learnable_temperature=true"]
    result = train(recipe, *objective, *QUICK)
    assert result.returncode == 0, result.stderr
    assert all("loss_contrastive" not in record for record in metrics(tmp_path / "runs/tiny"))
    assert "perplexity" not in result.stdout
    trained = load_model(tmp_path / "runs/tiny", torch.device("cpu"))
    model, tokenizer = trained.model, trained.tokenizer
    with pytest.raises(ConfigError, match="objective contrastive does not write text"):
        encode_prompt("text", trained.objective, tokenizer)
    assert model(torch.tensor([tokenizer.ids_of(["[CLS]", "[SEP]"])])).shape == (1, 2, trained.config.hidden_size)
    vector_ND = Embedder(trained).encode(["the model", ""])
    assert vector_ND.shape == (2, trained.config.hidden_size) and vector_ND.norm(dim=1).allclose(torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_t5_samples_and_continues_a_prompt(recipe, tmp_path, objective):
    t5 = ["model.family=t5", "model.preset=t5_v1_1", "model.num_kv_heads=null", f"objective.name={objective}"]
    result = train(recipe, *t5, *QUICK)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/tiny"
    assert [record["step"] for record in metrics(run) if "sample" in record] == [2, 4]
    assert "tasks generate" in result.stdout
    written = task("generate", run, "--prompt", "the model", "--tokens", "5")
    assert written.returncode == 0, written.stderr
    assert written.stdout.startswith("the model") and "<extra_id_0>" not in written.stdout


def test_a_vocabulary_without_room_for_special_tokens_is_refused(recipe):
    result = train(recipe, "model.family=t5", "model.preset=t5_v1_1", "model.num_kv_heads=null", "model.vocab_size=400")
    assert result.returncode == 2
    assert "model.vocab_size 400 is smaller than the 454 tokens" in result.stderr and "span_corruption" in result.stderr
