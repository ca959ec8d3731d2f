"""T5 fills the places that a prompt leaves out, BERT names what is masked: samples in training, `tasks generate` after it."""

import re
from pathlib import Path

import pytest

from tests.conftest import task, train

MODEL = "vocab_size: 640, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64"


def change_family(recipe: Path, family: str) -> Path:
    """The tiny recipe with another family and its default objective."""
    recipe.write_text(re.sub(r"model:\n.*", f"model: {{family: {family}, {MODEL}}}", recipe.read_text()))
    return recipe


@pytest.mark.slow
def test_t5_fills_the_places_of_sentinels(recipe, tmp_path):
    trained = train(change_family(recipe, "t5"), "monitor.sample_prompt=the <extra_id_0> model")
    assert trained.returncode == 0, trained.stderr
    assert "| the <extra_id_0> model → " in trained.stdout
    options = ("--prompt", "The <extra_id_0> reads", "--tokens", "6", "--temperature", "0")
    first, again = (task("generate", tmp_path / "runs/tiny", *options) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout and first.stdout.startswith("The <extra_id_0> reads → ")


@pytest.mark.slow
def test_bert_names_what_a_mask_hides(recipe, tmp_path):
    run = train(change_family(recipe, "bert"), "monitor.sample_prompt=the model [MASK] a row")
    assert run.returncode == 0, run.stderr
    assert "| the model [MASK] a row" in run.stdout
    filled = task("generate", tmp_path / "runs/tiny", "--prompt", "the [MASK] reads a [MASK]")
    assert filled.returncode == 0, filled.stderr
    drawn = task("generate", tmp_path / "runs/tiny", "--prompt", "the [MASK]", "--temperature", "0")
    assert "--temperature has no effect on a model that names what [MASK] hides" in drawn.stderr
    prompt, *masks = filled.stdout.splitlines()
    assert prompt == "the [MASK] reads a [MASK]" and len(masks) == 2
    shares = [int(share) for share in re.findall(r"' (\d+)%", masks[0])]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 101
