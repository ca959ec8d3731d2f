"""What a model is trained to predict, and how much text one row of each objective takes."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.contrastive_schema import Contrastive, ContrastivePairs
from config.section import Fraction, Section, Share
from config.supervised_schema import (
    Classification,
    Instruction,
    Regression,
    Relation,
    SequenceToSequence,
    Supervised,
    TokenClassification,
)

SENTINELS = 100
"""Names `<extra_id_0>` … `<extra_id_99>` (T5's vocabulary), so at most as many spans in a row."""


class CausalLM(Section):
    """Predict each token from those before it."""

    name: Literal["causal_lm"] = "causal_lm"
    """Objective."""
    fim_rate: Fraction = 0.0
    """Share of documents, as far as they lie in a row, rearranged so that the middle comes last and is written with
    both sides known: fill-in-the-middle (arXiv:2207.14255)."""
    fim_spm_rate: Fraction = 0.5
    """Share of the rearranged documents in the order suffix, prefix, middle; the others are prefix, suffix, middle."""


CAUSAL_LM = CausalLM()


class MaskedLM(Section):
    """Predict hidden tokens from both sides (BERT, arXiv:1810.04805)."""

    name: Literal["masked_lm"] = "masked_lm"
    """Objective."""
    mask_rate: Share = 0.15
    """Share of tokens to predict."""
    mask_share: Fraction = 0.8
    """Share of the tokens to predict that are replaced by [MASK]."""
    random_share: Fraction = 0.1
    """Share of the tokens to predict that are replaced by random ones; the rest stay as they are."""
    whole_word: bool = False
    """Choose whole words instead of single tokens."""
    pairs: Literal["none", "nsp", "sop"] = "none"
    """none: rows are full. nsp: a row is two spans, and the model tells whether the second follows the first or comes
    from a random other document. sop: a row is two consecutive spans, and the model tells whether they were swapped
    (ALBERT, arXiv:1909.11942)."""

    @model_validator(mode="after")
    def _check_shares(self) -> "MaskedLM":
        if self.mask_share + self.random_share > 1:
            raise ValueError(
                f"mask_share {self.mask_share:g} and random_share {self.random_share:g} add up to "
                f"{self.mask_share + self.random_share:g}: lower one of them, both are shares of the same tokens"
            )
        return self


class SpanCorruption(Section):
    """The encoder reads text with spans cut out, the decoder writes the spans (T5, arXiv:1910.10683, section 3.1.4)."""

    name: Literal["span_corruption"] = "span_corruption"
    """Objective."""
    noise_density: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the tokens that is cut out."""
    mean_span_length: Annotated[float, Field(ge=1)] = 3.0
    """Mean length of the spans, in tokens."""


class PrefixLM(Section):
    """The encoder reads the beginning of a row, of random length, and the decoder continues it (arXiv:1910.10683,
    section 3.2.1)."""

    name: Literal["prefix_lm"] = "prefix_lm"
    """Objective."""


ObjectiveConfig = Annotated[
    CausalLM
    | MaskedLM
    | SpanCorruption
    | PrefixLM
    | Contrastive
    | ContrastivePairs
    | Classification
    | Regression
    | TokenClassification
    | Relation
    | SequenceToSequence
    | Instruction,
    Field(discriminator="name"),
]

OBJECTIVES = {
    "gpt": (
        "causal_lm",
        "contrastive",
        "contrastive_pairs",
        "classification",
        "regression",
        "token_classification",
        "instruction",
    ),
    "bert": (
        "masked_lm",
        "contrastive",
        "contrastive_pairs",
        "classification",
        "regression",
        "token_classification",
        "relation",
    ),
    "t5": ("span_corruption", "prefix_lm", "seq2seq"),
}
"""What each family can learn; the first is its default."""

WRITE_TEXT = ("causal_lm", "prefix_lm", "span_corruption", "masked_lm", "seq2seq", "instruction")
"""Objectives after which a model continues a prompt or fills in what it leaves out."""


@dataclass(frozen=True)
class RowShape:
    """What one sample of an objective is made of, in tokens."""

    text: int
    """Tokens of text that it takes from the corpus; of labelled texts, which differ in length, as many as there is room
    for."""
    length: int
    """Length of the rows that the model (an encoder, if it has one) reads."""
    decoder: int = 0
    """Length of the decoder's row; 0 without one."""
    rows: int = 1
    """Rows that the model reads for it."""
    padded: bool = False
    """Whether rows may be shorter than their length."""
    spans: int = 0
    """Spans cut out of the text."""
    noise: int = 0
    """Tokens in those spans."""


def row_shape(objective: ObjectiveConfig, row_length: int) -> RowShape:
    """How one sample fills rows of `data.row_length` tokens. Raises ValueError if none of its text fits."""
    if isinstance(objective, CausalLM):
        return RowShape(row_length, row_length)
    if isinstance(objective, Supervised):
        target = objective.target_length if isinstance(objective, SequenceToSequence) else 0
        return RowShape(row_length, row_length, decoder=target, padded=True)
    if isinstance(objective, PrefixLM):
        shape = RowShape(row_length, row_length, decoder=row_length, padded=True)
    elif isinstance(objective, MaskedLM):
        pairs = objective.pairs != "none"
        shape = RowShape(row_length - 2 - pairs, row_length, padded=pairs)
    elif isinstance(objective, Contrastive):
        shape = RowShape(int((row_length - 2) / objective.max_crop), row_length, rows=2, padded=True)
    elif isinstance(objective, ContrastivePairs):
        rows = 2 + objective.hard_negatives
        shape = RowShape(rows * (row_length - 2), row_length, rows=rows, padded=True)
    else:
        shape = _corrupted(objective, row_length)
    if shape.text < 2:
        raise ValueError(
            f"data.row_length {row_length} leaves room for {max(shape.text, 0)} tokens of text under objective "
            f"{objective.name}: set it to at least {row_length + 2 - shape.text}"
        )
    return shape


def _corrupted(objective: SpanCorruption, row_length: int) -> RowShape:
    """The longest text of which exactly row_length tokens remain: what is kept, a sentinel for each span and the end.

    The numbers of tokens and spans are those of T5's `random_spans_noise_mask`. One more token of text lengthens the
    corrupted row by one or not at all, so that every length is met.
    """

    def corrupt(text: int) -> RowShape:
        noise = min(max(round(text * objective.noise_density), 1), text - 1)
        spans = max(round(noise / objective.mean_span_length), 1)
        return RowShape(text, text - noise + spans + 1, decoder=noise + spans + 1, spans=spans, noise=noise)

    if row_length < corrupt(2).length:
        return RowShape(row_length - 1, row_length)
    kept = 1 - objective.noise_density + objective.noise_density / objective.mean_span_length
    texts = range(2, int((row_length + 4) / kept) + 4)
    shape = corrupt(texts[bisect_right(texts, row_length, key=lambda text: corrupt(text).length) - 1])
    assert shape.length == row_length
    where = f"objective.noise_density {objective.noise_density:g} and mean_span_length {objective.mean_span_length:g}"
    if shape.spans > SENTINELS:
        raise ValueError(
            f"{where} cut {shape.spans} spans out of a row of data.row_length {row_length}, but there are {SENTINELS} "
            "sentinels: raise objective.mean_span_length or lower one of the others"
        )
    if shape.spans > shape.text - shape.noise:
        raise ValueError(
            f"{where} leave {shape.text - shape.noise} tokens between {shape.spans} spans: lower "
            "objective.noise_density or raise objective.mean_span_length"
        )
    return shape
