"""Conversations: the same text as transformers makes, and only the assistant's words are learned."""

import json

import pytest

from config import DataError
from data.chat import TEMPLATE, compile_template, find_template, turns
from data.tokenizer import byte_tokenizer

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BREAK = "{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ message.content }}{% endfor %}"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ x }}"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you."},
    {"role": "user", "content": "never answered"},
]
END = byte_tokenizer().eod_token


def pieces(source: str, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    return list(turns("a.jsonl:1", messages, compile_template(source, END)))


def test_only_what_the_assistant_says_is_learned():
    assert pieces(TEMPLATE, TALK) == [
        ("System: Be brief.\n\nUser: Hi {{ x }}\n\nAssistant:", False),
        (f" Hello.{END}", True),
        ("\n\nUser: Bye\n\nAssistant:", False),
        (f" See you.{END}", True),
    ]
    assert [text for text, learned in pieces(CHATML, TALK) if learned] == ["Hello.<|im_end|>\n", "See you.<|im_end|>\n"]


@pytest.mark.parametrize("source", [TEMPLATE, CHATML, BREAK])
def test_the_text_is_that_of_transformers(source):
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    model = tokenizers.Tokenizer.from_str(byte_tokenizer().spec)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END, chat_template=source)
    for prompt in (False, True):
        expected = theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt)
        assert compile_template(source, END)(messages=TALK, add_generation_prompt=prompt) == expected


def test_a_folder_s_template_brings_the_tokens_that_it_names(tmp_path):
    assert find_template(tmp_path) is None
    settings = {
        "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
        "bos_token": {"content": "<s>"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "</s>"}))
    assert compile_template(find_template(tmp_path))(messages=TALK[1:]) == "<s>Hi {{ x }}</s>"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}!")
    assert compile_template(find_template(tmp_path))(messages=TALK) == "</s>!"


@pytest.mark.parametrize(
    ("messages", "source", "message"),
    [
        ("Hi", TEMPLATE, 'a.jsonl:1: its messages are str, not a list of them like {"role": "user"'),
        ([{"role": "user", "content": "Hi"}], TEMPLATE, "a.jsonl:1: no message is the assistant's"),
        ([{"role": "user"}, TALK[2]], TEMPLATE, "a.jsonl:1: message 1 lacks role or content"),
        ([{"from": "human", "value": "Hi"}], TEMPLATE, "a.jsonl:1: message 1 lacks role or content"),
        ([{"role": "bot", "content": "Hi"}, TALK[2]], TEMPLATE, "the chat template refuses the conversation: there is no role bot"),
        (TALK, "{{ messages[-1].content }}", "writes what comes before message 3 in another way after it"),
        (TALK, "{% for %}", "the chat template, line 1"),
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_learned_are_named(messages, source, message):
    with pytest.raises(DataError) as refused:
        pieces(source, messages)
    assert message in str(refused.value)
