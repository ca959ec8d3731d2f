"""A model that learned conversations is asked as it learned to answer, by the server and in its export."""

import json
from dataclasses import replace

import pytest
import torch

import tasks.evaluation.examples
from config.gpt_schema import GPTConfig
from data.chat import PROMPTS, TEMPLATE
from model.generation import Generation
from tasks.serve.chat import Template
from tasks.serve.requests import Message
from tasks.serve.served import Served
from tests.tasks.trained import tiny_trained
from tests.tiny import tiny_config

TALK = [Message(role=role, content=text) for role, text in (("user", "Hi"), ("assistant", "Yes."), ("user", "Bye"))]
GPT = GPTConfig(vocab_size=320, num_layers=1, hidden_size=16, num_heads=2, max_positions=128)


@pytest.mark.parametrize(
    ("fields", "template", "read"),
    [
        ({"messages": "messages"}, TEMPLATE, "User: Hi\n\nAssistant: Yes.<|endoftext|>\n\nUser: Bye\n\nAssistant:"),
        ({"messages": "m", "chat_template": "{{ messages[-1].content }}?"}, "{{ messages[-1].content }}?", "Bye?"),
        ({}, PROMPTS, "HiYes.<|endoftext|>Bye"),
        (None, None, "<|endoftext|>User: Hi\n\nAssistant: Yes.\n\nUser: Bye\n\nAssistant:"),
    ],
)
def test_conversations_are_read_as_they_were_learned(tmp_path, fields, template, read):
    trained = tiny_trained(GPT)
    if fields is not None:
        examples = {"train": "t", "valid": "v", "tokenizer": "t", **fields}
        recipe = tiny_config(data={"datasets": [], "examples": examples}, objective={"name": "instruction"})
        trained = replace(trained, recipe=recipe, objective=recipe.objective)
    assert trained.chat_template == template
    asked = Template(Served("tiny", trained, tmp_path)).prompt(TALK).tokens
    assert trained.tokenizer.decode(asked) == read
    assert trained.tokenizer.eod_id in asked or template not in (TEMPLATE, PROMPTS)


def test_an_answer_is_compared_up_to_its_end(tmp_path, monkeypatch):
    """The template writes more behind it, which is learned but never asked for."""
    trained = tiny_trained(GPT)
    template = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }};{% endfor %}"
    examples = {"train": "t", "valid": "v", "tokenizer": "t", "messages": "messages", "chat_template": template}
    recipe = tiny_config(data={"datasets": [], "examples": examples}, objective={"name": "instruction"})
    messages = [message.model_dump(include={"role", "content"}) for message in TALK[:2]]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    right = Generation([trained.tokenizer.encode("Yes.")], ["stop"])
    monkeypatch.setattr(tasks.evaluation.examples, "generate", lambda *_, **__: right)
    trained = replace(trained, recipe=recipe, objective=recipe.objective)
    result = tasks.evaluation.examples.on_examples(trained, str(tmp_path / "talks.jsonl"), torch.device("cpu"))
    assert result.metrics["exact_match"] == 1.0
