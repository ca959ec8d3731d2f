"""Conversations: from messages to text by a template, and which of it is learned.

Templates are Jinja, as transformers keeps them in a model's folder.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from config import DataError

Message = dict[str, str]
"""role and content."""
Render = Callable[..., str]
"""From `messages` and `add_generation_prompt` to text. Raises whatever the template raises."""

TEMPLATE = """\
{%- set names = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"} -%}
{%- for message in messages -%}
{%- if message.role not in names %}{{ raise_exception("there is no role " ~ message.role) }}{% endif -%}
{%- if not loop.first %}{{ "\\n\\n" }}{% endif -%}
{{ names[message.role] ~ ": " ~ message.content }}
{%- if message.role == "assistant" %}{{ eos_token }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ "\\n\\nAssistant:" }}{% endif -%}
"""
"""Of models that learn conversations and have none: "User: …" and "Assistant: …" in paragraphs, an end of text after each answer."""
PROMPTS = (
    "{% for message in messages %}"
    "{% if loop.previtem and 'assistant' not in (message['role'], loop.previtem['role']) %}{{ '\n\n' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
"""Of models that learned from prompts and answers: prompts as they are, a blank line between two, and answers with their ends."""
TEMPLATE_NAME = "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""Special tokens that templates call by their role."""


def find_template(folder: Path) -> str | None:
    """The template in a folder of transformers, with the special tokens that it names; None if there is none."""
    path, file = folder / "tokenizer_config.json", folder / TEMPLATE_NAME
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    source = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several by name
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    if source is None:
        return None
    tokens = {role: settings.get(role) or "" for role in ROLES}
    names = {role: token if isinstance(token, str) else token["content"] for role, token in tokens.items()}
    return (
        "".join(
            f"{{%- set {role} = {json.dumps(name, ensure_ascii=False)} -%}}\n" for role, name in names.items() if name
        )
        + source
    )


def compile_template(source: str, eos_token: str = "") -> Render:
    """Raises DataError if it is not a template."""
    from jinja2 import TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": raise_exception, "eos_token": eos_token}
    try:
        return environment.from_string(source).render
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template, line {error.lineno}: {error}: mend it") from None


def turns(where: str, messages: Any, render: Render) -> Iterator[tuple[str, bool]]:
    """Pieces of a conversation's text up to its last answer, and whether each is learned: what the assistant says is, after
    the words with which the template lets it begin.

    Raises DataError with `where` the conversation stands if it has no answer or the template does not keep it in order.
    """
    _check_messages(where, messages)
    text = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            asked = render(messages=messages[:number], add_generation_prompt=True)
            answered = render(messages=messages[: number + 1], add_generation_prompt=False)
        except Exception as error:  # a template is a program, and raises what it likes
            raise DataError(f"{where}: the chat template refuses the conversation: {error}") from None
        if not (asked.startswith(text) and answered.startswith(asked)):
            raise DataError(
                f"{where}: the chat template writes what comes before message {number + 1} in another way after it, so that "
                "the model would learn from what it will not read: give each answer an example of its own"
            )
        yield asked[len(text) :], False
        yield answered[len(asked) :], True
        text = answered


def _check_messages(where: str, messages: Any) -> None:
    example = '{"role": "user", "content": "Hello"}'
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(f"{where}: its messages are {type(messages).__name__}, not a list of them like {example}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not all(isinstance(message.get(name), str) for name in ("role", "content")):
            raise DataError(
                f"{where}: message {number} lacks role or content, or they are no text: write it like {example}"
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError(f"{where}: no message is the assistant's, so there is nothing to learn: leave the example out")
