"""Prompts are what the objectives' rows look like up to the place where the model writes."""

import pytest

from config import ConfigError
from config.objective_schema import CausalLM, Contrastive, MaskedLM, PrefixLM, SpanCorruption
from data.prompt import encode_prompt
from data.specials import BERT, T5, special_names
from data.tokenizer import Tokenizer, byte_tokenizer
from data.vocabulary import train_tokenizer

END = 256


def tokenizer_for(objective) -> Tokenizer:
    return byte_tokenizer().with_special_tokens(special_names(objective))


def encode(text: str, objective):
    return encode_prompt(text, objective, tokenizer_for(objective))


def test_a_causal_prompt_begins_a_document():
    prompt = encode("ab<|fim_middle|>", CausalLM())
    assert (prompt.tokens, prompt.source, prompt.stop_ids) == ([END, *b"ab<|fim_middle|>"], None, (END,))
    fim = CausalLM(fim_rate=0.5)
    assert encode("ab<|fim_middle|>", fim).tokens == [END, *b"ab", *tokenizer_for(fim).ids_of(["<|fim_middle|>"])]


def test_a_prefix_begins_a_document_that_goes_on():
    prompt = encode("ab", PrefixLM())
    assert prompt.source == [END, *b"ab"] and prompt.stop_ids == (END,)
    assert prompt.tokens == tokenizer_for(PrefixLM()).ids_of(["<pad>"])


def test_span_corruption_continues_a_text_with_its_first_span():
    objective = SpanCorruption()
    pad, first, second = tokenizer_for(objective).ids_of(["<pad>", "<extra_id_0>", "<extra_id_1>"])
    prompt = encode("ab", objective)
    assert prompt.text == "ab" and prompt.source == [*b"ab", first, END]
    assert prompt.tokens == [pad, first] and prompt.stop_ids == (END, second)


def test_sentinels_in_a_prompt_stand_for_themselves():
    objective = SpanCorruption()
    pad, first, tenth = tokenizer_for(objective).ids_of(["<pad>", "<extra_id_0>", "<extra_id_10>"])
    prompt = encode("a<extra_id_0>b<extra_id_10>", objective)
    assert prompt.source == [*b"a", first, *b"b", tenth, END] and prompt.tokens == [pad]
    assert prompt.text == "a<extra_id_0>b<extra_id_10> → " and prompt.stop_ids == (END,)


def test_a_decoder_of_another_house_begins_with_its_own_token():
    assert encode("ab", CausalLM()).tokens == [END, *b"ab"]
    assert encode_prompt("ab", CausalLM(), tokenizer_for(CausalLM()), start=[7]).tokens == [7, *b"ab"]


def test_masks_stand_between_the_marks_of_a_row():
    begin, separator, mask = tokenizer_for(MaskedLM()).ids_of(["[CLS]", "[SEP]", "[MASK]"])
    assert encode("a[MASK]b", MaskedLM()).tokens == [begin, *b"a", mask, *b"b", separator]
    assert encode("ab", MaskedLM()).text == "ab[MASK]"


def test_a_hidden_word_had_its_space():
    tokenizer = train_tokenizer(["the cat sat on a mat, and a cat slept on the mat " * 20], 300)
    masked, spans = tokenizer.with_special_tokens(BERT), tokenizer.with_special_tokens(T5)
    (mask,), (first,) = masked.ids_of(["[MASK]"]), spans.ids_of(["<extra_id_0>"])
    assert encode_prompt("the [MASK] sat", MaskedLM(), masked).tokens[1:-1] == [
        mask if number == tokenizer.encode(" cat")[0] else number for number in tokenizer.encode("the cat sat")
    ]
    assert encode_prompt("the <extra_id_0> sat", SpanCorruption(), spans).source[:-1] == [
        first if number == tokenizer.encode(" cat")[0] else number for number in tokenizer.encode("the cat sat")
    ]
    byte = tokenizer_for(MaskedLM()).ids_of(["[MASK]"])
    assert encode("a [MASK]", MaskedLM()).tokens[1:-1] == [*b"a ", *byte]


def test_a_model_of_vectors_is_not_prompted():
    with pytest.raises(ConfigError, match="objective contrastive does not write text; causal_lm, prefix_lm, span_corr"):
        encode("ab", Contrastive())
