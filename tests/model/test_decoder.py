"""Continuous batching: whoever comes and goes, each sequence gets the tokens it would get alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

import model
from config import ConfigError
from model.cache import KVCache
from model.decoder import Decoder, Request
from model.rows import CachedRows
from model.sampling import Sampler, Sampling
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model, tiny_t5

GREEDY = Sampling(temperature=0)
MODELS = {
    "gpt2": tiny_config("gpt2"),
    "llama": tiny_config(),
    "qwen3": tiny_config("qwen3"),
    "window": tiny_config("mistral", sliding_window=6),
    "softcap": tiny_config(attention_softcap=5.0),
    "t5": tiny_t5(init_std=0.3),
}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """So that the cache outgrows its buffers even in these short texts."""
    monkeypatch.setattr(KVCache, "room", 2)


def made_request(config, number: int, **settings) -> Request:
    """Prompts of 1 to 12 tokens; sources of 1 to 20."""
    draw = random.Random(number)
    prompt = [draw.randrange(config.vocab_size) for _ in range(draw.randint(1, 12))]
    source = [draw.randrange(config.vocab_size) for _ in range(draw.randint(1, 20))]
    settings = {"max_new_tokens": draw.randint(1, 30), "sampling": GREEDY, **settings}
    return Request(prompt, source if config.family == "t5" else None, **settings)


def uncached(net, request: Request) -> list[int]:
    """Greedy tokens by computing the whole row anew for each."""
    tokens = torch.tensor([request.prompt])
    source = () if request.source is None else (torch.tensor([request.source]),)
    with torch.no_grad():
        for _ in range(request.max_new_tokens):
            tokens = torch.cat([tokens, net.logits(net(*source, tokens))[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(request.prompt) :].tolist()


def run_all(decoder: Decoder, arrivals: dict[int, list[Request]]) -> dict[int, list[int]]:
    """Tokens by sequence; requests are added before the step they are listed under."""
    tokens: dict[int, list[int]] = {}
    step = 0
    while len(decoder) or any(when >= step for when in arrivals):
        for request in arrivals.get(step, []):
            decoder.add(request)
        for new in decoder.step():
            tokens.setdefault(new.sequence, []).append(new.token)
        step += 1
    return tokens


@pytest.mark.parametrize("name", MODELS)
def test_sequences_that_come_and_go_get_the_tokens_they_get_alone(name):
    config = MODELS[name]
    net = tiny_model(config)
    requests = [made_request(config, number) for number in range(14)]
    arrivals = {0: requests[:3], 1: requests[3:4], 5: requests[4:9], 20: requests[9:12], 70: requests[12:]}
    tokens = run_all(Decoder(net, prompt_tokens=30), arrivals)
    assert list(tokens.values())
    for number, request in enumerate(requests):
        assert tokens[number] == uncached(net, request), f"sequence {number}"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_draws_do_not_depend_on_the_company(name):
    config = MODELS[name]
    net = tiny_model(config)
    kinds = [
        dict(temperature=0.7, top_p=0.9), dict(top_k=5), dict(min_p=0.1, temperature=2.0), dict(repetition_penalty=1.5),
        dict(temperature=0, repetition_penalty=1.3), dict(), dict(top_k=20, top_p=0.5), dict(temperature=0),
    ]  # fmt: skip
    requests = [
        made_request(config, n, sampling=Sampling(seed=n, **kinds[n % 8]), max_new_tokens=12) for n in range(16)
    ]
    together = run_all(Decoder(net), {0: requests[:5], 4: requests[5:11], 6: requests[11:]})
    for number, request in enumerate(requests):
        assert together[number] == run_all(Decoder(net), {0: [request]})[0], f"sequence {number}: {request.sampling}"


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_samples_share_a_prompt_and_differ(name):
    config = MODELS[name]
    net = tiny_model(config)
    request = made_request(config, 1, sampling=Sampling(seed=3), max_new_tokens=10, samples=4)
    tokens = run_all(Decoder(net), {0: [made_request(config, 5), request], 2: [request]})
    first, again = [tokens[n] for n in range(1, 5)], [tokens[n] for n in range(5, 9)]
    assert first == again and len({tuple(sample) for sample in first}) == 4
    alone = made_request(config, 1, sampling=Sampling(seed=3), max_new_tokens=10)
    assert run_all(Decoder(net), {0: [alone]})[0] == first[0]


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_equal_prompts_are_read_once(name, monkeypatch):
    config = MODELS[name]
    net, read, read_rows = tiny_model(config), CachedRows.read, []

    def counted(rows, prompts, sources=()):
        read_rows.append(len(prompts))
        return read(rows, prompts, sources)

    monkeypatch.setattr(CachedRows, "read", counted)
    one, other = (made_request(config, n, sampling=Sampling(seed=n), max_new_tokens=8) for n in (1, 5))
    requests = [one, other, replace(one, sampling=GREEDY), replace(one, sampling=Sampling(seed=2), samples=2)]
    tokens = run_all(Decoder(net, prompt_tokens=40), {0: requests})
    assert read_rows == [2]
    alone = [run_all(Decoder(net), {0: [request]}) for request in requests]
    assert list(tokens.values()) == [sample for samples in alone for sample in samples.values()]


def test_removed_sequences_leave_the_others_alone():
    config = MODELS["qwen3"]
    net = tiny_model(config)
    requests = [made_request(config, number, max_new_tokens=16) for number in range(6)]
    decoder = Decoder(net)
    numbers = [decoder.add(request)[0] for request in requests]
    decoder.remove(numbers[1])
    tokens: dict[int, list[int]] = {}
    for step in range(20):
        if step == 3:
            decoder.remove(numbers[0])
        if step == 5:
            decoder.remove(numbers[5])
        for new in decoder.step():
            tokens.setdefault(new.sequence, []).append(new.token)
    assert len(decoder) == 0 and decoder.step() == [] and numbers[1] not in tokens
    for number in (2, 3, 4):
        assert tokens[number] == uncached(net, requests[number])
    assert len(tokens[0]) == 3 and tokens[5] == uncached(net, requests[5])[:5]


def test_every_end_has_its_reason():
    config = tiny_config(max_positions=12)
    net = tiny_model(config)
    free = uncached(net, Request([5], max_new_tokens=6))
    decoder = Decoder(net)
    decoder.add(Request([5], max_new_tokens=6, sampling=GREEDY))
    decoder.add(Request([5], max_new_tokens=6, sampling=GREEDY, stop_ids={free[3]}))
    decoder.add(Request([5] * 12, max_new_tokens=6, sampling=GREEDY))
    ends, counts = {}, {}
    while len(decoder):
        for new in decoder.step():
            counts[new.sequence] = counts.get(new.sequence, 0) + 1
            if new.reason:
                ends[new.sequence] = new.reason
    assert ends == {0: "length", 1: "stop", 2: "context"}
    assert counts == {0: 6, 1: free.index(free[3]) + 1, 2: 1}


def test_log_probabilities_are_the_models_own():
    config = MODELS["llama"]
    net = tiny_model(config)
    plain = made_request(config, 2, max_new_tokens=5)
    asking = Request([7, 8, 9], max_new_tokens=5, sampling=Sampling(temperature=3.0, top_k=9, seed=0), likeliest=3)
    decoder, tokens, given = Decoder(net), [7, 8, 9], []
    decoder.add(plain)
    decoder.add(asking)
    while len(decoder):
        for new in decoder.step():
            if new.sequence == 0:
                assert new.logprob is None and not new.likeliest
            else:
                given.append(new)
                tokens.append(new.token)
    with torch.no_grad():
        log_probs = net.logits(net(torch.tensor([tokens[:-1]])))[0, 2:].log_softmax(-1)
    chosen = log_probs[torch.arange(5), tokens[3:]]
    assert_close(torch.tensor([new.logprob for new in given]), chosen, "chosen")
    best = log_probs.topk(3)
    assert [[token for token, _ in new.likeliest] for new in given] == best.indices.tolist()
    assert_close(torch.tensor([[value for _, value in new.likeliest] for new in given]), best.values, "likeliest")


def test_a_repetition_penalty_equals_theirs():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    tokens = random_tokens(tiny_config(vocab_size=50), rows=3, length=20)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(tokens, logits.clone()).argmax(-1)
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, tokens, True)
    sampler = Sampler([Sampling(temperature=0, repetition_penalty=1.7)] * 3)
    assert torch.equal(sampler.choose(logits, torch.zeros(3).double().numpy(), seen), expected)


@pytest.mark.parametrize(
    "tiny", [dict(temperature=1e-40), dict(temperature=1e-300), dict(top_p=1e-300), dict(min_p=1.0)]
)
def test_settings_that_float32_cannot_hold_take_the_likeliest_token(tiny):
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler([Sampling(**tiny), Sampling(top_k=9)])
    assert sampler.choose(logits, np.array([0.999, 0.0]))[0] == logits[0].argmax()


def test_generate_takes_prompts_of_any_length():
    config = MODELS["gpt2"]
    net = tiny_model(config)
    prompts = [list(made_request(config, number).prompt) for number in range(5)]
    for settings in (dict(temperature=0), dict(seed=4)):
        together = model.generate(net, prompts, max_new_tokens=9, **settings).new_tokens
        assert together[0] == model.generate(net, prompts[:1], max_new_tokens=9, **settings).new_tokens[0]
    assert together == model.generate(net, prompts, max_new_tokens=9, seed=4).new_tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt=[]), "the prompt is empty"),
        (dict(prompt=[1] * 65), "the prompt has 65 tokens, more than the model's max_positions 64"),
        (dict(max_new_tokens=0), "max_new_tokens 0 and samples 1"),
    ],
)
def test_impossible_requests_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Decoder(tiny_model(tiny_config())).add(Request(**{"prompt": [1], **changes}))


@pytest.mark.parametrize("settings", [dict(min_p=1.5), dict(repetition_penalty=0.0), dict(temperature=float("nan"))])
def test_impossible_sampling_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Sampling(**settings)
