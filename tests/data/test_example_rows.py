"""From labelled examples to rows: words and tags against transformers, and what is said of examples that cannot be learned."""

from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from config import DataError, RunConfig
from data.batch import IGNORE
from data.example_rows import example_specials, row_encoder
from data.tokenizer import Tokenizer, byte_tokenizer, with_end_token
from tests.tiny import tiny_config

SENTENCE = [
    "He",
    "didn't",
    "visit",
    "the",
    "U.S.",
    "in",
    "Zürich-West",
    "for",
    "3.5",
    "%",
    "of",
    "東京",
    ",",
    "'s",
    "Gravenhage\u200b",
    "!",
    "naïve",
    "(",
    "tokenisation",
    ")",
]
TAGS = [f"T{number % 4}" for number in range(len(SENTENCE))]
LABELS = ["T0", "T1", "T2", "T3"]
BERT = {"family": "bert", "preset": "bert", "vocab_size": 640, "num_kv_heads": None, "max_positions": 64}


def recipe(objective: str, model: dict[str, Any] | None = None, row_length: int = 48, **settings: Any) -> RunConfig:
    given = {"labels": ["x", "y"]} if objective in ("classification", "relation") else {}
    examples = {name: settings.pop(name) for name in ("truncate", "pair", "tags", "messages") if name in settings}
    return tiny_config(
        data={"datasets": [], "examples": {"train": "t", "valid": "v", "tokenizer": "t", **examples}, "row_length": row_length},
        model={"max_positions": 64, **(model or {})},
        objective={"name": objective, **given, **settings},
    )  # fmt: skip


def encoder(config: RunConfig, tokenizer: Tokenizer | None = None):
    specials = example_specials(config.model.family, config.objective)
    return row_encoder(config, (tokenizer or byte_tokenizer()).with_special_tokens(specials))


def word_pieces() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    model.normalizer, model.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    model.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    model.train_from_iterator([" ".join(SENTENCE)], trainer)
    return model


def byte_pairs() -> tokenizers.Tokenizer:
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator([" ".join(SENTENCE)] * 3, trainer)
    return model


def test_words_are_labelled_at_the_token_that_transformers_takes_for_their_first():
    model = word_pieces()
    theirs = PreTrainedTokenizerFast(tokenizer_object=model)(
        SENTENCE, is_split_into_words=True, add_special_tokens=False
    )
    expected, before = [], None
    for word in theirs.word_ids():
        expected.append(IGNORE if word == before else LABELS.index(TAGS[word]))
        before = word
    config = recipe("token_classification", BERT, labels=LABELS)
    row = encoder(config, with_end_token(model))(("a:1", {"text": SENTENCE, "label": TAGS}))
    assert row.ids[1:-1] == theirs.input_ids and len(row.ids) > len(SENTENCE) + 5
    assert row.labels == [IGNORE, *expected, IGNORE]


def test_words_of_bytes_are_labelled_where_they_begin():
    model, text = byte_pairs(), " ".join(SENTENCE)
    theirs = PreTrainedTokenizerFast(tokenizer_object=model)(text, add_special_tokens=False)
    begins = [sum(len(word) + 1 for word in SENTENCE[:number]) for number in range(len(SENTENCE))]
    expected = {theirs.char_to_token(begin): LABELS.index(tag) for begin, tag in zip(begins, TAGS, strict=True)}
    config = recipe("token_classification", BERT, row_length=64, labels=LABELS)
    row = encoder(config, with_end_token(model))(("a:1", {"text": SENTENCE, "label": TAGS}))
    assert row.ids[1:-1] == theirs.input_ids
    assert {place - 1: label for place, label in enumerate(row.labels) if label != IGNORE} == expected


