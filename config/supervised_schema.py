"""Labelled examples, and what a pretrained model can learn from them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.section import Fraction, PositiveFloat, PositiveInt, Section


class ExamplesSection(Section):
    """Labelled examples: files of one JSON object a line (.jsonl), .csv or .tsv with a header, CoNLL (.conll, .iob2, .bio,
    .txt: a token with its tag a line, sentences parted by blank lines), or a folder that `datasets` saved."""

    train: str
    """File or folder of the examples to learn from."""
    valid: str = ""
    """The same of those to validate on; needed unless validation.every_steps is 0."""
    text: str = "text"
    """Field of the text: a prompt or a source under instruction and seq2seq, a list of words under token_classification."""
    pair: str = ""
    """Field of a second text to classify or rate together with the first."""
    label: str = "label"
    """Field of what shall be predicted: a label, a number, a list of tags, or the text to write."""
    messages: str = ""
    """Field of a conversation, a list of {role: system | user | assistant, content: text}, in place of `text` and `label`
    under instruction: all that the assistant says is learned."""
    chat_template: str = ""
    """Jinja template that makes a conversation a text. `python -m tasks finetune` takes the model's own. Default: that of
    data/chat.py, User: … and Assistant: … in paragraphs."""
    tags: Literal["iob2", "iob1"] = "iob2"
    """How entities are tagged under token_classification: iob2: B- begins each, iob1: I- does, and B- only where one follows
    another of its type; these are learned as IOB2."""
    tokenizer: str = ""
    """tokenizer.json, or a folder that has one. Default: that of run.start_from."""
    truncate: bool = False
    """Cut texts that are longer than a row off at their end, the longer one of a pair first; without it they are an
    error."""


class Supervised(Section):
    """What is learned from labelled examples."""

    name: str


class Labelled(Supervised):
    """Each example, or each of its words, has one of a few labels."""

    labels: Annotated[tuple[str, ...], Field(min_length=2, strict=False)]
    """Names of the labels. `python -m tasks finetune` takes them from the training examples."""
    class_weights: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    """What the loss of an example of each label is multiplied by, in the order of `labels`. Default: 1 for all."""
    head_dropout: Fraction = 0.1
    """Dropout before the layers on top of the model."""

    @model_validator(mode="after")
    def _check_labels(self) -> "Labelled":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels names a label twice: {', '.join(self.labels)}; name each once")
        if self.class_weights and len(self.class_weights) != len(self.labels):
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers for {len(self.labels)} labels: give one for each, or none"
            )
        return self


class Classification(Labelled):
    """A label for a text or a pair of texts, from the state of the first token (BERT) or the last one (GPT)."""

    name: Literal["classification"] = "classification"
    """Objective."""


class TokenClassification(Labelled):
    """A label for each word of a text, such as the BIO tags of named entities, from its first token's state."""

    name: Literal["token_classification"] = "token_classification"
    """Objective."""

    @property
    def has_entities(self) -> bool:
        """Whether the labels are tags of entities, which are scored as a whole."""
        return any(name.startswith("B-") for name in self.labels)


class Relation(Labelled):
    """A label for how two entities of a text relate. The text marks them itself, as in `[E1]Ada[/E1] met [E2]Charles[/E2]`;
    the label is read at [E1] (entity markers and entity start, arXiv:1906.03158)."""

    name: Literal["relation"] = "relation"
    """Objective."""


class Regression(Supervised):
    """A number for a text or a pair of texts."""

    name: Literal["regression"] = "regression"
    """Objective."""
    mean: float = 0.0
    """Mean of the numbers: what an untrained model predicts. `python -m tasks finetune` takes it from the examples."""
    scale: PositiveFloat = 1.0
    """Their standard deviation. The loss is the squared error in units of it."""
    head_dropout: Fraction = 0.1
    """Dropout before the layers on top of the model."""


class SequenceToSequence(Supervised):
    """The encoder reads a text, the decoder writes another one: translation, summarisation."""

    name: Literal["seq2seq"] = "seq2seq"
    """Objective."""
    target_length: PositiveInt = 128
    """Most tokens of the text to write, its end included."""


class Instruction(Supervised):
    """A decoder answers a prompt: only the answer is learned."""

    name: Literal["instruction"] = "instruction"
    """Objective."""
    packing: bool = True
    """Put several examples into a row, where they do not see each other."""


HEADED = (Labelled, Regression)
"""Objectives with a head of their own in place of the language model's."""
