"""What a trained model is given so that it continues a text, as its objective has taught it."""

from dataclasses import dataclass

from config import ConfigError
from config.objective_schema import WRITE_TEXT, CausalLM, ObjectiveConfig, PrefixLM
from data.specials import T5
from data.tokenizer import Tokenizer

EXTRA_TOKENS = 2
"""Most tokens that a prompt has beside those of its text."""


@dataclass(frozen=True)
class Prompt:
    tokens: list[int]
    """What the model writes after."""
    source: list[int] | None
    """What an encoder reads."""
    stop_ids: tuple[int, ...]
    """Tokens that end the text."""


def prompt_for(objective: ObjectiveConfig, tokenizer: Tokenizer, ids: list[int]) -> Prompt:
    """The prompt after which a model writes what follows the tokens `ids`. Raises ConfigError if it was not taught to write.

    After span corruption it is the text with the first sentinel at its end, and the model writes the span that is missing.
    """
    if objective.name not in WRITE_TEXT:
        raise ConfigError(
            f"a model trained by objective {objective.name} does not write text; {', '.join(WRITE_TEXT)} teach it"
        )
    end = tokenizer.eod_id
    if isinstance(objective, CausalLM):
        return Prompt([end, *ids], None, (end,))
    pad_id, first_id, second_id = tokenizer.ids_of(T5[:3])
    if isinstance(objective, PrefixLM):
        return Prompt([pad_id], [end, *ids], (end,))
    return Prompt([pad_id, first_id], [*ids, first_id, end], (end, second_id))