PAIR = {"text": "a", "label": "x"}
RELATION = {"text": "[E1]a[/E1] [E2]b[/E2]", "label": "x"}
LONG = "word " * 30


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (recipe("classification"), {"text": "a", "label": "z"}, "label 'z' is none of the 2 labels of the training examples, which objective.labels names (x, y)"),
        (recipe("classification"), {"text": "a", "label": ""}, "label is empty: fill it in, or leave the example out"),
        (recipe("classification"), {"text": "a", "label": None}, "label is empty"),
        (recipe("classification"), {"text": " \n", "label": "x"}, "text is empty"),
        (recipe("classification"), {"words": "a", "label": "x"}, "has no field 'text', only words, label: set data.examples.text, .pair, .label (--text"),
        (recipe("classification"), {"text": 5, "label": "x"}, "text is int, not text"),
        (recipe("classification", pair="second"), PAIR, "has no field 'second'"),
        (recipe("classification"), {"text": LONG, "label": "x"}, "150 tokens of text, but data.row_length 48 leaves room for 47: raise it (the model reads up to 64), or set data.examples.truncate=true"),
        (recipe("classification", row_length=64), {"text": LONG, "label": "x"}, "leaves room for 63: set data.examples.truncate=true"),
        (recipe("regression"), {"text": "a", "label": "two"}, "label is 'two', not a number, which regression learns: mend the line"),
        (recipe("regression"), {"text": "a", "label": "nan"}, "label is nan, which cannot be learned"),
        (recipe("relation", BERT), {"text": "[E1]a[/E1] b", "label": "x"}, "[E2] stands 0 times in its text, not once"),
        (recipe("classification", BERT, pair="second", truncate=True, row_length=4), {"text": LONG, "second": LONG, "label": "x"}, "data.row_length 4 leaves no room for a token of each text: raise it"),
        (recipe("relation", BERT, truncate=True), {**RELATION, "text": LONG + RELATION["text"]}, "an entity lies beyond the first 46 tokens"),
        (recipe("token_classification", BERT, labels=LABELS), {"text": ["a"], "label": ["T0", "T1"]}, "1 words, but 2 tags: each word needs one tag"),
        (recipe("token_classification", BERT, labels=LABELS), {"text": "a b", "label": ["T0", "T1"]}, "no list of words, but 2 tags"),
        (recipe("token_classification", BERT, labels=["O", "I-A"]), {"text": ["a"], "label": ["I-A"]}, "I-A begins an entity, after O"),
        (recipe("token_classification", BERT, labels=LABELS), {"text": ["a", 5], "label": ["T0", "T1"]}, "the word 5 is int, not text: put it in quotes"),
        (recipe("instruction"), {"text": "a", "label": " "}, "label is empty"),
        (recipe("instruction", messages="talk", truncate=True), {"talk": [{"role": "user", "content": LONG}, {"role": "assistant", "content": "a"}]}, "no answer begins within the first 49 tokens"),
        (recipe("instruction", messages="talk"), {"talk": [{"role": "user", "content": "a"}]}, "no message is the assistant's"),
    ],
)  # fmt: skip
def test_examples_that_cannot_be_learned_are_named_with_what_to_do(config, fields, message):
    with pytest.raises(DataError) as refused:
        encoder(config)(("train.jsonl:7", fields))
    assert str(refused.value).startswith("train.jsonl:7: ") and message in str(refused.value), str(refused.value)


def test_truncation_cuts_the_longer_text_and_keeps_entities():
    row = encoder(recipe("classification", BERT, pair="second", truncate=True, row_length=20))(
        ("a:1", {"text": "abc", "second": "x" * 50, "label": "y"})
    )
    assert len(row.ids) == 20 and row.second == 5 and row.labels[0] == 1
    row = encoder(recipe("relation", BERT, truncate=True))(("a:1", {**RELATION, "text": RELATION["text"] + LONG}))
    assert len(row.ids) == 48 and row.labels.count(IGNORE) == 47


def test_a_conversation_is_learned_from_where_each_answer_begins():
    talk = [{"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Yes."), ("user", "Bye"), ("assistant", "OK"))]  # fmt: skip
    tokenizer = byte_tokenizer()
    config = recipe("instruction", {"max_positions": 256}, row_length=200, messages="talk")
    row = row_encoder(config, tokenizer)(("a:1", {"talk": talk}))
    end = tokenizer.eod_token
    assert tokenizer.decode(row.ids) == f"User: Hi\n\nAssistant: Yes.{end}\n\nUser: Bye\n\nAssistant: OK{end}"
    assert tokenizer.decode([label for label in row.labels if label != IGNORE]) == f" Yes.{end} OK{end}"
    assert all(label in (IGNORE, id_) for id_, label in zip(row.ids, row.labels, strict=True))
