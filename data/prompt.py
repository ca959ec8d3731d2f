"""What a model reads of a prompt: the row that its objective would have made of the text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from config import ConfigError
from config.objective_schema import WRITE_TEXT, MaskedLM, ObjectiveConfig, PrefixLM, SpanCorruption
from config.supervised_schema import Instruction, SequenceToSequence
from data.specials import T5, special_names
from data.tokenizer import Tokenizer

MASK = "[MASK]"
SPACE_BEFORE_HOLE = re.compile(r" (?=\[MASK\]|<extra_id_\d+>)")


@dataclass(frozen=True)
class Prompt:
    text: str
    """What to show before the text that the model writes."""
    tokens: list[int]
    """What a decoder continues, or the row in which masks are filled in."""
    source: list[int] | None
    """What an encoder reads before the decoder starts."""
    stop_ids: tuple[int, ...]
    """Tokens that end the text."""


def encode_prompt(text: str, objective: ObjectiveConfig, tokenizer: Tokenizer, start: Sequence[int] = ()) -> Prompt:
    """The prompt as a row of the objective; the names of its special tokens stand for these tokens. `start` stands before
    a decoder's text instead of the end token.

    After span corruption a model writes what fills each `<extra_id_n>`; a prompt without them gets the first at its end,
    and the model writes what follows it. A row for masks has one at its end if the prompt has none.
    Raises ConfigError if the objective teaches no text.
    """
    if objective.name not in WRITE_TEXT:
        raise ConfigError(
            f"a model trained by objective {objective.name} does not write text; {', '.join(WRITE_TEXT)} teach it"
        )
    if isinstance(objective, MaskedLM) and MASK not in text:
        text += MASK
    read = without_spaces(text, tokenizer) if isinstance(objective, MaskedLM | SpanCorruption) else text
    ids, end = tokenizer.encode_with(read, special_names(objective)), tokenizer.eod_id
    if isinstance(objective, MaskedLM):
        cls_id, sep_id = tokenizer.ids_of(["[CLS]", "[SEP]"])
        return Prompt(text, [cls_id, *ids, sep_id], None, ())
    if isinstance(objective, Instruction):
        return Prompt(text, ids or [end], None, (end,))
    if isinstance(objective, SequenceToSequence):
        return Prompt(f"{text} → ", tokenizer.ids_of(T5[:1]), [*ids, end], (end,))
    if isinstance(objective, PrefixLM):
        return Prompt(text, tokenizer.ids_of(T5[:1]), [end, *ids], (end,))
    if isinstance(objective, SpanCorruption):
        pad_id, first_id, second_id = tokenizer.ids_of(T5[:3])
        if first_id in ids:
            return Prompt(f"{text} → ", [pad_id], [*ids, end], (end,))
        return Prompt(text, [pad_id, first_id], [*ids, first_id, end], (end, second_id))
    return Prompt(text, [*(start or [end]), *ids], None, (end,))


def without_spaces(text: str, tokenizer: Tokenizer) -> str:
    """The text without the spaces before its holes, if these hide them."""
    return SPACE_BEFORE_HOLE.sub("", text) if hides_spaces(tokenizer) else text


def hides_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a token is a word with the space before it, so that what a hole hid in training had its space."""
    return len(tokenizer.encode(" a")) == 1
