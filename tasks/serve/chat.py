"""From the messages of a conversation to a prompt."""

from itertools import groupby

from config.supervised_schema import SequenceToSequence
from data.chat import TEMPLATE, compile_template, find_template
from data.prompt import Prompt
from tasks.serve.errors import refuse
from tasks.serve.requests import Message
from tasks.serve.served import Served


class Template:
    """The chat template of the model's folder (tokenizer_config.json or chat_template.jinja, as transformers reads
    them), or the one by which a run learned conversations or prompts and answers.

    An encoder–decoder reads the texts of the messages as they are, an end token after each answer, a blank line between
    other messages. Any other model reads data/chat.py's template without ends of text, and stops before "\\nUser:".
    """

    def __init__(self, served: Served):
        learned = find_template(served.folder) or served.trained.chat_template
        self.served = served
        self.translates = isinstance(served.trained.objective, SequenceToSequence)
        self.render = compile_template(learned or TEMPLATE, served.tokenizer.eod_token if learned else "")
        self.stops = [] if learned or self.translates else ["\nUser:"]

    def prompt(self, messages: list[Message]) -> Prompt:
        """Raises ApiError 400 if the template refuses the conversation."""
        if self.translates:
            return self._source(messages)
        plain = [{"role": message.role, "content": message.text} for message in messages]
        try:
            text = self.render(messages=plain, add_generation_prompt=True)
        except Exception as error:  # a template is a program, and raises what it likes
            raise refuse(f"messages: the model's chat template refuses them: {error}", "messages") from None
        if self.stops:
            return self.served.prompt(text)
        tokenizer = self.served.tokenizer
        return self.served.prompt(tokenizer.encode_with(text, tokenizer.special_names) or [tokenizer.eod_id])

    def _source(self, messages: list[Message]) -> Prompt:
        tokenizer, ids = self.served.tokenizer, list[int]()
        for is_answer, group in groupby(messages, key=lambda message: message.role == "assistant"):
            texts = [message.text for message in group]
            for text in texts if is_answer else ["\n\n".join(texts)]:
                ids += tokenizer.encode(text) + ([tokenizer.eod_id] if is_answer else [])
        return self.served.prompt([*ids, tokenizer.eod_id])
