"""/v1/completions and /v1/chat/completions, as the unmodified OpenAI client sees them."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from config.objective_schema import SpanCorruption
from data.prompt import Prompt
from model import generate
from tasks.serve.logprobs import token_text
from tasks.serve.served import Served
from tests.tasks.serving import decoder, encoder, instructed, serving, translating
from tests.tasks.test_text_stream import TOKENIZERS


@pytest.fixture(scope="module")
def served():
    return decoder()


def alone(served: Served, prompt: Prompt | list[int], count: int, **options) -> str:
    return together(served, [prompt], count, **options)[0]


def together(served: Served, given: list[Prompt | list[int]], count: int, **options) -> list[str]:
    prompts = [prompt.tokens if isinstance(prompt, Prompt) else prompt for prompt in given]
    found = generate(served.writer, prompts, max_new_tokens=count, stop_ids=(256,), **options)
    return [served.tokenizer.decode(tokens) for tokens in found.new_tokens]


def test_a_completion_is_what_generate_writes(client, served):
    ids = served.tokenizer.encode("The model")
    expected = alone(served, [256, *ids], 20, temperature=0)
    text = client.completions.create(model="tiny-gpt", prompt="The model", max_tokens=20, temperature=0)
    assert text.choices[0].text == expected and text.choices[0].finish_reason == "length"
    assert (text.usage.prompt_tokens, text.usage.completion_tokens, text.usage.total_tokens) == (10, 20, 30)
    by_ids = client.completions.create(model="tiny-gpt", prompt=[256, *ids], max_tokens=20, temperature=0)
    assert by_ids.choices[0].text == expected
    drawn = client.completions.create(
        model="tiny-gpt", prompt="The model", max_tokens=20, temperature=0.7, top_p=0.9, seed=5
    )
    assert drawn.choices[0].text == alone(served, [256, *ids], 20, temperature=0.7, top_p=0.9, seed=5)
    assert len(client.completions.create(model="tiny-gpt", prompt="a", logprobs=None).choices) == 1


def test_choices_of_several_prompts_are_in_order_and_repeatable(client, served):
    options = {"model": "tiny-gpt", "prompt": ["one", "two"], "n": 2, "seed": 3, "max_tokens": 6}
    first, second = (client.completions.create(**options) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices] and len(set(texts)) == 4
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    prompts = [served.prompt("one")] * 2 + [served.prompt("two")] * 2
    assert texts == together(served, prompts, 6, seed=3)


def test_a_stream_is_the_same_text_with_usage_at_its_end(client):
    options = {"model": "tiny-gpt", "prompt": ["Stream", "this"], "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for number, choice in enumerate(whole.choices):
        pieces = [piece for chunk in chunks for piece in chunk.choices if piece.index == number]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [choice.finish_reason]
        assert len(pieces) > 3
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_stop_texts_end_a_completion_before_them(client, served):
    expected = alone(served, served.prompt("Stop"), 40, temperature=0)
    stop = expected[10:13]
    options = {"model": "tiny-gpt", "prompt": "Stop", "max_tokens": 40, "temperature": 0, "stop": ["never", stop]}
    text = client.completions.create(**options)
    assert text.choices[0].text == expected[: expected.index(stop)] and text.choices[0].finish_reason == "stop"
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == text.choices[0].text


def test_a_conversation_is_written_as_a_prompt(client, served):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    options = {"model": "tiny-gpt", "messages": messages, "max_tokens": 15, "temperature": 0}
    answer = client.chat.completions.create(**options)
    prompt = served.prompt("System: Be brief.\n\nUser: Hi\n\nAssistant:")
    assert answer.choices[0].message.content == alone(served, prompt, 15, temperature=0)
    assert answer.choices[0].message.role == "assistant" and answer.usage.prompt_tokens == len(prompt.tokens)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said == answer.choices[0].message.content and chunks[-1].choices[0].finish_reason == "length"


def test_a_folder_s_own_chat_template_is_used(tmp_path):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    settings = {"chat_template": template, "bos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    served = decoder(tmp_path)
    with serving(served) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = {"model": "tiny-gpt", "max_tokens": 5, "temperature": 0}
        answer = client.chat.completions.create(messages=[{"role": "user", "content": "Hi"}], **options)
        prompt = [256, *served.tokenizer.encode("[user]Hi")]
        assert answer.choices[0].message.content == alone(served, prompt, 5, temperature=0)
        with pytest.raises(openai.BadRequestError, match="no system"):
            client.chat.completions.create(messages=[{"role": "system", "content": "Hi"}], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: .*greater than or equal to 1"),
        ({"max_tokens": 300}, "maximum context length is 256 tokens, but prompt has 2 tokens and 300 more"),
        ({"temperature": 2.5}, "temperature: .*less than or equal to 2"),
        ({"top_p": 0}, "top_p: .*greater than 0"),
        ({"n": 129}, "more than 128 completions"),
        ({"stop": list("abcde")}, "stop must be a text or a list of at most 4 texts"),
        ({"logprobs": 6}, "logprobs: .*less than or equal to 5"),
        ({"logprobs": 1, "echo": True}, "echo with logprobs is not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty is not supported"),
        ({"logit_bias": {"5": 10}}, "logit_bias is not supported"),
        ({"best_of": 3}, "best_of is not supported"),
        ({"suffix": "end"}, "suffix is not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options is only for stream=true"),
        ({"extra_body": {"top_k": 5}}, "Unrecognized request argument supplied: top_k"),
    ],
)
def test_wrong_requests_are_refused_with_the_reason(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(model="tiny-gpt", prompt="a", **options)


def test_parameters_that_ask_for_nothing_are_accepted(client):
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "echo": False, "best_of": 1}
    client.completions.create(model="tiny-gpt", prompt="a", user="someone", **nothing)


def test_chat_refuses_what_it_cannot_do(client):
    hello = [{"role": "user", "content": "Hi"}]
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    tool = {"type": "function", "function": {"name": "f"}}
    for options, message in (
        ({"messages": hello, "tools": [tool]}, "tools is not supported"),
        ({"messages": hello, "response_format": {"type": "json_object"}}, "response_format is not supported"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ({"messages": []}, "messages: .*at least 1 item"),
        ({"messages": [{"role": "user", "content": [image]}]}, r"messages\[0\].content must be a text or a list of"),
        ({"messages": [{**hello[0], "name": "Ada"}]}, r"messages\[0\].name is not supported by this server"),
        ({"messages": hello, "top_logprobs": 2}, "top_logprobs is only for logprobs=true"),
        ({"messages": hello, "max_tokens": 1, "max_completion_tokens": 2}, "give one of them"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(model="tiny-gpt", **options)


def expected_logs(served: Served, prompt: Prompt, count: int, **options) -> tuple[list[int], torch.Tensor]:
    """The tokens that generate writes, and the model's log-probabilities [T, V] before each."""
    (tokens,) = generate(served.writer, [prompt.tokens], max_new_tokens=count, stop_ids=(256,), **options).new_tokens
    with torch.no_grad():
        logits_TV = served.writer.logits(served.writer(torch.tensor([[*prompt.tokens, *tokens]])))[0]
    return tokens, logits_TV.log_softmax(-1)[len(prompt.tokens) - 1 : -1]


