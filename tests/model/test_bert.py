"""BERT's own promises: names, dropout, targets, initial weights."""

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

import model
from model.bert_head import GRANULE, select_targets
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model


@pytest.mark.parametrize("preset", ["bert", "modernbert"])
def test_matrices_outside_the_blocks_are_named_embed_or_lm_head(preset):
    """The names by which an optimiser of matrices passes over them."""
    names = [name for name, p in tiny_model(tiny_config(preset)).named_parameters() if p.dim() > 1]
    assert all("embed" in name or "lm_head" in name or name.startswith("blocks.") for name in names), names


@pytest.mark.parametrize("hidden, attention", [(1.0, 0.0), (0.0, 1.0)])
def test_dropout_is_where_theirs_is(tmp_path, hidden, attention):
    """With a probability of 1 nothing is random, and what is left shows where it was applied."""
    ours = tiny_model(tiny_config("bert"), kernel="reference")
    model.save_hf(tmp_path, ours.config, ours.state_dict())
    rates = dict(hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    theirs = BertForPreTraining.from_pretrained(tmp_path, attn_implementation="eager", **rates)
    ours.embed_dropout.p = hidden
    for block in ours.blocks:
        block.dropout.p, block.attention.dropout = hidden, attention
    tokens = random_tokens(ours.config)
    assert isinstance(theirs.config, BertConfig) and theirs.config.hidden_dropout_prob == hidden
    with torch.no_grad():
        without = ours(tokens)
        dropped = ours.train()(tokens)
        assert_close(dropped, theirs.train().bert(tokens).last_hidden_state, "hidden states")
    assert not torch.allclose(dropped, without, atol=0.1)


def test_dropout_rate_reaches_every_place():
    ours = tiny_model(tiny_config("bert", dropout=0.25))
    rates = [m.p for name, m in ours.named_modules() if isinstance(m, torch.nn.Dropout) and "feed_forward" not in name]
    assert rates == [0.25] * 3 and {block.attention.dropout for block in ours.blocks} == {0.25}


@pytest.mark.parametrize("targets", [0, 1, 63, 64, 65, 300])
def test_the_head_gets_targets_alone_in_regular_shapes(targets):
    labels = torch.full((6, 50), model.IGNORE)
    places = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:targets].sort().values
    labels.view(-1)[places] = places + 1000
    index, chosen = select_targets(labels)
    assert len(index) == len(chosen) == max(GRANULE, -(-targets // GRANULE) * GRANULE)
    assert torch.equal(index[:targets], places) and torch.equal(chosen[:targets], places + 1000)
    assert (chosen[targets:] == model.IGNORE).all()


def test_rows_without_targets_cost_nothing_and_still_have_gradients():
    ours = tiny_model(tiny_config("bert"))
    tokens = random_tokens(ours.config)
    loss = ours(tokens, torch.full_like(tokens, model.IGNORE))["mlm"]
    loss.total.backward()
    assert loss.total == 0 and loss.count == 0
    assert not any(p.grad.any() for name, p in ours.named_parameters() if "pool" not in name and "pairs" not in name)


def test_a_row_without_a_pair_label_does_not_count():
    ours = tiny_model(tiny_config("bert"))
    tokens = random_tokens(ours.config)
    some = ours(tokens, pair_labels_B=torch.tensor([1, model.IGNORE, 0]))["pairs"]
    both = ours(tokens[[0, 2]], pair_labels_B=torch.tensor([1, 0]))["pairs"]
    assert some.count == both.count == 2
    assert_close(some.total, both.total, "loss")


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("preset", ["bert", "modernbert"])
def test_recomputed_blocks_have_the_same_gradients(preset, recompute):
    config = tiny_config(preset, num_layers=4, local_window=3, global_every=3, pooler=False)
    plain, recomputed = tiny_model(config), tiny_model(config, activation_checkpointing=recompute)
    tokens = random_tokens(config)
    layout = model.Layout.padded([24, 7, 13], 24)
    for bert in (plain, recomputed):
        bert(tokens, tokens, layout)["mlm"].total.backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_the_loss_ignores_how_it_is_chunked_and_equals_all_logits():
    ours = tiny_model(tiny_config("modernbert"), loss_chunk_tokens=5)
    tokens = random_tokens(ours.config)
    labels = tokens.masked_fill(tokens % 3 != 0, model.IGNORE)
    expected = torch.nn.functional.cross_entropy(
        ours.logits(ours(tokens)).flatten(0, 1), labels.flatten(), ignore_index=model.IGNORE, reduction="sum"
    )
    loss = ours(tokens, labels)["mlm"]
    assert loss.count == (tokens % 3 == 0).sum()
    assert_close(loss.total, expected, "loss")


def test_only_pre_norm_blocks_start_with_small_outputs():
    def spread(preset: str, **changes) -> float:
        config = tiny_config(preset, num_layers=8, init_std=0.02, **changes)
        return model.initial_weight("blocks.0.attention.output_proj.weight", (512, 512), config, 0).std().item()

    assert spread("bert") == pytest.approx(0.02, rel=0.02)
    assert spread("modernbert") == pytest.approx(0.005, rel=0.02)
    assert spread("bert", zero_init_outputs=True) == 0
