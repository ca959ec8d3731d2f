"""Prompts are what the objectives' rows look like up to the place where the model writes."""

import pytest

from config import ConfigError
from config.objective_schema import CausalLM, MaskedLM, PrefixLM, SpanCorruption
from data.prompt import EXTRA_TOKENS, prompt_for
from data.specials import special_names
from tests.data.made import EOD, WORDS, word_tokenizer

PAD, FIRST, SECOND = WORDS + 1, WORDS + 2, WORDS + 3


@pytest.mark.parametrize(
    ("objective", "source", "tokens", "stop_ids"),
    [
        (CausalLM(), None, [EOD, 5, 6], (EOD,)),
        (PrefixLM(), [EOD, 5, 6], [PAD], (EOD,)),
        (SpanCorruption(), [5, 6, FIRST, EOD], [PAD, FIRST], (EOD, SECOND)),
    ],
)
def test_a_prompt_is_laid_out_as_in_training(objective, source, tokens, stop_ids):
    tokenizer = word_tokenizer().with_special_tokens(special_names(objective))
    prompt = prompt_for(objective, tokenizer, [5, 6])
    assert (prompt.source, prompt.tokens, prompt.stop_ids) == (source, tokens, stop_ids)
    assert max(len(prompt.tokens), len(prompt.source or [])) <= 2 + EXTRA_TOKENS


def test_what_writes_no_text_is_not_prompted():
    with pytest.raises(ConfigError, match="objective masked_lm does not write text; causal_lm, prefix_lm, span_corr"):
        prompt_for(MaskedLM(), word_tokenizer(), [5])
