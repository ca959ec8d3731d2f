"""Generation: cached equals uncached, sampling equals transformers', and why a continuation ends."""

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import model
from config import ConfigError
from model.cache import KVCache
from model.sampling import Sampler, Sampling, sequence_key, uniform
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model, tiny_t5


@pytest.mark.parametrize("preset", ["gpt2", "llama", "qwen3"])
def test_logits_with_cache_equal_logits_without(preset):
    config = tiny_config(preset)
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    cache = KVCache(config.num_layers)
    with torch.no_grad():
        expected = gpt.logits(gpt(tokens))
        steps = [gpt(tokens[:, :10], cache=cache)] + [gpt(tokens[:, i : i + 1], cache=cache) for i in range(10, 24)]
        assert_close(gpt.logits(torch.cat(steps, dim=1)), expected, "logits")
    assert cache.length == 24


def test_greedy_equals_a_loop_without_cache():
    config = tiny_config("qwen3")
    gpt = tiny_model(config)
    prompts = random_tokens(config, rows=2, length=5)
    tokens = prompts
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat([tokens, gpt.logits(gpt(tokens))[:, -1:].argmax(-1)], dim=1)
    generation = model.generate(gpt, prompts, max_new_tokens=12, temperature=0)
    assert generation.new_tokens == tokens[:, 5:].tolist()
    assert generation.reasons == ["length", "length"]


@pytest.mark.parametrize("top_k", [None, 1, 5, 700])
@pytest.mark.parametrize("top_p", [None, 0.1, 0.8, 1.0])
@pytest.mark.parametrize("min_p", [None, 0.05])
def test_kept_logits_equal_theirs(top_k, top_p, min_p):
    logits = torch.randn(6, 600, generator=torch.Generator().manual_seed(0)) * 2
    expected = logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    settings = Sampling(top_k=top_k, top_p=top_p, min_p=min_p)
    assert torch.equal(Sampler([settings] * 6).keep(logits), expected)


def test_draws_follow_the_softmax():
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20000, 3)
    keys = np.array([sequence_key(0, row) for row in range(20000)], np.uint64)
    drawn = Sampler([Sampling(temperature=0.5)] * 20000).choose(logits, uniform(keys, np.zeros(20000, np.uint64)))
    shares = torch.bincount(drawn, minlength=3) / 20000
    assert_close(shares, torch.softmax(torch.tensor([0.0, 2.0, 4.0]), 0), "shares", tolerance=0.01)


def test_a_seed_repeats_the_draw_and_rows_differ():
    config = tiny_config()
    gpt = tiny_model(config)
    prompts = random_tokens(config, rows=1, length=4).repeat(2, 1)
    first, again, other = (model.generate(gpt, prompts, max_new_tokens=16, seed=s).new_tokens for s in (1, 1, 2))
    assert first == again != other
    assert first[0] != first[1]


def test_stop_tokens_end_rows_one_by_one():
    config = tiny_config()
    gpt = tiny_model(config)
    prompts = random_tokens(config, rows=2, length=4)
    free = model.generate(gpt, prompts, max_new_tokens=12, temperature=0).new_tokens
    stop = next(token for token in free[0] if token not in free[1])
    streamed: list[tuple[int, int]] = []
    generation = model.generate(
        gpt, prompts, max_new_tokens=12, temperature=0, stop_ids=[stop], on_token=lambda *event: streamed.append(event)
    )
    assert generation.new_tokens == [free[0][: free[0].index(stop)], free[1]]
    assert generation.reasons == ["stop", "length"]
    for row in (0, 1):
        assert [token for where, token in streamed if where == row] == generation.new_tokens[row]


@pytest.mark.parametrize("preset", ["gpt2", "llama"])
def test_the_context_ends_at_max_positions(preset):
    config = tiny_config(preset, max_positions=10)
    gpt = tiny_model(config)
    generation = model.generate(gpt, random_tokens(config, rows=1, length=7), max_new_tokens=50, temperature=0)
    assert generation.reasons == ["context"] and len(generation.new_tokens[0]) == 4
    with pytest.raises(ConfigError, match="the prompt has 11 tokens, more than the model's max_positions 10"):
        model.generate(gpt, random_tokens(config, rows=1, length=11), max_new_tokens=1)


def test_an_encoder_decoder_stops_where_its_positions_end():
    config = tiny_t5(max_positions=10)
    t5, start = tiny_model(config), torch.zeros(1, 1, dtype=torch.int64)
    source = random_tokens(config, rows=1, length=10)
    generation = model.generate(t5, start, sources=source, max_new_tokens=50, temperature=0)
    assert generation.reasons == ["context"] and len(generation.new_tokens[0]) == 10
    stop = generation.new_tokens[0][3]
    stopped = model.generate(t5, start, sources=source, max_new_tokens=50, temperature=0, stop_ids=(stop,))
    first = generation.new_tokens[0].index(stop)
    assert stopped.reasons == ["stop"] and stopped.new_tokens[0] == generation.new_tokens[0][:first]
    with pytest.raises(ConfigError, match="the source has 11 tokens, more than the model's max_positions 10"):
        model.generate(t5, start, sources=random_tokens(config, rows=1, length=11), max_new_tokens=1)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(temperature=-1.0), "temperature -1 is not 0"),
        (dict(top_k=0), "top_k 0 keeps no token"),
        (dict(top_p=1.5), "top_p 1.5 is not a probability"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    config = tiny_config()
    with pytest.raises(ConfigError, match=message):
        model.generate(tiny_model(config), random_tokens(config), max_new_tokens=1, **settings)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="the prompt is empty"):
        model.generate(tiny_model(tiny_config()), torch.empty(1, 0, dtype=torch.int64), max_new_tokens=1)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    config = tiny_config(dropout=0.5)
    gpt = tiny_model(config).train(training)
    model.compile_blocks(gpt, backend="eager")
    prompts = random_tokens(config, rows=1)
    first, again = (model.generate(gpt, prompts, max_new_tokens=8, temperature=0) for _ in range(2))
    assert first == again, "no dropout while generating"
    assert all(module.training is training for module in gpt.modules())
    assert all(parameter.grad is None for parameter in gpt.parameters())


def test_autocast_generates():
    config = tiny_config("qwen3")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generation = model.generate(tiny_model(config), random_tokens(config, rows=1), max_new_tokens=8, temperature=0)
    assert len(generation.new_tokens[0]) == 8