def test_log_probabilities_are_the_model_s_own(client, served):
    options = {"model": "tiny-gpt", "max_tokens": 8, "temperature": 0.9, "seed": 2}
    logs = client.completions.create(prompt="Log", logprobs=3, **options).choices[0].logprobs
    tokens, expected_TV = expected_logs(served, served.prompt("Log"), 8, temperature=0.9, seed=2)
    assert logs.tokens == [token_text(served.tokenizer, token) for token in tokens] and len(tokens) == 8
    assert logs.token_logprobs == pytest.approx(expected_TV[range(8), tokens].tolist(), abs=1e-4)
    best_T3 = expected_TV.topk(3).values.tolist()
    for table, token, values in zip(logs.top_logprobs, logs.tokens, best_T3, strict=True):
        assert token in table and 3 <= len(table) <= 4
        assert sorted(table.values(), reverse=True)[:3] == pytest.approx(values, abs=1e-4)


def test_log_probabilities_of_a_chat_are_the_same_in_a_stream(client, served):
    messages = [{"role": "user", "content": "Hi"}]
    options = {"model": "tiny-gpt", "messages": messages, "max_tokens": 8, "temperature": 0.9, "seed": 2}
    options |= {"logprobs": True, "top_logprobs": 2}
    entries = client.chat.completions.create(**options).choices[0].logprobs.content
    prompt = served.prompt("User: Hi\n\nAssistant:")
    tokens, expected_TV = expected_logs(served, prompt, 8, temperature=0.9, seed=2)
    assert [entry.token for entry in entries] == [token_text(served.tokenizer, token) for token in tokens]
    assert [entry.logprob for entry in entries] == pytest.approx(expected_TV[range(8), tokens].tolist(), abs=1e-4)
    assert all(entry.bytes in (None, list(entry.token.encode())) for entry in entries)
    best_T2 = expected_TV.topk(2).values.tolist()
    for entry, values in zip(entries, best_T2, strict=True):
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(values, abs=1e-4)
    chunks = client.chat.completions.create(**options, stream=True)
    streamed = [
        entry for chunk in chunks for piece in chunk.choices if piece.logprobs for entry in piece.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


@pytest.mark.parametrize(
    "name", ["bytes", "byte-level BPE", "Metaspace", "Metaspace, first", "byte fallback", "WordPiece"]
)
def test_the_texts_of_tokens_keep_the_spaces_between_words(name):
    ids = TOKENIZERS[name].encode("the cat and the mouse")
    texts = "".join(token_text(TOKENIZERS[name], token) for token in ids)
    assert texts.strip() == TOKENIZERS[name].decode(ids).strip() and texts.strip().count(" ") == 4


def test_logged_tokens_end_where_a_stop_text_begins(client):
    options = {"model": "tiny-gpt", "prompt": "Stop", "max_tokens": 30, "seed": 4, "logprobs": 0}
    whole = client.completions.create(**options).choices[0]
    text, logs = whole.text, whole.logprobs
    at = next(at for at in range(5, 25) if text.find(text[at : at + 3]) == at)
    expected = [token for token, offset in zip(logs.tokens, logs.text_offset, strict=True) if offset < at]
    stopped = client.completions.create(**options, stop=text[at : at + 3]).choices[0]
    assert stopped.text == text[:at] and stopped.logprobs.tokens == expected and len(expected) >= 5
    pieces = [c.choices[0] for c in client.completions.create(**options, stop=text[at : at + 3], stream=True)]
    assert [token for piece in pieces if piece.logprobs for token in piece.logprobs.tokens] == expected


def test_an_echo_stands_before_each_completion(client):
    options = {"model": "tiny-gpt", "prompt": ["One", "Two"], "n": 2, "max_tokens": 5, "seed": 1}
    plain = [choice.text for choice in client.completions.create(**options).choices]
    echoed = client.completions.create(**options, echo=True)
    assert [c.text for c in echoed.choices] == ["One" + plain[0], "One" + plain[1], "Two" + plain[2], "Two" + plain[3]]
    pieces = {}
    for chunk in client.completions.create(**options, echo=True, stream=True):
        for piece in chunk.choices:
            pieces[piece.index] = pieces.get(piece.index, "") + piece.text
    assert pieces == {choice.index: choice.text for choice in echoed.choices}


def test_an_answer_can_be_sent_back_as_it_came(client):
    messages = [{"role": "user", "content": "Hi"}]
    options = {"model": "tiny-gpt", "max_completion_tokens": 4}
    messages.append(client.chat.completions.create(messages=messages, **options).choices[0].message)
    messages.append({"role": "user", "content": "More"})
    assert client.chat.completions.create(messages=messages, **options).usage.completion_tokens == 4


def test_a_model_of_prompts_and_answers_reads_messages_as_these():
    tuned = instructed()
    with serving(tuned) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = {"model": "tiny-gpt", "max_tokens": 9, "temperature": 0}
        first = client.chat.completions.create(messages=[{"role": "user", "content": "Add 1."}], **options)
        assert first.choices[0].message.content == alone(tuned, list(b"Add 1."), 9, temperature=0)
        turns = [("system", "Be brief."), ("user", "Add 1."), ("assistant", "2"), ("user", "And 3.")]
        messages = [{"role": role, "content": text} for role, text in turns]
        last = client.chat.completions.create(messages=messages, **options)
        read = [*b"Be brief.\n\nAdd 1.", *b"2", 256, *b"And 3."]
        assert last.choices[0].message.content == alone(tuned, read, 9, temperature=0)


def test_an_encoder_decoder_completes_what_its_encoder_reads():
    translator = translating()
    pad_id = translator.tokenizer.ids_of(["<pad>"])[0]
    expected = generate(
        translator.writer, [[pad_id]], sources=[[*b"The text", 256]], max_new_tokens=7, stop_ids=(256,), temperature=0
    )
    text = translator.tokenizer.decode(expected.new_tokens[0])
    with serving(translator) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = {"model": "tiny-t5", "max_tokens": 7, "temperature": 0}
        made = client.completions.create(prompt="The text", **options)
        assert made.choices[0].text == text and made.usage.prompt_tokens == 9
        assert client.completions.create(prompt=[*b"The text", 256], **options).choices[0].text == text
        messages = [{"role": "user", "content": "The text"}]
        assert client.chat.completions.create(messages=messages, **options).choices[0].message.content == text
        with pytest.raises(openai.BadRequestError, match="tiny-t5 has no embeddings"):
            client.embeddings.create(model="tiny-t5", input="a")
        with pytest.raises(openai.BadRequestError, match="prompt has 300 tokens"):
            client.completions.create(prompt=[5] * 300, **options)
        assert client.models.retrieve("tiny-t5").capabilities == ["completions", "chat"]
    with serving(translating(objective=SpanCorruption())) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="has not learned to answer; it has /v1/completions"):
            client.chat.completions.create(model="tiny-t5", messages=messages)


def test_completions_that_overlap_are_written_in_one_batch(client, served, url):
    prompts = ["p" * (number % 9 + 1) for number in range(24)]

    def ask(prompt):
        return client.completions.create(model="tiny-gpt", prompt=prompt, max_tokens=30, temperature=0).choices[0].text

    with ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(ask, prompts))
    assert texts == [alone(served, served.prompt(prompt), 30, temperature=0) for prompt in prompts]
    counted = httpx.get(f"{url}/metrics").text
    assert 'groundwork_batch_rows_bucket{le="4.0",work="write"}' in counted
    larger = float(counted.split('groundwork_batch_rows_count{work="write"} ')[1].split()[0]) - float(
        counted.split('groundwork_batch_rows_bucket{le="4.0",work="write"} ')[1].split()[0]
    )
    assert larger > 5


def test_an_encoder_does_not_chat():
    with serving(encoder()) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="tiny-bert does not complete text"):
            client.chat.completions.create(model="tiny-bert", messages=[{"role": "user", "content": "Hi"}])
