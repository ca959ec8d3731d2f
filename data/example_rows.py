"""From a labelled example to the tokens and labels of a row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from config import DataError
from config.objective_schema import ObjectiveConfig
from config.schema import RunConfig
from config.supervised_schema import (
    Instruction,
    Labelled,
    Regression,
    Relation,
    SequenceToSequence,
    TokenClassification,
)
from data.batch import IGNORE
from data.chat import TEMPLATE, compile_template, turns
from data.example_fields import label_name, number_of, text_of, value_of
from data.example_files import Record
from data.specials import BERT, T5
from data.tags import iob2
from data.tokenizer import Tokenizer

MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
"""Around the two entities of a relation."""

Encode = Callable[[Record], "Row"]


@dataclass(frozen=True)
class Row:
    """One example as a model reads it."""

    ids: list[int]
    labels: list[int] | list[float]
    """One for each id: what is to be predicted there, or IGNORE. The ids of what a decoder is to write are their own."""
    second: int = 0
    """Where the second text of a pair begins; 0: there is none."""
    source: list[int] = field(default_factory=list)
    """What an encoder reads."""


def example_specials(family: str, objective: ObjectiveConfig) -> tuple[str, ...]:
    """Special tokens of the rows: those that the family was pretrained with, and the markers of entities."""
    names = {"bert": BERT, "t5": T5}.get(family, ())
    return (*names, *MARKERS) if isinstance(objective, Relation) else names


def row_encoder(config: RunConfig, tokenizer: Tokenizer) -> Encode:
    """The function that encodes the recipe's examples. It raises DataError with the place of an example that lacks a
    field, has an unknown label or is too long."""
    encoder = RowEncoder(config, tokenizer)
    objective = config.objective
    if isinstance(objective, TokenClassification):
        return encoder.tagged
    if isinstance(objective, Relation):
        return encoder.related
    if isinstance(objective, SequenceToSequence):
        return encoder.translated
    if isinstance(objective, Instruction):
        return encoder.conversed if encoder.fields.messages else encoder.answered
    return encoder.labelled


class RowEncoder:
    def __init__(self, config: RunConfig, tokenizer: Tokenizer):
        assert config.data.examples is not None
        self.fields, self.objective, self.tokenizer = config.data.examples, config.objective, tokenizer
        self.length, self.most = config.data.row_length, config.model.max_positions
        self.limits = {
            "data.row_length": self.length,
            "objective.target_length": getattr(self.objective, "target_length", 0),
        }
        self.bert = config.model.family == "bert"
        self.begin, self.end = [], [tokenizer.eod_id]
        if self.fields.messages:
            self.render = compile_template(self.fields.chat_template or TEMPLATE, tokenizer.eod_token)
        if self.bert:
            _, cls_id, sep_id, _ = tokenizer.ids_of(BERT)
            self.begin, self.end = [cls_id], [sep_id]

    def labelled(self, record: Record) -> Row:
        """[CLS] text [SEP] (pair [SEP]) with the label at [CLS]; without [CLS], at the end of the last text."""
        texts = [self.tokenizer.encode(text_of(record, self.fields.text))]
        if self.fields.pair:
            texts.append(self.tokenizer.encode(text_of(record, self.fields.pair)))
        self._fit(record, texts, self.length - len(self.begin) - len(texts) * len(self.end))
        ids = self.begin + [token for text in texts for token in text + self.end]
        labels: list[Any] = [IGNORE] * len(ids)
        labels[0 if self.bert else -1] = self._target(record)
        second = len(ids) - len(texts[-1]) - len(self.end) if self.fields.pair else 0
        return Row(ids, labels, second)

    def related(self, record: Record) -> Row:
        """A text in which MARKERS surround two entities, with the label at the first marker."""
        text = text_of(record, self.fields.text)
        if wrong := [marker for marker in MARKERS if text.count(marker) != 1]:
            raise DataError(
                f"{record[0]}: {wrong[0]} stands {text.count(wrong[0])} times in its text, not once: mark the entities as in "
                "[E1]Ada[/E1] met [E2]Charles[/E2]"
            )
        ids = self.tokenizer.encode_with(text, MARKERS)
        markers = self.tokenizer.ids_of(MARKERS)
        self._fit(record, [ids], self.length - len(self.begin) - len(self.end))
        if not set(markers) <= set(ids):
            raise DataError(
                f"{record[0]}: an entity lies beyond the first {len(ids):,} tokens: cut the text's beginning off"
            )
        ids = self.begin + ids + self.end
        labels: list[int] = [IGNORE] * len(ids)
        labels[ids.index(markers[0])] = self._label(record, value_of(record, self.fields.label))
        return Row(ids, labels)

    def tagged(self, record: Record) -> Row:
        """The words of a sentence, each with its tag at the first of its tokens."""
        where, words = record[0], value_of(record, self.fields.text)
        tags = iob2(where, value_of(record, self.fields.label), self.fields.tags)
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            counts = [
                f"{len(v)} {n}" if isinstance(v, list) else f"no list of {n}"
                for v, n in ((words, "words"), (tags, "tags"))
            ]
            raise DataError(f"{where}: {counts[0]}, but {counts[1]}: each word needs one tag")
        if other := [word for word in words if not isinstance(word, str)]:
            raise DataError(f"{where}: the word {other[0]!r} is {type(other[0]).__name__}, not text: put it in quotes")
        ids, spans = self.tokenizer.encode_with_places(" ".join(words))
        labels: list[int] = [IGNORE] * len(ids)
        for place, tag in zip(first_tokens(words, spans), tags, strict=True):
            label = self._label(record, tag)
            if place is not None:
                labels[place] = label
        self._fit(record, [ids], self.length - len(self.begin) - len(self.end))
        labels = [IGNORE] * len(self.begin) + labels[: len(ids)] + [IGNORE] * len(self.end)
        return Row(self.begin + ids + self.end, labels)

    def translated(self, record: Record) -> Row:
        """A source for the encoder and the text that the decoder writes, both with their ends."""
        assert isinstance(self.objective, SequenceToSequence)
        source = [self.tokenizer.encode(text_of(record, self.fields.text))]
        target = [self.tokenizer.encode(text_of(record, self.fields.label))]
        self._fit(record, source, self.length - 1)
        self._fit(record, target, self.objective.target_length - 1, "objective.target_length")
        ids = target[0] + self.end
        return Row(ids, ids, source=source[0] + self.end)

    def answered(self, record: Record) -> Row:
        """A prompt, whose tokens are not learned, and the answer with its end."""
        prompt = self.tokenizer.encode(text_of(record, self.fields.text))
        answer = self.tokenizer.encode(text_of(record, self.fields.label)) + self.end
        self._fit(record, [prompt, answer], self.length + 1)
        return Row(prompt + answer, [IGNORE] * len(prompt) + answer)

    def conversed(self, record: Record) -> Row:
        """A conversation, of which the assistant's words are learned."""
        ids: list[int] = []
        labels: list[int] = []
        for text, learned in turns(record[0], value_of(record, self.fields.messages), self.render):
            tokens = self.tokenizer.encode_with(text, self.tokenizer.special_names)
            ids += tokens
            labels += tokens if learned else [IGNORE] * len(tokens)
        self._fit(record, [ids], self.length + 1)
        if all(label == IGNORE for label in labels[: len(ids)]):
            raise DataError(
                f"{record[0]}: no answer begins within the first {len(ids):,} tokens: shorten what comes before"
            )
        return Row(ids, labels[: len(ids)])

    def _fit(self, record: Record, texts: list[list[int]], room: int, setting: str = "data.row_length") -> None:
        """Shorten the longest of the texts until they fit. Raises DataError if they are not to be cut, or nothing fits."""
        excess, limit = sum(map(len, texts)) - room, self.limits[setting]
        if room < len(texts):
            raise DataError(f"{record[0]}: {setting} {limit:,} leaves no room for a token of each text: raise it")
        if excess > 0 and not self.fields.truncate:
            advice = f"raise it (the model reads up to {self.most:,}), or " if limit < self.most else ""
            raise DataError(
                f"{record[0]}: {room + excess:,} tokens of text, but {setting} {limit:,} leaves room for {room:,}: {advice}"
                "set data.examples.truncate=true to cut such texts off"
            )
        while (excess := sum(map(len, texts)) - room) > 0:
            longest = max(texts, key=len)
            other = max((len(text) for text in texts if text is not longest), default=0)
            del longest[len(longest) - min(excess, max(len(longest) - other, 1)) :]

    def _target(self, record: Record) -> int | float:
        name = self.fields.label
        return (
            number_of(record, name)
            if isinstance(self.objective, Regression)
            else self._label(record, value_of(record, name))
        )

    def _label(self, record: Record, value: Any) -> int:
        assert isinstance(self.objective, Labelled)
        name = label_name(record[0], value)
        try:
            return self.objective.labels.index(name)
        except ValueError:
            known = ", ".join(self.objective.labels[:20])
            raise DataError(
                f"{record[0]}: label {name!r} is none of the {len(self.objective.labels)} labels of the training "
                f"examples, which objective.labels names ({known}): mend the line, or train with examples of it"
            ) from None


def first_tokens(words: list[str], spans: list[tuple[int, int]]) -> list[int | None]:
    """Of each word the number of its first token, None if it has none. `spans` are the tokens' places in the words joined
    by spaces."""
    places: list[int | None] = []
    begin = token = 0
    for word in words:
        end = begin + len(word)
        while token < len(spans) and spans[token][1] <= begin:
            token += 1
        places.append(token if token < len(spans) and spans[token][0] < end else None)
        begin = end + 1
    return places
