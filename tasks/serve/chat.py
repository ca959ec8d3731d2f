"""From the messages of a conversation to a prompt."""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from config import ConfigError
from config.supervised_schema import Instruction, SequenceToSequence
from data.prompt import Prompt
from tasks.serve.errors import refuse
from tasks.serve.requests import Message
from tasks.serve.served import Served

ROLES = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}


class Template:
    """The chat template of the model's folder (tokenizer_config.json or chat_template.jinja, as transformers reads them).

    A model without one that was fine-tuned on prompts and answers reads messages as it read these: their texts as they
    are, an end token after each answer, a blank line between other messages. Any other one reads "User: …",
    "Assistant: …" and "System: …", one paragraph each, and stops before "\\nUser:".
    """

    def __init__(self, served: Served):
        self.served, self.render = served, _find_template(served.folder)
        self.answers = isinstance(served.trained.objective, Instruction | SequenceToSequence)
        self.stops = [] if self.render or self.answers else ["\nUser:"]

    def prompt(self, messages: list[Message]) -> Prompt:
        """Raises ApiError 400 if the template refuses the conversation."""
        if self.render:
            return self.served.prompt(self._rendered(messages))
        if self.answers:
            return self._answered(messages)
        turns = [f"{ROLES[message.role]}: {message.text}\n\n" for message in messages]
        return self.served.prompt("".join(turns) + "Assistant:")

    def _rendered(self, messages: list[Message]) -> list[int]:
        assert self.render is not None
        plain = [{"role": message.role, "content": message.text} for message in messages]
        try:
            text = self.render(messages=plain, add_generation_prompt=True)
        except Exception as error:  # a template is a program, and raises what it likes
            raise refuse(f"messages: the model's chat template refuses them: {error}", "messages") from None
        added = json.loads(self.served.tokenizer.spec)["added_tokens"]
        return self.served.tokenizer.encode_with(text, [token["content"] for token in added if token["special"]])

    def _answered(self, messages: list[Message]) -> Prompt:
        tokenizer, ids = self.served.tokenizer, list[int]()
        for is_answer, group in groupby(messages, key=lambda message: message.role == "assistant"):
            texts = [message.text for message in group]
            for text in texts if is_answer else ["\n\n".join(texts)]:
                ids += tokenizer.encode(text) + ([tokenizer.eod_id] if is_answer else [])
        if self.served.prompt("").source is not None:
            ids.append(tokenizer.eod_id)
        return self.served.prompt(ids or [tokenizer.eod_id])


def _find_template(folder: Path) -> Callable[..., str] | None:
    config = folder / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    file = folder / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if not isinstance(source, str):
        return None
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise ConfigError(f"the chat template of {folder} needs jinja2: pip install -e .[serve]") from None

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    for role in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = settings.get(role) or ""
        environment.globals[role] = token if isinstance(token, str) else token["content"]
    return environment.from_string(source).render
